"""Training learns, stops when it should, and goes on exactly where it was."""

import json
import math
import os
import signal

import pytest
import torch

from cellfuse.errors import TaskError
from cellfuse.train import launch
from cellfuse.train.loop import Loop
from cellfuse.train.stop import Stop


def assert_same_run(one, other):
    """Equal weights, optimiser, history and best weights, to the last bit; seconds may differ."""
    assert one["model"].keys() == other["model"].keys()
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    for name, value in one["position"]["best_weights"].items():
        assert torch.equal(value, other["position"]["best_weights"][name]), name
    for name in ("epoch", "into_epoch", "step", "loss_sum", "loss_count", "best"):
        assert one["position"][name] == other["position"][name], name
    histories = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in history]
        for history in (one["position"]["history"], other["position"]["history"])
    ]
    assert histories[0] == histories[1]
    for number, state in one["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, other["optimizer"]["state"][number][name])


def history(train, out="run"):
    return train.checkpoint(out)["position"]["history"]


def test_loss_falls_on_real_data(train):
    assert train.tiny("japanese-vowels", "--epochs", "4", "--lr", "0.01") == 0
    losses = [row["train_loss"] for row in history(train)]
    assert losses[0] > losses[1] > losses[2] > losses[3]
    assert losses[0] < math.log(9) * 1.2
    assert losses[3] < losses[0] / 2


def test_loss_falls_on_text(train):
    assert train.tiny("char-kjv", "--steps", "30", "--set", "window=20", "--lr", "0.02") == 0
    (row,) = history(train)
    assert row["valid_loss"] < math.log(63) - 0.8
    assert row["valid_bits per character"] == pytest.approx(row["valid_loss"] / math.log(2))


def test_the_state_goes_on_from_window_to_window(train):
    """So the size of the windows does not matter to weights that do not move."""
    losses = []
    for window in ("3", "40"):
        words = ("--steps", "1", "--lr", "1e-30", "--precision", "64-true")
        assert train.tiny("char-kjv", *words, "--set", f"window={window}", out=window) == 0
        losses.append(history(train, window)[0]["valid_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("japanese-vowels", ("--num-layers", "2", "--dropout", "0.3")),
        ("adding", ("--set", "length=10", "--weight-decay", "0.1", "--batch-size", "1000")),
    ],
)
def test_two_and_two_epochs_are_four(train, task, options):
    assert train.tiny(task, "--epochs", "4", *options, out="four") == 0
    assert train.tiny(task, "--epochs", "2", *options, out="two") == 0
    assert train.checkpoint("two")["position"]["epoch"] == 2
    assert train.tiny(task, "--epochs", "4", *options, "--resume", out="two") == 0
    assert_same_run(train.checkpoint("four"), train.checkpoint("two"))
    lines = [train.results(out)[-1] for out in ("four", "two")]
    assert lines[0]["test"] == lines[1]["test"]


@pytest.mark.parametrize("task", ["japanese-vowels", "char-kjv"])
def test_a_run_stopped_inside_an_epoch_goes_on_exactly(train, task, monkeypatch):
    """Also for text, where the layer's state goes on from window to window."""
    words = (task, "--steps", "7")
    assert train.tiny(*words, out="whole") == 0
    stop_after(monkeypatch, 3, signal.SIGTERM)
    assert train.tiny(*words, out="parts") == 143
    assert train.checkpoint("parts")["position"]["step"] == 3
    monkeypatch.undo()
    assert train.tiny(*words, "--resume", out="parts") == 0
    assert_same_run(train.checkpoint("whole"), train.checkpoint("parts"))


def stop_after(monkeypatch, step, number):
    """Send this process the signal during the given step."""
    agree = Loop._agree

    def signal_and_agree(loop, loss, noted):
        if loop.position.step == step - 1:
            os.kill(os.getpid(), number)
        return agree(loop, loss, loop.stop.signal)

    monkeypatch.setattr(Loop, "_agree", signal_and_agree)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(train, monkeypatch, capfd, number, status):
    signal.signal(number, signal.SIG_DFL)  # in the background shells turn Ctrl-C off
    stop_after(monkeypatch, 2, number)
    words = ("--epochs", "3", "--seed", "5", "--set", "length=10", "--batch-size", "2500")
    assert train.tiny("adding", *words) == status
    assert train.checkpoint()["position"]["step"] == 2
    told = capfd.readouterr().err
    assert f"{signal.Signals(number).name}" in told
    assert "after step 2" in told
    assert "cellfuse train adding --cell gru --hidden-size 8" in told
    assert "--epochs 3" in told
    assert "--set length=10 --seed 5 --resume" in told
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_at_the_end_of_an_epoch_keeps_its_validation(train, monkeypatch):
    words = ("--epochs", "2", "--set", "length=10", "--batch-size", "2500")
    assert train.tiny("adding", *words, out="whole") == 0
    stop_after(monkeypatch, 2, signal.SIGTERM)
    assert train.tiny("adding", *words, out="parts") == 143
    assert len(history(train, "parts")) == 1
    monkeypatch.undo()
    assert train.tiny("adding", *words, "--resume", out="parts") == 0
    assert_same_run(train.checkpoint("whole"), train.checkpoint("parts"))


def test_checkpoint_every_writes_inside_an_epoch(train, monkeypatch):
    seen = []
    save = launch._save

    def noted(loop, *rest):
        seen.append(loop.position.step)
        save(loop, *rest)

    monkeypatch.setattr(launch, "_save", noted)
    words = ("--epochs", "1", "--set", "length=10", "--batch-size", "1000")
    assert train.tiny("adding", *words, "--checkpoint-every", "2") == 0
    assert seen == [2, 4, 5]


def test_patience_ends_a_run_that_does_not_get_better(train):
    # A step far too large: validation gets worse after the start.
    words = ("--lr", "0.5", "--epochs", "40", "--patience", "3", "--set", "length=10")
    assert train.tiny("adding", *words, "--batch-size", "1000") == 0
    losses = [row["valid_loss"] for row in history(train)]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 3
    assert len(losses) < 40
    assert train.results()[0]["best_epoch"] == best + 1


def test_the_weights_with_the_lowest_validation_loss_are_tested(train):
    words = ("--lr", "0.5", "--set", "length=10", "--batch-size", "1000")
    assert train.tiny("adding", *words, "--epochs", "8", out="long") == 0
    losses = [row["valid_loss"] for row in history(train, "long")]
    best = losses.index(min(losses)) + 1
    assert best < 8
    assert train.tiny("adding", *words, "--epochs", str(best), out="short") == 0
    assert train.results("long")[0]["test"] == train.results("short")[0]["test"]
    assert train.results("long")[0]["valid"]["loss"] == min(losses)


def test_steps_end_a_run_inside_an_epoch(train):
    assert train.tiny("japanese-vowels", "--steps", "5") == 0
    (line,) = train.results()
    assert line["steps"] == 5
    assert line["epochs"] == pytest.approx(5 / 14)


def test_a_finished_run_resumed_only_tests_again(train):
    words = ("japanese-vowels", "--epochs", "1")
    assert train.tiny(*words) == 0
    assert train.tiny(*words, "--resume") == 0
    first, again = train.results()
    assert first["test"] == again["test"]
    assert first["steps"] == again["steps"]


@pytest.mark.parametrize("clip", ["0", "1"])
def test_a_loss_that_is_no_number_ends_the_run(train, capsys, monkeypatch, clip):
    from cellfuse.train.tasks import adding

    draw = adding.draw

    def spoiled(generator, count, length):
        input, target = draw(generator, count, length)
        return input, target.fill_(math.nan) if count == 1000 else target

    monkeypatch.setattr(adding, "draw", spoiled)
    words = ("--set", "length=10", "--batch-size", "1000", "--epochs", "1", "--clip", clip)
    assert train.tiny("adding", *words) == 1
    told = capsys.readouterr().err
    assert "the loss is nan after step 0 (epoch 1)" in told
    assert "--lr 0.00075 (it was 0.003)" in told
    assert not (train.folder / "run" / "results.jsonl").exists()
    assert not (train.folder / "run" / "checkpoint.pt").exists()


def test_the_gradient_is_that_of_the_mean_over_terms(train, monkeypatch):
    """One step of plain torch on the same batch gives the same weights."""
    from cellfuse.train.task import Part
    from cellfuse.train.tasks import find

    started = {}
    run = Loop.run

    def remember(loop):
        started["weights"] = {k: v.clone() for k, v in loop.model.state_dict().items()}
        started["loop"] = loop
        return run(loop)

    monkeypatch.setattr(Loop, "run", remember)
    assert train.tiny("japanese-vowels", "--steps", "1", "--clip", "0.05", "--lr", "0.01") == 0
    loop = started["loop"]
    task = find("japanese-vowels")
    batch = next(task.splits({}, 0).train.batches(16, Part(), epoch=0))
    layer = torch.nn.GRU(12, 8)
    readout = torch.nn.Linear(8, 9)
    weights = started["weights"]
    layer.load_state_dict({k[6:]: v for k, v in weights.items() if k.startswith("layer.")})
    readout.load_state_dict({k[8:]: v for k, v in weights.items() if k.startswith("readout.")})
    _, last = layer(batch.input)
    loss = torch.nn.functional.cross_entropy(readout(last[0]), batch.target)
    loss.backward()
    parameters = [*layer.parameters(), *readout.parameters()]
    norm = torch.nn.utils.clip_grad_norm_(parameters, 0.05)
    assert norm > 0.05
    torch.optim.AdamW(parameters, lr=0.01, weight_decay=0).step()
    assert loop.position.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    final = train.checkpoint()["model"]
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(final[f"layer.{name}"], value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(final["readout.weight"], readout.weight.data, atol=1e-5, rtol=1e-5)


def test_precisions_reach_the_model(train):
    runs = {}
    for precision in ("32-true", "64-true", "bf16-mixed"):
        assert train.tiny("char-kjv", "--steps", "2", "--precision", precision, out=precision) == 0
        runs[precision] = train.checkpoint(precision)
    assert runs["64-true"]["model"]["readout.weight"].dtype == torch.float64
    assert runs["bf16-mixed"]["model"]["readout.weight"].dtype == torch.float32
    losses = {name: run["position"]["history"][0]["valid_loss"] for name, run in runs.items()}
    assert losses["32-true"] == pytest.approx(losses["64-true"], rel=1e-5)
    assert losses["32-true"] == pytest.approx(losses["bf16-mixed"], rel=1e-2)
    assert len(set(losses.values())) == 3
    assert torch.get_default_dtype() == torch.float32


def test_stop_gives_the_handlers_back_after_an_error():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = Stop()

    def fail():
        with stop:
            os.kill(os.getpid(), signal.SIGINT)
            raise TaskError("as any")

    with pytest.raises(TaskError):
        fail()
    assert stop.signal == signal.SIGINT
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_results_line_can_be_read_back(train):
    assert train.tiny("adding", "--steps", "1", "--set", "length=4") == 0
    text = (train.folder / "run" / "results.jsonl").read_text(encoding="utf-8")
    assert text.count("\n") == 1
    assert json.loads(text)["options"] == {"length": 4}
