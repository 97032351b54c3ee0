"""Plant each bug of tests/planted_bugs.toml in a copy of the repository and run the tests that must notice.

`python scripts/plant_bugs.py [WORD]` prints one line per bug, or per bug whose description or file holds
WORD. It returns 1 if a bug is missed, its text is not found exactly once, or the tests are red without it.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = Path("tests") / "planted_bugs.toml"
COPIED = ("src", "tests", "scripts", "benchmarks", "pyproject.toml")


def bugs(root=ROOT):
    """The list of bugs as dictionaries with what, file, text, instead, tests."""
    return tomllib.loads((root / LIST).read_text(encoding="utf-8"))["bug"]


def fault_of(bug, root=ROOT):
    """What is wrong with an entry of the list, or nothing."""
    if set(bug) != {"what", "file", "text", "instead", "tests"}:
        return f"has the keys {sorted(bug)}"
    file = root / "src" / "cellfuse" / bug["file"]
    if not file.exists():
        return f"names {bug['file']}, which does not exist"
    count = file.read_text(encoding="utf-8").count(bug["text"])
    if count != 1:
        return f"its text is {count} times in {bug['file']}"
    lost = [part for part in bug["tests"].split() if part.startswith("tests/") and not (root / part).exists()]
    return f"names {lost[0]}, which does not exist" if lost else ""


def run_tests(root, selection):
    """(exit status, first failing test) of a selection run in a copy; stops at the first failure."""
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *selection.split()]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, failed[0].split(" ", 1)[1].split(" - ")[0] if failed else ""


def plant(bug, root):
    """(verdict, the test that noticed) of one bug; the copy is whole again afterwards."""
    file = root / "src" / "cellfuse" / bug["file"]
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace(bug["text"], bug["instead"]), encoding="utf-8")
    try:
        status, first = run_tests(root, bug["tests"])
    finally:
        file.write_text(whole, encoding="utf-8")
    if -status in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE):
        return "caught", f"killed by signal {-status}"
    # 1: tests ran and failed; 2: a cell could not even be made while tests were collected.
    return ("caught", first) if status in (1, 2) and first else ("MISSED", f"pytest returned {status}")


def main(word=""):
    chosen = [bug for bug in bugs() if word in bug["what"] or word in bug["file"]]
    wrong = [(bug["what"], fault) for bug in chosen if (fault := fault_of(bug))]
    for what, fault in wrong:
        print(f"{what}: {fault}")
    if wrong or not chosen:
        return 1
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, root / name)
        for selection in dict.fromkeys(bug["tests"] for bug in chosen):
            mine = [bug for bug in chosen if bug["tests"] == selection]
            status, first = run_tests(root, selection)
            if status != 0:
                print(f"{selection} is red without a bug: {first or f'pytest returned {status}'}", flush=True)
                missed += len(mine)
                continue
            for bug in mine:
                start = time.perf_counter()
                verdict, first = plant(bug, root)
                missed += verdict != "caught"
                seconds = f"{time.perf_counter() - start:.0f} s"
                print(f"{verdict}  {seconds:>5}  {bug['file']:<22} {bug['what']:<66} {first}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} bugs caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
