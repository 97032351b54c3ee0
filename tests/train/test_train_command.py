"""The command: options, errors, the results line, the picture, and a cell from a file."""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest
import torch

from cellfuse import cells
from cellfuse.errors import CellError, TaskError
from cellfuse.train import command, curve
from cellfuse.train.settings import FREE, Settings, settings_of
from cellfuse.train.tasks import TASKS, find

OWN_CELL = '''
import torch
import cellfuse as cf

@cf.cell(gates="fn", states="h", source="Zhou et al. 2016, arXiv:1603.09420")
def mine(gate, h):
    """A minimal gated unit."""
    f = torch.sigmoid(gate.f)
    n = torch.tanh(gate.n.x + gate.n.of(f * h))
    return (1 - f) * h + f * n

def plain(x):
    return x
'''

# Every option with a value that differs from the usual one.
OTHERS = {
    "hidden_size": "9",
    "num_layers": "2",
    "bidirectional": None,
    "dropout": "0.1",
    "proj_size": "3",
    "batch_size": "7",
    "steps": "3",
    "lr": "0.5",
    "clip": "2.5",
    "weight_decay": "0.25",
    "seed": "11",
    "patience": "4",
    "options": "length=12",
    "out": "elsewhere",
    "resume": None,
    "checkpoint_every": "6",
    "accelerator": "auto",
    "devices": "2",
    "precision": "64-true",
    "json": None,
    "quiet": None,
}


