"""Compiled kernels on disk: used again, checked, and never from a folder that others can write to."""

import os
import signal
import stat
import subprocess
import sys

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


def test_no_changed_bit_and_no_shorter_file_is_believed(place):
    compile, _ = counted(bytes(range(256)))
    cache.load(("text",), compile)
    (file,) = place.glob("*.o")
    whole = file.read_bytes()
    damaged = [whole[:length] for length in range(1, len(whole), 7)]
    for bit in range(0, 8 * len(whole), 11):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for content in damaged:
        file.write_bytes(content)
        with pytest.warns(RuntimeWarning, match="damaged"):
            assert cache.load(("text",), compile) == bytes(range(256))
    assert file.read_bytes() == whole


def test_a_whole_file_under_another_name_is_not_believed(place):
    cache.load(("one",), lambda: b"one")
    (first,) = place.glob("*.o")
    cache.load(("two",), lambda: b"two")
    (second,) = set(place.glob("*.o")) - {first}
    second.write_bytes(first.read_bytes())
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert cache.load(("two",), lambda: b"two") == b"two"


def test_nobody_knowing_where_home_is_is_no_error(monkeypatch):
    monkeypatch.delenv("CELLFUSE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache.Path, "home", home)
    assert cache.load(("text",), lambda: b"code") == b"code"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_full_disk_and_a_killed_writer_leave_nothing_that_is_believed(place):
    """In processes of their own, because the limit cannot be raised again."""
    code = (
        "import resource, signal, sys, os\n"
        "from cellfuse.codegen import cache\n"
        "if sys.argv[1] == 'full':\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "else:\n"
        "    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "print(len(cache.load(('text',), lambda: bytes(5000))))\n"
    )
    for how, status in (("full", 0), ("killed", -signal.SIGKILL)):
        done = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert not list(place.glob("*.o"))
    compile, calls = counted()
    assert cache.load(("text",), compile) == b"machine code"
    assert calls == [1]


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
