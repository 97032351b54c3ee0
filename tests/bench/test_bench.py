import json

import pytest
import torch

import cellfuse as cf
from cellfuse.bench import measure
from cellfuse.bench.cases import CASES, FAMILIES, OPTIONS, BenchCase, select
from cellfuse.bench.command import line, row
from cellfuse.bench.contestants import TORCH, Loop, contestants
from cellfuse.bench.roof import measure_roof
from cellfuse.cli import main

SMALL = [BenchCase(name, 3, 2, 8) for name in cf.cells.CELLS]
SPECIAL = [
    *(BenchCase(n, 5, 3, 8, f) for n in TORCH for f in FAMILIES if f not in ("", "custom", "linear")),
    *(BenchCase(name, 5, 3, 8, "custom") for name in ("peephole_lstm", "echo_lstm")),
    BenchCase("slstm", 5, 3, 8, "accuracy"),
    BenchCase("minlstm", 5, 3, 8, "linear"),
]
# Whom each family is compared with, besides the loop.
BESIDE = {
    "ragged": {"torch.nn"},
    "directions": {"torch.nn"},
    "reset": {"torch.nn", "our layer without resets"},
    "zoneout": {"torch.nn cell", "our layer without zoneout"},
    "stream": {"torch.nn", "torch.nn cell", "our stepper"},
    "custom": {"our LSTM"},
    "linear": {"our input product"},
    "bf16": {"torch.nn", "our float32"},
    "memory": {"torch.nn", "our recompute"},
    "accuracy": {"torch.nn"},
}


@pytest.fixture
def small_cases(monkeypatch):
    monkeypatch.setattr("cellfuse.bench.cases.CASES", {case.name: case for case in SMALL})
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 0)


@pytest.mark.parametrize("kind", measure.PASSES)
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.cell)
def test_every_cell_is_checked_and_timed(case, kind, monkeypatch):
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 0)
    monkeypatch.setattr("cellfuse.bench.contestants.OPTIONS", OPTIONS | {"projected_lstm": {"proj_size": 3}})
    outcome = measure.measure(case, kind, backend="auto", rounds=3)
    assert not outcome.wrong
    assert {t.contestant for t in outcome.timings} >= {"cellfuse", "loop"}
    assert all(0 < t.low <= t.median <= t.high for t in outcome.timings)
    assert outcome.ratio("loop") > 0
    assert (outcome.ratio("torch.nn") is not None) == (case.cell in ("lstm", "gru", "rnn"))


@pytest.mark.parametrize(("case", "kind"), [(c, k) for c in SPECIAL for k in c.passes], ids=str)
def test_every_family_is_checked_and_measured(case, kind, monkeypatch):
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 0)
    outcome = measure.measure(case, kind, backend="auto", rounds=2)
    assert not outcome.wrong
    others = BESIDE[case.family] - (set() if case.cell in TORCH else {"torch.nn"})
    assert all(outcome.ratio(other) > 0 for other in others)
    assert line(outcome)["ratios"].keys() >= others
    assert case.name in row(outcome)


def test_every_family_has_cases():
    assert {case.family for case in CASES.values()} == FAMILIES.keys()
    assert BESIDE.keys() | {""} == FAMILIES.keys()


def test_an_invented_cell_has_the_products_of_the_lstm():
    from cellfuse.bench.echo_lstm import echo_lstm

    for part in ("input_gates", "recurrent_gates"):
        assert len(getattr(echo_lstm, part)) == len(getattr(cf.cells.lstm, part))


def test_peak_bytes_are_those_of_the_largest_moment():
    def run():
        for _ in range(3):
            one = torch.empty(1000, dtype=torch.float32)
            two = torch.empty(500, dtype=torch.float32)
            del one, two

    assert 6000 <= measure._peak_bytes(run) < 6500


def test_memory_of_recompute_is_less(monkeypatch):
    outcome = measure.measure(BenchCase("lstm", 200, 32, 32, "memory"), "training", backend="cpu", rounds=2)
    assert outcome.ratio("our recompute") < 0.8


def test_accuracy_is_the_ratio_of_the_worst_result():
    case = BenchCase("gru", 5, 3, 8, "accuracy")
    ours = measure.Timing("cellfuse", 0, 0, 0, {"output": 4e-6, "state 0": 1e-6})
    theirs = measure.Timing("torch.nn", 0, 0, 0, {"output": 1e-6, "state 0": 2e-6})
    assert measure.Outcome(case, "training", "cpu", (ours, theirs)).ratio("torch.nn") == 0.25


