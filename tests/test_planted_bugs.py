"""The list of planted bugs fits the source; scripts/plant_bugs.py itself takes minutes."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("plant_bugs", ROOT / "scripts" / "plant_bugs.py")
plant_bugs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plant_bugs)
BUGS = plant_bugs.bugs()


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug["what"])
def test_every_text_is_found_exactly_once(bug):
    assert plant_bugs.fault_of(bug) == ""
    assert bug["text"] != bug["instead"]
    if bug["file"].endswith(".py"):
        source = (ROOT / "src" / "cellfuse" / bug["file"]).read_text(encoding="utf-8")
        compile(source.replace(bug["text"], bug["instead"]), bug["file"], "exec")


def test_bugs_are_told_apart():
    assert (
        len({bug["what"] for bug in BUGS})
        == len({(b["file"], b["text"], b["instead"]) for b in BUGS})
        == len(BUGS)
    )


@pytest.fixture
def small(tmp_path):
    """A repository of one function and one test."""
    (tmp_path / "src" / "cellfuse").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    # A package of its own: an installed cellfuse would come before a folder without __init__.py.
    (tmp_path / "src" / "cellfuse" / "__init__.py").write_text("")
    (tmp_path / "src" / "cellfuse" / "one.py").write_text("def one():\n    return 1\n")
    (tmp_path / "tests" / "test_one.py").write_text(
        "from cellfuse.one import one\n\n\ndef test_one():\n    assert one() > 0\n"
    )
    return tmp_path


BUG = {"what": "w", "file": "one.py", "text": "return 1", "instead": "return 0", "tests": "tests/test_one.py"}


def test_a_bug_is_caught_or_missed_and_taken_out_again(small):
    whole = (small / "src" / "cellfuse" / "one.py").read_text()
    assert plant_bugs.plant(BUG, small) == ("caught", "tests/test_one.py::test_one")
    assert plant_bugs.plant(BUG | {"instead": "return 2"}, small) == ("MISSED", "pytest returned 0")
    assert plant_bugs.plant(BUG | {"tests": "tests/test_one.py -k other"}, small)[0] == "MISSED"
    crash = BUG | {"instead": "import os; os.abort()"}
    assert plant_bugs.plant(crash, small) == ("caught", "killed by signal 6")
    assert (small / "src" / "cellfuse" / "one.py").read_text() == whole


def test_an_entry_that_does_not_fit_is_seen(small):
    assert plant_bugs.fault_of(BUG, small) == ""
    assert plant_bugs.fault_of(BUG | {"text": "return 3"}, small) == "its text is 0 times in one.py"
    assert plant_bugs.fault_of(BUG | {"text": "n"}, small) == "its text is 2 times in one.py"
    assert plant_bugs.fault_of(BUG | {"file": "two.py"}, small) == "names two.py, which does not exist"
    assert "tests/no.py" in plant_bugs.fault_of(BUG | {"tests": "tests/no.py"}, small)
    assert plant_bugs.fault_of({"what": "w"}, small) == "has the keys ['what']"