def parsed(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_every_option_reaches_the_settings_and_nothing_else_does():
    words = ["adding", "--cell", "lstm"]
    for name, value in OTHERS.items():
        flag = "--set" if name == "options" else "--" + name.replace("_", "-")
        words += [flag] if value is None else [flag, value]
    args = vars(parsed(*words))
    assert args.keys() == {entry.name for entry in fields(Settings)} | {"list"}
    task = find("adding")
    given = {name: args[name] for name in args if name != "list"}
    settings = settings_of(given, task)
    usual = settings_of({"task": "adding", "cell": "lstm"}, task)
    for name, value in OTHERS.items():
        assert getattr(settings, name) != getattr(usual, name), name
        if value is not None and name != "options":
            assert str(getattr(settings, name)) == value
    assert settings.options == {"length": 12}
    assert settings.epochs is None
    assert usual.epochs == task.defaults.epochs


@pytest.mark.parametrize("name", sorted(OTHERS.keys() - FREE - {"options"}))
def test_what_changes_a_step_changes_the_run(train, name):
    """An option that is accepted is not ignored: weights or loss differ from the usual run's."""
    words = ["--steps", "2"]
    words += ["--num-layers", "2"] if name == "dropout" else []
    words += ["--proj-size", "2"] if name == "proj_size" else []
    value = [] if OTHERS[name] is None else [OTHERS[name]]
    other = ["--" + name.replace("_", "-"), *(["0.001"] if name == "clip" else value)]
    used = "projected_lstm" if name == "proj_size" else "lstm"
    assert train.tiny("japanese-vowels", *words, cell=used, out="usual") == 0
    assert train.tiny("japanese-vowels", *words, *other, cell=used, out="other") == 0
    usual, other = (train.checkpoint(out) for out in ("usual", "other"))
    same = usual["model"].keys() == other["model"].keys() and all(
        torch.equal(value, other["model"][key]) for key, value in usual["model"].items()
    )
    assert not same


WRONG = {
    "which task": ((), "which task.*--list"),
    "task": (("addding", "--cell", "gru"), "no task is called 'addding'.*did you mean adding"),
    "no cell": (("adding",), "which cell.*cellfuse train adding --cell gru"),
    "hidden": (("adding", "--cell", "gru", "--hidden-size", "0"), "--hidden-size 0.*from 1 on"),
    "lr": (("adding", "--cell", "gru", "--lr", "0"), "--lr 0.0: write a number above 0"),
    "lr nan": (("adding", "--cell", "gru", "--lr", "nan"), "--lr nan: write a number above 0"),
    "clip": (("adding", "--cell", "gru", "--clip", "-1"), "--clip -1.0: write a number from 0"),
    "decay": (("adding", "--cell", "gru", "--weight-decay", "nan"), "--weight-decay nan"),
    "epochs": (("adding", "--cell", "gru", "--epochs", "0"), "--epochs 0.*from 1 on"),
    "seed": (("adding", "--cell", "gru", "--seed", "-1"), "--seed -1.*from 0 on"),
    "dropout": (("adding", "--cell", "gru", "--dropout", "1"), "--dropout 1.0: write a share"),
    "dropout alone": (
        ("adding", "--cell", "gru", "--dropout", "0.2"),
        "--dropout 0.2 acts between stacked layers and there is one. Add --num-layers 2",
    ),
    "projection": (
        ("adding", "--cell", "lstm", "--proj-size", "64"),
        "--proj-size 64 must be smaller than --hidden-size 64",
    ),
    "reads the answer": (
        ("char-kjv", "--cell", "gru", "--bidirectional"),
        "in char-kjv the reverse direction would read the answer",
    ),
    "batch": (
        ("adding", "--cell", "gru", "--batch-size", "2", "--devices", "3"),
        "--batch-size 2 is the size over all devices.*Write --batch-size 3",
    ),
    "option": (
        ("adding", "--cell", "gru", "--set", "delay=3"),
        "--set delay=3: options of adding: length=100",
    ),
    "option value": (
        ("adding", "--cell", "gru", "--set", "length=1"),
        "--set length=1: length is a whole number from 2 on",
    ),
    "no options": (
        ("japanese-vowels", "--cell", "gru", "--set", "length=1"),
        "options of japanese-vowels: none",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_option_is_told_before_anything_starts(train, what):
    words, told = WRONG[what]
    with pytest.raises(TaskError, match=told):
        train(*words)
    assert list(train.folder.iterdir()) == []


def test_an_unknown_cell_names_the_nearest(train):
    with pytest.raises(CellError, match=r"no cell is called 'gruu'.*gru"):
        train("adding", "--cell", "gruu")


def test_a_projection_needs_a_cell_that_has_one(train):
    told = r"--proj-size 4: gru has no projected state\. Cells that have one: projected_lstm"
    with pytest.raises(TaskError, match=told):
        train.tiny("adding", "--proj-size", "4")
    with pytest.raises(TaskError, match=r"projected_lstm projects its state.*Write --proj-size P"):
        train.tiny("adding", cell="projected_lstm")
    assert list(train.folder.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="the error is about a missing device")
def test_a_missing_cuda_device_is_told(train):
    with pytest.raises(TaskError, match="--accelerator cuda: torch finds no CUDA device"):
        train.tiny("adding", "--accelerator", "cuda")


@pytest.mark.parametrize("words", [("--epochs", "2", "--steps", "3"), ("--precision", "8")])
def test_argparse_refuses(words, capsys):
    with pytest.raises(SystemExit) as status:
        parsed("adding", "--cell", "gru", *words)
    assert status.value.code == 2
    assert words[-2] in capsys.readouterr().err


def test_a_run_is_not_overwritten(train):
    words = ("adding", "--set", "length=4", "--steps", "1")
    assert train.tiny(*words) == 0
    before = (train.folder / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(TaskError, match=r"holds a run already. Add --resume.*another --out"):
        train.tiny(*words)
    assert (train.folder / "run" / "checkpoint.pt").read_bytes() == before


def test_a_resumed_run_has_the_settings_it_was_started_with(train):
    words = ("adding", "--set", "length=4", "--steps", "1")
    assert train.tiny(*words) == 0
    with pytest.raises(TaskError, match=r"made with --lr 0.003, this run asks for --lr 0.01"):
        train.tiny(*words, "--resume", "--lr", "0.01")
    with pytest.raises(TaskError, match=r"made with --cell gru, this run asks for --cell lstm"):
        train.tiny(*words, "--resume", cell="lstm")


def test_an_out_that_is_a_file_is_told(train):
    (train.folder / "run").write_text("taken")
    with pytest.raises(TaskError, match=r"--out .*run cannot be made a folder"):
        train.tiny("adding")


def test_results_line(train):
    assert train.tiny("japanese-vowels", "--steps", "3", "--seed", "4", "--lr", "0.01") == 0
    (line,) = train.results()
    assert line["task"] == "japanese-vowels"
    assert line["cell"] == "gru"
    assert line["parameters"] == 3 * 8 * (12 + 8 + 2) + 9 * 9
    assert line["seed"] == 4
    assert line["lr"] == 0.01
    assert line["steps"] == 3
    assert line["metric"] == "accuracy"
    assert line["better"] == "higher"
    for part in ("test", "valid"):
        assert line[part].keys() == {"loss", "accuracy"}
        assert 0 <= line[part]["accuracy"] <= 1
    assert line["test"]["accuracy"] * 370 == pytest.approx(round(line["test"]["accuracy"] * 370))
    assert line["seconds"] > 0
    assert [figure["value"] for figure in line["figures"]] == [0.941, 0.962]
    assert all(figure["source"] for figure in line["figures"])
    assert line["versions"]["torch"] == torch.__version__
    assert line["versions"].keys() == {"cellfuse", "python", "torch", "lightning-fabric", "numpy"}
    assert line["commit"] is None or re.fullmatch("[0-9a-f]{12,}(-dirty)?", line["commit"])
    names = {entry.name for entry in fields(Settings)} - FREE
    assert names <= line.keys()


def test_json_is_one_line_on_standard_output(train, capfd):
    words = ("--cell", "gru", "--hidden-size", "4", "--set", "length=4", "--steps", "1", "--json")
    assert train("adding", *words) == 0
    told = capfd.readouterr()
    assert json.loads(told.out) == train.results()[0]
    assert told.out.count("\n") == 1
    assert "epoch 0.01" in told.err


def test_quiet_says_nothing(train, capfd):
    assert train.tiny("adding", "--set", "length=4", "--steps", "1") == 0
    told = capfd.readouterr()
    assert told.out == told.err == ""


def test_a_line_for_every_epoch_and_a_summary(train, capfd):
    words = ("--cell", "gru", "--hidden-size", "4", "--epochs", "2", "--lr", "0.01")
    assert train("japanese-vowels", *words) == 0
    told = capfd.readouterr().out
    assert len(re.findall(r"^epoch [12] +step (?:14|28) ", told, re.M)) == 2
    value = train.results()[0]["test"]["accuracy"]
    assert f"{value:.4f}  gru, " in told
    assert "0.9410  passing-through regions (Kudo, Toyama, Shimbo 1999" in told
    assert str(train.folder / "run" / "curve.png") in told


def test_list_shows_every_task(capsys):
    assert command.run(parsed("--list")) == 0
    told = capsys.readouterr().out
    for name, task in TASKS.items():
        assert name in told
        assert task.metrics[0].name in " ".join(told.split())


@pytest.mark.parametrize("task", ["japanese-vowels", "adding"])
def test_a_picture_is_drawn(train, task):
    assert train.tiny(task, "--steps", "2") == 0
    raw = (train.folder / "run" / "curve.png").read_bytes()
    assert raw.startswith(b"\x89PNG\r\n\x1a\n")
    assert raw.rstrip().endswith(b"IEND\xaeB`\x82")
    width, height = (int.from_bytes(raw[i : i + 4], "big") for i in (16, 20))
    assert width > 800
    assert height > (800 if task == "japanese-vowels" else 500)


def test_the_picture_shows_what_it_should(train, monkeypatch):
    drawn = []
    monkeypatch.setattr(curve.Figure, "savefig", lambda self, *a, **k: drawn.append(self))
    assert train.tiny("japanese-vowels", "--epochs", "2") == 0
    (figure,) = drawn
    (line,), history = train.results(), train.checkpoint()["position"]["history"]
    above, below = figure.axes
    assert above.get_title(loc="left") == "japanese-vowels with gru"
    assert "nats per utterance" in above.get_ylabel()
    assert "accuracy" in below.get_ylabel()
    assert below.get_xlabel() == "epoch"
    curves = {entry.get_label(): list(entry.get_ydata()) for entry in above.get_lines()}
    assert curves["train (mean of the epoch)"] == [row["train_loss"] for row in history]
    assert curves["validation"] == [row["valid_loss"] for row in history]
    curves = {entry.get_label(): list(entry.get_ydata()) for entry in below.get_lines()}
    assert curves["validation"] == [row["valid_accuracy"] for row in history]
    assert curves["passing-through regions 0.941"] == [0.941, 0.941]
    assert curves[f"test {line['test']['accuracy']:.4g}"] == [line["test"]["accuracy"]]


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN_CELL)
    return path


def test_a_cell_of_one_s_own_trains_and_resumes(train, own):
    words = ("japanese-vowels", "--epochs", "1")
    assert train.tiny(*words, cell=f"{own}:mine") == 0
    assert train.tiny("japanese-vowels", "--epochs", "1", cell="mgu", out="published") == 0
    (line,), (published,) = train.results(), train.results("published")
    assert line["cell"] == f"{own}:mine"
    assert line["test"] == pytest.approx(published["test"])
    assert train.tiny("japanese-vowels", "--epochs", "2", "--resume", cell=f"{own}:mine") == 0
    own.write_text(OWN_CELL.replace("(1 - f) * h + f * n", "f * h + (1 - f) * n"))
    with pytest.raises(TaskError, match="another equation of this cell"):
        train.tiny("japanese-vowels", "--epochs", "3", "--resume", cell=f"{own}:mine")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("none.py:mine", "there is no file none.py. Write file.py:name"),
        ("{own}", "names no cell. Cells in it: mine. Write {own}:mine"),
        ("{own}:", "names no cell. Cells in it: mine"),
        ("{own}:other", "other is not in the file. Cells in it: mine"),
        ("{own}:plain", "plain is not a cell. Cells in it: mine"),
    ],
)
def test_a_file_without_that_cell_is_told(own, text, told):
    with pytest.raises(CellError, match=re.escape(told.format(own=own))):
        cells.find(text.format(own=own))


def test_a_file_without_any_cell_is_told(tmp_path):
    (tmp_path / "none.py").write_text("x = 1\n")
    with pytest.raises(CellError, match=r"It defines no cell: decorate the function"):
        cells.find(f"{tmp_path / 'none.py'}:x")


def test_an_error_in_the_user_s_file_is_the_user_s(tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        cells.find(f"{tmp_path / 'bad.py'}:x")


def test_missing_extras_are_named(monkeypatch):
    monkeypatch.setattr(command, "EXTRAS", ("rich", "no_such_package"))
    with pytest.raises(TaskError, match=r"needs no_such_package. Write: pip install 'cellfuse"):
        command.run(parsed("--list"))


def test_options_are_declared_without_heavy_imports():
    code = "import sys; before = set(sys.modules); from cellfuse.train import command; "
    code += "import argparse; command.add_arguments(argparse.ArgumentParser()); "
    code += "assert not {'rich', 'matplotlib', 'lightning_fabric'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
