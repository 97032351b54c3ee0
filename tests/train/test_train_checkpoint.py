"""A checkpoint is whole or not there, and one that does not fit is refused with a reason."""

import pytest
import torch

from cellfuse.errors import TaskError
from cellfuse.train import checkpoint

FIXED = {"task": "adding", "hidden_size": 8, "options": {"length": 10}, "equation": "h = x"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / checkpoint.NAME
    content = {"model": {"weight": torch.arange(5000.0)}, "position": {"step": 3}}
    checkpoint.save(path, {"fixed": FIXED, **content})
    return path


def test_what_was_saved_is_read(path):
    found = checkpoint.load(path, FIXED)
    assert torch.equal(found["model"]["weight"], torch.arange(5000.0))
    assert found["position"] == {"step": 3}
    assert [file.name for file in path.parent.iterdir()] == [checkpoint.NAME]


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def fail(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"fixed": FIXED})
    assert path.read_bytes() == before


def damaged(raw):
    yield "empty", b""
    yield "text", b"not a checkpoint at all\n" * 20
    for share in (0.1, 0.5, 0.9, 0.99):
        yield f"{share} of it", raw[: int(len(raw) * share)]
    for place in range(0, len(raw), len(raw) // 40):
        yield f"byte {place}", raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :]


def test_a_damaged_file_is_refused(path):
    raw = path.read_bytes()
    for what, content in damaged(raw):
        path.write_bytes(content)
        with pytest.raises(TaskError, match=r"checkpoint.pt cannot be read.*Delete it"):
            pytest.fail(f"{what}: {checkpoint.load(path, FIXED)}")


@pytest.mark.parametrize("content", [{}, {"fixed": 1}, {"fixed": FIXED, "format": None}])
def test_a_file_of_something_else_is_refused(path, content):
    torch.save(content, path)
    with pytest.raises(TaskError, match="cannot be read as a checkpoint"):
        checkpoint.load(path, FIXED)


def test_a_file_that_would_run_code_is_refused(path):
    checkpoint.save(path, {"fixed": FIXED, "model": pytest.fail})
    with pytest.raises(TaskError, match="cannot be read as a checkpoint"):
        checkpoint.load(path, FIXED)


def test_another_format_is_refused(path):
    checkpoint.save(path, {"fixed": FIXED, "format": 7})
    with pytest.raises(TaskError, match="has checkpoint format 7, this version reads 1"):
        checkpoint.load(path, FIXED)


def test_no_file_is_told(tmp_path):
    with pytest.raises(TaskError, match=r"--resume: there is no .*Leave --resume out"):
        checkpoint.load(tmp_path / "none.pt", FIXED)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"hidden_size": 9}, "made with --hidden-size 8, this run asks for --hidden-size 9"),
        ({"options": {"length": 9}}, "made with --set {'length': 10}, this run asks for --set"),
        ({"equation": "h = 2 x"}, "another equation of this cell"),
    ],
)
def test_another_run_s_checkpoint_is_refused(path, other, told):
    with pytest.raises(TaskError, match=told) as error:
        checkpoint.load(path, {**FIXED, **other})
    assert "start a new run with another --out" in str(error.value)
