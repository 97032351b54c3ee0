"""The shipped files hold what their descriptions say."""

import numpy as np
import pytest
import torch

from cellfuse.errors import TaskError
from cellfuse.train import data
from cellfuse.train.task import Part
from cellfuse.train.tasks import char_kjv, find, japanese_vowels

# From the description of the data set at the UCI repository.
TEST_COUNTS = [31, 35, 88, 44, 29, 24, 40, 50, 29]


def test_japanese_vowels_have_the_published_sizes():
    series, speakers, count = japanese_vowels.load()
    assert count == 270
    assert len(series) == len(speakers) == 640
    assert {utterance.shape[1] for utterance in series} == {12}
    assert min(map(len, series)) == 7
    assert max(map(len, series)) == 29
    assert torch.bincount(speakers[:270]).tolist() == [30] * 9
    assert torch.bincount(speakers[270:]).tolist() == TEST_COUNTS


def test_japanese_vowels_have_the_published_values():
    series, speakers, _ = japanese_vowels.load()
    # First and last values of the source's first training and last test utterance.
    assert series[0][:3, 0].tolist() == pytest.approx([1.860936, 1.891651, 1.939205])
    assert series[0][0, :2].tolist() == pytest.approx([1.860936, -0.207383])
    assert len(series[0]) == 20
    assert speakers[0] == 0
    assert all(torch.isfinite(utterance).all() for utterance in series)


def test_validation_is_a_stratified_part_of_the_training_data_and_depends_on_the_seed():
    splits = [find("japanese-vowels").splits({}, seed) for seed in (0, 0, 1)]
    for part in splits:
        assert torch.bincount(part.train.labels).tolist() == [24] * 9
        assert torch.bincount(part.valid.labels).tolist() == [6] * 9
        assert torch.bincount(part.test.labels).tolist() == TEST_COUNTS
    first, again, other = (part.valid.sequences[0] for part in splits)
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_no_utterance_is_in_two_parts():
    splits = find("japanese-vowels").splits({}, 3)
    seen = {}
    for name in ("train", "valid", "test"):
        for utterance in getattr(splits, name).sequences:
            assert seen.setdefault(utterance.numpy().tobytes(), name) == name
    assert len(seen) == 640


def test_features_are_scaled_by_the_training_part_alone():
    splits = find("japanese-vowels").splits({}, 0)
    frames = torch.cat(splits.train.sequences)
    torch.testing.assert_close(frames.mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(frames.std(0), torch.ones(12), atol=1e-5, rtol=0)
    assert torch.cat(splits.test.sequences).mean(0).abs().max() > 1e-3


def test_the_text_is_the_new_testament_and_split_by_position():
    codes, symbols = char_kjv.load()
    text = "".join(symbols[code] for code in codes.tolist())
    assert text.startswith("The book of the generation of Jesus Christ, the son of David,")
    assert text.endswith("The grace of our Lord Jesus Christ be with you all. Amen.\n")
    assert len(text) == 949_738
    assert len(symbols) == 63
    assert text.count("\n\n") == 259  # 260 chapters
    assert sum(line != "" for line in text.splitlines()) == 7_957
    train, valid, test = char_kjv.parts(codes)
    assert torch.equal(torch.cat([train, valid, test]), codes)
    assert len(train) / len(codes) == pytest.approx(0.90, abs=1e-5)
    assert len(test) / len(codes) == pytest.approx(0.05, abs=1e-5)


def test_the_text_without_a_network_needs_the_bits_that_are_printed():
    one_by_one, packed = find("char-kjv").figures({})
    codes, _ = char_kjv.load()
    train, _, test = (part.numpy() for part in char_kjv.parts(codes))
    shares = (np.bincount(train, minlength=63) + 1) / (len(train) + 63)
    assert one_by_one.value == pytest.approx(-np.log2(shares[test]).mean(), rel=1e-9)
    assert packed.value == pytest.approx(234_172 * 8 / 949_738, rel=1e-9)


def test_a_damaged_file_is_refused(monkeypatch):
    monkeypatch.setitem(data.CHECKSUMS, "japanese_vowels.npz", "0" * 64)
    with pytest.raises(TaskError, match=r"japanese_vowels.npz: the file is damaged.*Install"):
        data.arrays("japanese_vowels.npz")


def test_every_file_has_its_licence_beside_it():
    for name in data.CHECKSUMS:
        notice = data.files(data.__name__).joinpath(name.split(".")[0] + ".license.txt")
        assert name in notice.read_text(encoding="utf-8")


def test_test_batches_hold_every_utterance_once():
    test = find("japanese-vowels").splits({}, 0).test
    labels = torch.cat([batch.target for batch in test.batches(50, Part())])
    assert torch.equal(labels, test.labels)
