"""Where a result comes from: the commit and the processor. For the lines that train and bench write."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path


def commit() -> str | None:
    """The commit cellfuse runs from, "-dirty" with local changes; None outside its repository."""
    folder = Path(__file__).parent
    # A package installed below somebody else's repository is not tracked there.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", folder, *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def processor() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [row.partition(":")[2].strip() for row in text.splitlines() if row.startswith("model name")]
    return names[0] if names else platform.machine()
