"""Compiled kernels on disk: used again, checked, and never from a folder that others can write to."""

import os
import stat

import pytest

from cellfuse.codegen import cache


@pytest.fixture
def place(tmp_path, monkeypatch):
    folder = tmp_path / "kernels"
    monkeypatch.setenv("CELLFUSE_CACHE", str(folder))
    return folder


def counted(result=b"machine code"):
    calls = []

    def compile():
        calls.append(1)
        return result

    return compile, calls


def test_the_second_time_nothing_is_compiled(place):
    compile, calls = counted()
    assert cache.load(("text", "cpu"), compile) == b"machine code"
    assert cache.load(("text", "cpu"), compile) == b"machine code"
    assert len(calls) == 1
    cache.load(("tex", "tcpu"), compile)
    assert len(calls) == 2
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", [b"", b"x", b"\0" * 100])
def test_a_damaged_file_is_compiled_again(place, damage):
    compile, calls = counted()
    cache.load(("text",), compile)
    (file,) = place.glob("*.o")
    file.write_bytes(damage)
    if damage:
        with pytest.warns(RuntimeWarning, match="damaged and is compiled again"):
            assert cache.load(("text",), compile) == b"machine code"
    else:
        assert cache.load(("text",), compile) == b"machine code"
    assert cache.load(("text",), compile) == b"machine code"
    assert len(calls) == 2


def test_a_folder_that_others_can_write_to_is_not_used(place):
    place.mkdir()
    os.chmod(place, 0o777)
    compile, calls = counted()
    cache.load(("text",), compile)
    cache.load(("text",), compile)
    assert len(calls) == 2
    assert not list(place.iterdir())


def test_it_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("CELLFUSE_CACHE", "")
    assert cache.folder() is None


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CELLFUSE_CACHE", str(tmp_path / "file" / "below"))
    compile, _ = counted()
    assert cache.load(("text",), compile) == b"machine code"
