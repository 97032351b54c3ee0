"""No call of a layer touches memory beyond its own: whole calls between guards, see tests/guarded.py."""

import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import cellfuse as cf
from cellfuse.cells import CELLS
from cellfuse.runtime.kernel_call import SESSIONS
from guarded import guarded
from runtime.test_repeat import exit_code

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guards are made as on Linux")
PROGRAM = Path(__file__).parent / "guarded_calls.py"
MAIN = ("lstm", "gru", "rnn")
OTHERS = [name for name in CELLS if name not in MAIN]
SIZES = (1, 7, 17, 64)


def assert_guarded(*families):
    """Fail, with the case that it was in, if the program ends before its end."""
    command = [sys.executable, str(PROGRAM), *families]
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stdout.splitlines()[-1:]
    ended = signal.Signals(-done.returncode).name if done.returncode < 0 else done.stderr[-2000:]
    assert done.returncode == 0, f"{ended} in {last}"
    assert last == ["done"]


@pytest.mark.parametrize("name", MAIN, ids="known-{}".format)
def test_the_well_known_cells_stay_in_their_memory(name):
    assert_guarded(f"{name}-float32-17-8-0", f"{name}-bfloat16-17-3-1", f"{name}-float64-7-3-2")


def test_every_other_cell_stays_in_its_memory():
    assert_guarded(*(f"{name}-float32-{SIZES[k % 4]}-2-{k}" for k, name in enumerate(OTHERS)))


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [*SIZES, 33])
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_stays_in_its_memory_in_every_way(name, hidden):
    dtypes = ("float32", "float64", "bfloat16") if name in MAIN else ("float32",)
    assert_guarded(*(f"{name}-{dtype}-{hidden}-16-5" for dtype in dtypes))


def write(address):
    ctypes.memset(address, 1, 1)


def session():
    """Of a call of a small layer."""
    layer = cf.LSTM(3, 4, backend="cpu")
    with torch.no_grad():
        layer(torch.randn(2, 1, 3))
    return SESSIONS.kept()[0]


def near(shift):
    """Write so many bytes behind the start of a tensor of 28."""
    value = torch.zeros(7)
    write(value.data_ptr() + shift)


def behind_a_table(memory):
    table = session().table
    write(ctypes.addressof(table) + 8 * len(table))


def no_guards(memory):
    made = session()
    made.set(x=id(made))
    memory.check_session(made)


# What is done, where the guards are, and how the process ends.
FAULTS = {
    "nothing": (lambda memory: session() and near(27), True, 0),
    "behind a tensor": (lambda memory: near(28), True, -signal.SIGSEGV),
    "before a tensor": (lambda memory: near(-1), False, -signal.SIGSEGV),
    "a mark": (lambda memory: near(28), False, 1),
    "where a tensor was": (lambda memory: write(torch.zeros(7).data_ptr()), True, -signal.SIGSEGV),
    "behind a part": (lambda memory: write(session().address_of("*bias") + 4 * 64), True, -signal.SIGSEGV),
    "before a part": (lambda memory: write(session().address_of("*bias") - 1), False, -signal.SIGSEGV),
    "behind a table": (behind_a_table, True, -signal.SIGSEGV),
    "memory without guards": (no_guards, True, 1),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_seen(what):
    fault, is_at_end, want = FAULTS[what]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        faulthandler.disable()
        try:
            with guarded(is_at_end) as memory:
                fault(memory)
            os._exit(0)
        except AssertionError:
            os._exit(1)
        finally:
            os._exit(2)
    assert exit_code(child) == want