def test_the_roof_is_above_what_torch_reaches():
    roof = measure_roof(1)
    assert 1 < roof["sgemm"] < roof["fma"] * 1.2
    assert roof["bf16 gemm"] > 1
    rates = list(roof["read"].values())
    assert list(roof["read"])[-1] == "DRAM"
    assert all(rate > 0.5 for rate in rates)
    assert rates[0] > rates[-1]


def test_ragged_lengths_fall_from_T_to_a_quarter():
    assert BenchCase("gru", 100, 4, 8, "ragged").lengths == [100, 75, 50, 25]
    assert BenchCase("gru", 100, 1, 8, "ragged").lengths == [100]


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_the_loop_is_torchs_layer(name):
    case = BenchCase(name, 4, 3, 5)
    found = contestants(case, "eager", torch.float64)
    assert isinstance(found["loop"], Loop)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    for kind in measure.PASSES:
        ours = measure.results(case, found["loop"], kind, x)
        theirs = measure.results(case, found["torch.nn"], kind, x)
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key])


@pytest.mark.parametrize("what", ["weight_hh", "output"])
def test_a_wrong_contestant_is_caught_and_not_timed(what, monkeypatch):
    right = measure.results

    def results(case, module, kind, input):
        found = right(case, module, kind, input)
        if isinstance(module, cf.Layer):
            key = "output" if what == "output" else "gradient of weight_hh"
            found[key] = found[key] * 1.0001
        return found

    monkeypatch.setattr(measure, "results", results)
    outcome = measure.measure(BenchCase("gru", 3, 2, 8), "training", backend="aten", rounds=1)
    assert what in outcome.wrong
    assert outcome.timings == ()


def test_a_result_that_is_not_a_number_is_wrong(monkeypatch):
    case = BenchCase("gru", 3, 2, 8)
    modules = contestants(case, "aten", torch.float32)
    with torch.no_grad():
        modules["cellfuse"].bias_hh_l0.fill_(float("nan"))
    weights = contestants(case, "aten", torch.float32)["cellfuse"].state_dict()
    _, wrong = measure.check(case, "inference", modules, torch.randn(3, 2, 8), weights)
    assert "nan" in wrong


def test_names_are_unique_and_select_by_pattern():
    assert len([name for name in CASES if name.split("/")[0] in TORCH]) == 24 + 3
    assert {case.cell for case in select(["gru/*"])} == {"gru"}
    assert len(select(["[lgr]*/T*-B32-H128"])) == 3
    assert {case.family for case in select(["stream/*"])} == {"stream"}
    assert select(["*"]) == list(CASES.values())
    with pytest.raises(cf.errors.OptionError, match="no case matches 'gruu"):
        select(["gruu/*"])


def test_command_prints_a_table_and_writes_lines(small_cases, tmp_path, capsys):
    file = tmp_path / "deep" / "results.jsonl"
    assert main(["bench", "gru/*", "mgu/*", "--rounds", "2", "--json", str(file)]) == 0
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    assert [(row["case"], row["pass"]) for row in lines] == [
        (f"{cell}/T3-B2-H8", kind) for cell in ("gru", "mgu") for kind in measure.PASSES
    ]
    assert lines[0].keys() >= {"commit", "processor", "threads", "torch", "ratios", "times", "backend"}
    assert lines[0]["roof"].keys() == {"fma", "read", "sgemm", "bf16 gemm"}
    printed = capsys.readouterr().out
    assert "geometric mean" in printed
    assert "multiply-adds" in printed
    assert "gru/T3-B2-H8" in printed
    assert main(["bench", "--list"]) == 0
    assert "gru/T3-B2-H8" in capsys.readouterr().out


def test_a_wrong_case_gives_status_1(small_cases, monkeypatch, capsys):
    monkeypatch.setattr(measure, "check", lambda *_: ({}, "output: error 1"))
    assert main(["bench", "gru/*", "--rounds", "2"]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--backend", "cuda9"], "backend='cuda9'"),
        (["nothing"], "no case matches 'nothing'"),
        (["--json", "/proc/x/y"], "--json /proc/x/y cannot"),
    ],
)
def test_wrong_use_gives_status_2(arguments, text, capsys):
    assert main(["bench", *arguments]) == 2
    assert text in capsys.readouterr().err
