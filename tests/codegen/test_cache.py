"""Compiled kernels on disk: used again, checked, and never from a folder that others can write to."""

import os
import random
import signal
import stat
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from cellfuse import cells
from cellfuse.codegen import cache
from cellfuse.codegen.cpu import compile
from cellfuse.codegen.cpu.layout import Sizes
from cellfuse.codegen.cpu.target import host
from cellfuse.codegen.lower import lower
from codegen.kernel_runner import KernelRun, layout_of


@pytest.fixture
def place(tmp_path, monkeypatch):
    folder = tmp_path / "kernels"
    monkeypatch.setenv("CELLFUSE_CACHE", str(folder))
    monkeypatch.setattr(cache, "_warned", set())
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
    with pytest.warns(RuntimeWarning, match=f"{place}.*others can write.*chmod 700.*CELLFUSE_CACHE") as said:
        _ = [cache.load(("text",), compile) for _ in range(2)]
    assert len(said) == 1
    assert len(calls) == 2
    assert not list(place.iterdir())


def test_a_folder_below_one_that_others_can_write_to_is_not_used(place):
    place.mkdir(mode=0o700)
    os.chmod(place.parent, 0o777)
    with pytest.warns(RuntimeWarning, match=f"others can write to {place.parent}:"):
        assert cache.folder() is None
    os.chmod(place.parent, 0o1777)
    assert cache.folder() == place


def test_a_warning_that_is_an_error_loses_nothing(place, capsys):
    cache.load(("text",), lambda: b"code")
    (file,) = place.iterdir()
    whole = file.read_bytes()
    file.write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.load(("text",), lambda: b"code") == b"code"
        assert file.read_bytes() == whole
        os.chmod(place, 0o777)
        assert cache.load(("text",), lambda: b"code") == b"code"
    said = capsys.readouterr().err
    assert "damaged" in said
    assert "others can write" in said


def test_the_users_home_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CELLFUSE_CACHE", "~/x")
    assert cache.folder() == tmp_path / "x"


def test_files_longest_out_of_use_are_removed(place, monkeypatch):
    monkeypatch.setattr(cache, "_MOST", 3500)
    files = []
    for k in range(3):
        cache.load((str(k),), lambda: bytes(1000))
        files += set(place.iterdir()) - set(files)
        os.utime(files[k], (1000 + k, 1000 + k))
    cache.load(("0",), lambda: b"")  # in use again
    cache.load(("3",), lambda: bytes(1000))
    left = set(place.iterdir())
    assert len(left) == 3
    assert files[1] not in left


def test_it_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("CELLFUSE_CACHE", "")
    assert cache.folder() is None


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CELLFUSE_CACHE", str(tmp_path / "file" / "below"))
    compile, _ = counted()
    assert cache.load(("text",), compile) == b"machine code"


needs_root = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="gives files away")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def test_what_is_written_is_for_its_owner_alone(place):
    before = os.umask(0)
    try:
        cache.load(("text",), lambda: b"code")
    finally:
        os.umask(before)
    (file,) = place.iterdir()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (place, file)] == [0o700, 0o600]


@needs_root
def test_what_belongs_to_somebody_else_is_not_used(place):
    compile, calls = counted()
    cache.load(("text",), compile)
    (file,) = place.iterdir()
    os.chown(file, 12345, 12345)
    assert cache.load(("text",), compile) == b"machine code"
    assert len(calls) == 2
    assert file.stat().st_uid == os.getuid()  # replaced
    assert cache.load(("text",), compile) == b"machine code"
    assert len(calls) == 2
    os.chown(place, 12345, 12345)
    with pytest.warns(RuntimeWarning, match="belongs to somebody else"):
        assert cache.folder() is None
    file.unlink()
    cache.load(("text",), compile)
    assert not list(place.iterdir())


def test_a_file_that_others_can_write_to_is_not_used(place):
    compile, calls = counted()
    cache.load(("text",), compile)
    (file,) = place.iterdir()
    for mode in (0o620, 0o602):
        file.chmod(mode)
        calls.clear()
        cache.load(("text",), compile)
        assert calls == [1]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_links_pipes_and_folders_in_a_files_place_are_not_read(place, tmp_path):
    compile, calls = counted()
    cache.load(("text",), compile)
    (file,) = place.iterdir()
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    for make in (lambda: file.symlink_to(elsewhere), lambda: os.mkfifo(file), file.mkdir):
        file.unlink(missing_ok=True)
        make()
        calls.clear()
        assert cache.load(("text",), compile) == b"machine code"
        assert calls == [1]
    assert not list(place.glob("*.part"))  # a folder cannot be replaced


@needs_root
def test_a_link_to_a_folder_is_judged_by_the_folder(place, tmp_path):
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    place.symlink_to(target)
    assert cache.folder() == target
    os.chown(target, 12345, 12345)
    with pytest.warns(RuntimeWarning, match=f"{target} belongs to somebody else"):
        assert cache.folder() is None


