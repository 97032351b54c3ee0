"""Habits of the repository that a machine can hold."""

import os
import re
import subprocess
from pathlib import Path

import pytest

import cellfuse

ROOT = Path(__file__).parents[1]
COMMANDS = ("test", "demo", "check", "bench", "docs")
SCRIPTS = [*(ROOT / "scripts" / name for name in COMMANDS), ROOT / ".ci/run"]


def test_changelog_and_package_agree_on_the_version():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == cellfuse.__version__


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_run_and_parse(script):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_long_files_give_their_reason():
    for file in (ROOT / "src").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            docstring = text.split('"""')[1]
            assert docstring.count("\n") >= 3, f"{file.name} has over 400 lines and does not say why"


def test_no_module_is_called_after_nothing():
    names = {file.stem for file in (ROOT / "src").rglob("*.py")}
    assert not names & {"utils", "helpers", "misc", "common", "base", "core"}


def test_public_names():
    for name in cellfuse.__all__:
        assert getattr(cellfuse, name).__doc__, name
