"""Every task is complete, and what it generates and scores is what its source says."""

import math

import pytest
import torch

import cellfuse as cf
from cellfuse.errors import TaskError
from cellfuse.train import score
from cellfuse.train.seed import generator
from cellfuse.train.settings import settings_of
from cellfuse.train.task import Part
from cellfuse.train.tasks import TASKS, adding, copy_memory, find


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_is_complete(task):
    assert task.what
    assert task.source
    assert task.metrics
    for metric in (task.loss, *task.metrics):
        assert metric.better in ("higher", "lower")
    for figure in task.figures(task.options):
        assert math.isfinite(figure.value)
        assert figure.what
        assert figure.source
    settings_of({"task": task.name, "cell": "gru"}, task)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_s_model_answers_its_batches(task):
    splits = task.splits(task.options, 0)
    batch = next(splits.valid.batches(4, Part()))
    width = 4
    made = task.model(lambda features: cf.cells.gru.layer(features, width), task.options)
    answer, _ = made(batch.input, None)
    total = task.loss.total(answer, batch.target)
    assert total.shape == ()
    total.backward()
    assert all(weight.grad is not None for weight in made.parameters())


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(TaskError, match=r"no task is called 'japanese-vowel'.*japanese-vowels"):
        find("japanese-vowel")


def test_adding_marks_one_number_in_each_half_and_asks_for_their_sum():
    input, target = adding.draw(generator(0), 50, length=11)
    assert input.shape == (11, 50, 2)
    for column in range(50):
        places = [t for t in range(11) if input[t, column, 1] != 0]
        assert len(places) == 2
        assert places[0] < 5 <= places[1]
        expected = sum(float(input[t, column, 0]) for t in places)
        assert float(target[column]) == pytest.approx(expected, abs=1e-6)
    assert input[..., 0].min() >= 0
    assert input[..., 0].max() < 1


def test_adding_without_memory_has_the_printed_error():
    test = find("adding").splits({"length": 20}, 0).test
    target = torch.cat([batch.target for batch in test.batches(100, Part())])
    assert len(target) == 1000
    found = float((target - 1).square().mean())
    assert find("adding").figures({"length": 20})[0].value == pytest.approx(1 / 6)
    assert found == pytest.approx(1 / 6, rel=0.1)


def test_copy_memory_asks_for_the_first_ten_after_the_sign():
    input, target = copy_memory.draw(generator(0), 30, delay=7)
    assert input.shape == target.shape == (27, 30)
    for column in range(30):
        given, asked = input[:, column].tolist(), target[:, column].tolist()
        assert all(0 <= symbol < 8 for symbol in given[:10])
        assert given[10:16] == [8] * 6
        assert given[16] == 9
        assert given[17:] == [8] * 10
        assert asked[:17] == [8] * 17
        assert asked[17:] == given[:10]
    assert set(input[:10].flatten().tolist()) == set(range(8))


def test_copy_memory_without_memory_has_the_printed_loss():
    task = find("copy-memory")
    options = {"delay": 30}
    batch = next(task.splits(options, 0).test.batches(100, Part()))
    answer = torch.full((*batch.target.shape, 10), -30.0)
    answer[:40, :, 8] = 30.0
    answer[40:, :, :8] = 30.0
    found = float(task.loss.total(answer, batch.target)) / batch.total
    assert task.figures(options)[0].value == pytest.approx(10 * math.log(8) / 50)
    assert found == pytest.approx(10 * math.log(8) / 50, rel=1e-5)


def test_symbols_recalled_is_the_share_of_the_last_ten():
    target = torch.randint(0, 8, (25, 6), generator=generator(0))
    answer = torch.nn.functional.one_hot(target, 10).float()
    recalled = find("copy-memory").metrics[1]
    assert float(recalled.total(answer, target)) / target.numel() == pytest.approx(1)
    answer[-4:] = 0
    answer[-4:, :, 9] = 1
    assert float(recalled.total(answer, target)) / target.numel() == pytest.approx(0.6)


def test_scores_are_sums_over_terms():
    logits = torch.randn(3, 5, 4)
    target = torch.randint(0, 4, (3, 5))
    target[0, 0] = -100
    logs = logits.double().log_softmax(-1)
    expected = -sum(float(logs[t, b, target[t, b]]) for t in range(3) for b in range(5) if target[t, b] >= 0)
    assert float(score.nats(logits, target)) == pytest.approx(expected, rel=1e-6)
    assert float(score.bits(logits, target)) == pytest.approx(expected / math.log(2), rel=1e-6)
    assert int(score.right(logits, logits.argmax(-1))) == 15
    answer = torch.tensor([[1.0], [2.0]])
    assert float(score.squared_error(answer, torch.tensor([0.0, 4.0]))) == 5


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_ragged_sequence_is_read_out_at_its_own_ends(bidirectional):
    task = find("japanese-vowels")
    layer = {}

    def make(features):
        layer["made"] = cf.cells.gru.layer(features, 5, bidirectional=bidirectional)
        return layer["made"]

    made = task.model(make, {})
    valid = task.splits({}, 0).valid
    batch = next(valid.batches(7, Part()))
    answer, _ = made(batch.input)
    for i, sequence in enumerate(valid.sequences[:7]):
        output, _ = layer["made"](sequence)
        ends = torch.cat([output[-1, :5], output[0, 5:]]) if bidirectional else output[-1]
        torch.testing.assert_close(answer[i], made.readout(ends), atol=1e-5, rtol=1e-5)
