"""Two processes train the same model as one: same batches, same gradient, same results."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from cellfuse.errors import TaskError
from cellfuse.train import launch

pytestmark = pytest.mark.dist
SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(launch.__file__)))


@pytest.fixture(autouse=True)
def children_find_the_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", SOURCE)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_two_processes_train_the_same_model_as_one(train):
    """Three streams of text: two for one process, one for the other."""
    for devices in ("1", "2"):
        words = ("--batch-size", "3", "--checkpoint-every", "5", "--steps", "12")
        precise = ("--precision", "64-true", "--devices", devices)
        assert train.tiny("char-kjv", *words, *precise, out=devices) == 0
    one, two = train.checkpoint("1"), train.checkpoint("2")
    assert len(one["processes"]) == 1
    assert len(two["processes"]) == 2
    assert_same_history(one, two)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=0, atol=1e-9)
    first, second = train.results("1")[0], train.results("2")[0]
    assert (first["devices"], second["devices"]) == (1, 2)
    assert second["test"] == pytest.approx(first["test"], rel=1e-9)


def assert_same_history(one, two):
    histories = one["position"]["history"], two["position"]["history"]
    assert len(histories[0]) == len(histories[1])
    for ours, theirs in zip(*histories, strict=True):
        for name in ours.keys() - {"seconds"}:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-9), name


def test_a_run_of_one_process_goes_on_the_same_with_two(train):
    """Of a batch of 43 one process has 22; the last batch holds one, and the other process none."""
    words = ("japanese-vowels", "--precision", "64-true", "--batch-size", "43", "--epochs")
    assert train.tiny(*words, "2", out="one") == 0
    assert train.tiny(*words, "1", out="both") == 0
    assert train.tiny(*words, "2", "--devices", "2", "--resume", out="both") == 0
    assert_same_history(train.checkpoint("one"), train.checkpoint("both"))
    (first,), (_, second) = train.results("one"), train.results("both")
    assert second["test"] == pytest.approx(first["test"], rel=1e-9)


def test_an_error_in_the_processes_is_one_error_here(train, capfd):
    words = ("--lr", "1e30", "--steps", "5", "--devices", "2", "--set", "length=4")
    assert train.tiny("adding", *words) == 1
    assert capfd.readouterr().err.count("so training cannot go on") == 1


def test_dropout_s_random_numbers_need_as_many_processes(train):
    words = ("--num-layers", "2", "--dropout", "0.1", "--epochs")
    assert train.tiny("japanese-vowels", *words, "1") == 0
    with pytest.raises(TaskError, match=r"of 1 process\(es\).*this run has 2. Write --devices 1"):
        train.tiny("japanese-vowels", *words, "2", "--devices", "2", "--resume")


def test_sigterm_to_the_command_reaches_both_processes(tmp_path):
    out = tmp_path / "run"
    words = ["train", "char-kjv", "--cell", "gru", "--hidden-size", "8", "--devices", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cellfuse", *words, "--checkpoint-every", "1", "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "checkpoint.pt").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, told
    assert told.count("Stopped by SIGTERM") == 1
    found = torch.load(out / "checkpoint.pt", weights_only=True)
    assert len(found["processes"]) == 2
    assert found["position"]["into_epoch"] >= 1
    assert_no_process_is_left(process.pid)


def assert_no_process_is_left(group):
    """multiprocessing's own tracker ends shortly after the rest."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a process of the run is still there after 10 s")