@needs_root
@needs_fork
def test_a_home_that_cannot_be_written_to_is_no_error(tmp_path, monkeypatch):
    """As somebody who is not root, with a home that is root's, and with one that is not there."""
    monkeypatch.delenv("CELLFUSE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for home in (tmp_path, tmp_path / "absent", "/proc/absent", ""):
        monkeypatch.setenv("HOME", str(home))
        child = os.fork()
        if child == 0:
            try:
                os.setuid(65534)
                is_right = cache.folder() is None and cache.load(("text",), lambda: b"code") == b"code"
                os._exit(0 if is_right else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not list(tmp_path.iterdir())


def forked(work):
    """A process that runs work(), and ends with 0 if it is true."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return child


@needs_fork
@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_process_killed_at_any_time_leaves_nothing_that_is_believed(place, count):
    chance = random.Random(0)

    def code(k):
        return bytes([k % 256]) * 300_000

    def write():
        for k in range(1000):
            cache.load((f"text {k % 50}",), lambda k=k: code(k % 50))
            for file in list(place.glob("*.o")) if k % 50 == 49 else ():
                file.unlink()
        return True

    for number in range(10 * count):
        if number >= count and any(place.glob("*.part")):  # a busy machine may not have come to a write
            break
        child = forked(write)
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for k in range(50):
            assert cache.load((f"text {k}",), lambda k=k: code(k)) == code(k)
        for file in place.glob("*.o"):
            file.unlink()
    left = list(place.glob("*.part"))
    for file in left:
        os.utime(file, (0, 0))
    young = place / f"young{cache._UNDER_WAY}"
    young.touch()
    cache.load(("another",), lambda: b"code")
    assert list(place.glob("*.part")) == [young]
    assert left


@needs_fork
def test_sixteen_processes_race_for_an_empty_cache(place):
    start = place.parent / "start"

    def work():
        while not start.exists():
            time.sleep(0.001)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return all(
                cache.load((f"text {k}",), lambda k=k: bytes([k]) * 100_000) == bytes([k]) * 100_000
                for k in range(20)
            )

    children = [forked(work) for _ in range(16)]
    start.touch()
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 16
    assert len(list(place.iterdir())) == 20
    assert {stat.S_IMODE(file.stat().st_mode) for file in place.iterdir()} == {0o600}


def kernel_and_file(place):
    """A kernel's layout, what it must compute, and its file."""
    rng = np.random.default_rng(0)
    program = lower(cells.find("gru").step)
    layout = layout_of(program, Sizes(5, 0, 1), np.float64, host())
    products = [rng.normal(size=(3, 2, 5)) for _ in program.inputs]
    shapes = {leaf.label: [5] * len(leaf.shape) for leaf in program.step.inputs}
    fixed = {
        label: rng.normal(size=shape)
        for label, shape in (shapes | {bias: [5] for bias, _ in program.moved}).items()
    }

    def run():
        return KernelRun(compile.Kernel(layout), products, [np.ones((2, 5))], fixed, 3).forward()[0]

    compile.tiles(64, host(), False)  # of every kernel
    others = set(place.glob("*.o"))
    want = run()
    (file,) = set(place.glob("*.o")) - others
    return run, want, file


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_a_damaged_kernel_is_compiled_again_and_right(place, count, monkeypatch):
    """Flipped bits and lost ends of real machine code, an old form, random bytes, another's code."""
    run, want, file = kernel_and_file(place)
    whole, chance = file.read_bytes(), random.Random(0)
    monkeypatch.setattr(
        compile, "object_code", lambda *_, **__: whole[cache._LENGTH :]
    )  # what it takes a second for
    damaged = [b"\x7fELF" + bytes(64), chance.randbytes(5000), whole[cache._LENGTH :], whole + b"\0"]
    damaged += [whole[: chance.randrange(1, len(whole))] for _ in range(count)]
    for _ in range(count):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        damaged.append(bytes(flipped))
    for content in damaged:
        file.write_bytes(content)
        with pytest.warns(RuntimeWarning, match="damaged and is compiled again"):
            assert np.array_equal(run(), want)
    assert file.read_bytes() == whole


def test_code_for_another_processor_or_by_another_llvm_is_not_found(place, monkeypatch):
    run, want, _ = kernel_and_file(place)
    features = compile.features(host())
    for change in (
        lambda patch: patch.setattr(compile, "features", lambda target: features + ",-ermsb"),
        lambda patch: patch.setattr(compile.llvm, "get_host_cpu_name", lambda: "x86-64"),
        lambda patch: patch.setattr(compile.llvm, "llvm_version_info", (1, 2, 3)),
    ):
        before = len(list(place.glob("*.o")))
        with monkeypatch.context() as patch:
            change(patch)
            assert np.allclose(run(), want)
        assert len(list(place.glob("*.o"))) == before + 1
