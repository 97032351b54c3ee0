"""Batches are the same for any number of processes; each process has its own part."""

from itertools import chain, pairwise

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from cellfuse.train.seed import generator, number
from cellfuse.train.splits import IGNORED, Drawn, Ragged, Text
from cellfuse.train.task import Part
from cellfuse.train.tasks import adding

CODES = torch.arange(1000, 1058)


def ragged():
    lengths = (3, 1, 4, 1, 5, 9, 2)
    sequences = tuple(torch.full((n, 2), float(i)) for i, n in enumerate(lengths))
    return Ragged(sequences, torch.arange(7), seed=0)


def drawn():
    return Drawn(lambda g, n: adding.draw(g, n, 6), count=7, terms=1, key=(0, 1))


def text():
    return Text(CODES, window=5)


SPLITS = {"ragged": ragged, "drawn": drawn, "text": text}


def members(batch):
    """What is in a batch, one entry per sequence, in any order; nothing for a stand-in."""
    if not batch.count:
        return []
    if isinstance(batch.input, PackedSequence):
        padded, lengths = pad_packed_sequence(batch.input)
        columns = [padded[:n, i] for i, n in enumerate(lengths)]
    else:
        columns = list(batch.input.unbind(1))
    return [tuple(column.flatten().tolist()) for column in columns]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("kind", SPLITS)
def test_the_parts_of_all_processes_are_the_batch_of_one(kind, world):
    split = SPLITS[kind]()
    whole = list(split.batches(4, Part(), epoch=2))
    parts = [list(split.batches(4, Part(rank, world), epoch=2)) for rank in range(world)]
    assert len(whole) == split.steps(4)
    for batch, *shared in zip(whole, *parts, strict=True):
        assert batch.count == batch.total
        assert {part.total for part in shared} == {batch.total}
        assert sum(part.count for part in shared) == batch.total
        assert {part.continues for part in shared} == {batch.continues}
        assert sorted(chain.from_iterable(map(members, shared))) == sorted(members(batch))


@pytest.mark.parametrize("kind", ["ragged", "drawn"])
def test_a_batch_too_small_for_all_gives_the_rest_a_stand_in(kind):
    last = [list(SPLITS[kind]().batches(3, Part(rank, 2)))[-1] for rank in range(2)]
    assert [batch.count for batch in last] == [1, 0]
    assert [batch.total for batch in last] == [1, 1]


@pytest.mark.parametrize("kind", SPLITS)
def test_a_pass_can_start_in_the_middle(kind):
    split = SPLITS[kind]()
    whole = list(split.batches(2, Part(), epoch=1))
    rest = list(split.batches(2, Part(), epoch=1, start=2))
    assert len(rest) == len(whole) - 2
    for batch, again in zip(whole[2:], rest, strict=True):
        assert members(batch) == members(again)
        assert batch.continues == again.continues


@pytest.mark.parametrize("kind", ["ragged", "drawn"])
def test_epochs_differ_and_repeat(kind):
    split = SPLITS[kind]()
    first, again, other = (
        list(chain.from_iterable(map(members, split.batches(4, Part(), epoch=epoch)))) for epoch in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_ragged_batches_keep_each_sequence_with_its_label():
    seen = set()
    for batch in ragged().batches(3, Part(), epoch=0):
        padded, lengths = pad_packed_sequence(batch.input)
        assert padded[0, :, 0].tolist() == batch.target.tolist()
        seen |= set(zip(batch.target.tolist(), lengths.tolist(), strict=True))
    assert seen == set(enumerate((3, 1, 4, 1, 5, 9, 2)))


@pytest.mark.parametrize("streams", [1, 4, 16, 57])
def test_text_predicts_every_character_but_the_first_once_from_the_one_before(streams):
    pairs = []
    for batch in Text(CODES, 5, streams).batches(3, Part()):
        told = batch.target != IGNORED
        assert batch.count == int(told.sum())
        pairs += zip(batch.input[told].tolist(), batch.target[told].tolist(), strict=True)
    assert sorted(pairs) == [(code, code + 1) for code in range(1000, 1057)]


def test_text_windows_go_on_where_the_last_one_ended():
    batches = list(text().batches(3, Part()))
    assert [batch.continues for batch in batches] == [False, True, True, True]
    for before, after in pairwise(batches):
        assert torch.equal(before.target[-1], after.input[0])


def test_keys_give_numbers_of_their_own():
    assert number(1, 2) == number(1, 2)
    assert len({number(1, 2), number(2, 1), number(12), number(1), number(1, 2, 0)}) == 5
    draws = [torch.rand(2, generator=generator(7)) for _ in range(2)]
    assert torch.equal(*draws)
