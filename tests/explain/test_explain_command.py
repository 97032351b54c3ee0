"""`cellfuse explain`: its options, cells from files, stages, JSON, errors, terminals without Unicode."""

import io
import json
import sys

import pytest

from cellfuse.cli import main

OWN_CELL = '''
import torch
import cellfuse as cf

@cf.cell(gates="fn", states="h", source="my notes")
def mine(gate, h):
    """A cell of my own. f: forget, n: something new."""
    f = torch.sigmoid(gate.f)
    n = torch.tanh(gate.n.x + gate.n.of(f * h))
    return (1 - f) * h + f * n
'''


@pytest.fixture
def told(capsys):
    def run(*words):
        assert main(["explain", *words]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN_CELL)
    return file


def test_options_reach_the_layer(told):
    words = ("lstm", "--input-size", "7", "--hidden-size", "6", "--num-layers", "3", "--proj-size", "2")
    text = told(*words, "--no-bias", "--batch-first", "--dropout", "0.2", "--lang", "en")
    head = "LSTM(7, 6, proj_size=2, num_layers=3, bias=False, batch_first=True, dropout=0.2)"
    assert text.startswith(head)
    assert "FALSE" not in text.upper().replace("BATCH_FIRST=FALSE", "").replace("BIAS=FALSE", "")
    assert "T=4 time steps, one sequence" in told("gru", "--unbatched", "--seq-len", "4", "--lang", "en")
    assert "N=2 heads" in told("slstm", "--num-heads", "2", "--lang", "en")


def test_lengths_make_packed_input(told):
    text = " ".join(told("gru", "--lengths", "2", "5", "3", "--lang", "en").split())
    assert "packed sequences of [2, 5, 3] time steps" in text
    assert "below was run on random numbers" in text


def test_chinese(told):
    text = told("gru", "--lang", "zh")
    assert "重置门" in text
    assert "与出处的不同：r 乘的是 R_n h + d_n 而不是 h" in text


def test_json(told):
    facts = json.loads(told("lstm", "--num-layers", "2", "--bidirectional", "--json"))
    assert facts["sizes"] == {"T": 5, "B": 3, "S": 15, "I": 10, "H": 20, "P": 0, "N": 1, "L": 2, "D": 2}
    assert all(claim["holds"] is True for claim in facts["claims"])
    counts = {count["key"]: count["value"] for count in facts["counts"]}
    assert counts["count parameters"] == 15040
    tensor = next(t for t in facts["tensors"] if t["name"] == "weight_ih_l1_reverse")
    assert (tensor["shape"], tensor["rows"]) == ([80, 40], ["i", "f", "g", "o"])


def test_a_cell_of_one_s_own(told, own):
    text = told(f"{own}:mine", "--hidden-size", "4", "--lang", "en")
    assert text.startswith("mine.layer(10, 4)")
    assert "n = tanh(W_n x + b_n + R_n (f ⊙ h) + d_n)   something new" in text
    assert "Source: my notes" in text
    assert "something new" in told(f"{own}:mine", "--lang", "zh")
    assert "tanh" in told(f"{own}:mine", "--show", "graph")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lstn"], "no cell is called 'lstn'; did you mean lstm"),
        (["none.py:mine"], "there is no file none.py. Write file.py:name"),
        (["{own}:other"], "other is not in the file. Cells in it: mine. Write {own}:mine"),
        (["gru", "--num-layers", "0"], "num_layers"),
        (["gru", "--seq-len", "0"], "seq_len must be a whole number of at least 1, got 0"),
        (["gru", "--proj-size", "3"], "proj_size"),
        (["gru", "--picture", "stack"], "--picture and --out belong together"),
        (["gru", "--picture", "ragged", "--out", "x.svg"], "pack_padded_sequence"),
        (["gru", "--picture", "cell", "--out", "x.gif"], "ends with .svg or .png"),
        (["gru", "--lengths", "3", "0"], "--lengths [3, 0]: needs lengths of at least 1"),
    ],
)
def test_mistakes_are_told(capsys, own, words, said):
    assert main(["explain", *(word.format(own=own) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cellfuse explain: ")
    assert said.format(own=own) in error


def test_pictures_are_written(told, own, tmp_path):
    for name in ("cell", "layer", "stack", "shapes", "gates"):
        file = tmp_path / f"{name}.svg"
        assert (
            told(f"{own}:mine", "--picture", name, "--out", str(file), "--lang", "zh").strip()
            == f"wrote {file}"
        )
        assert file.read_text(encoding="utf-8").startswith("<svg")
    file = tmp_path / "ragged.svg"
    told("gru", "--lengths", "2", "5", "--picture", "ragged", "--out", str(file))
    assert "b=1" in file.read_text(encoding="utf-8")


def test_stages_are_shown(told):
    assert told("gru", "--show", "graph").startswith("gru:")
    assert told("gru", "--show", "program").startswith("program gru")
    assert "@run_backward" in told("gru", "--hidden-size", "8", "--show", "llvm")
    assert "d(new h)" in told("gru", "--show", "backward")
    text = told("gru", "--show", "torch")
    assert text.startswith("def step(")
    compile(text, "gru", "exec")
    assert "bias" in told("lstm", "--show", "torch")
    assert "f.b" not in told("lstm", "--show", "graph", "--no-bias")


@pytest.mark.parametrize(("encoding", "lang"), [("ascii", "en"), ("latin-1", "en"), ("gbk", "zh")])
def test_a_terminal_without_unicode_gets_plain_signs(told, monkeypatch, encoding, lang):
    for cell in ("lstm", "slstm", "layer_norm_lstm", "indrnn"):
        words = (cell, "--num-layers", "5", "--bidirectional", "--lang", lang)
        whole, raw = told(*words), io.BytesIO()
        terminal = io.TextIOWrapper(raw, encoding=encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            assert main(["explain", *words]) == 0
        terminal.flush()
        text = raw.getvalue().decode(encoding)
        assert text.count("?") == whole.count("?")
        assert len(text.splitlines()) == len(whole.splitlines())
        assert ("sigmoid(" in text) == (encoding != "gbk" and "σ(" in whole)
