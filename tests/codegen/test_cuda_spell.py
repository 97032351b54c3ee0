"""The spelling of operations in CUDA C++, run as C++ on this processor against each operation's meaning."""

import ctypes
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cellfuse.codegen.cuda.spell import ELSEWHERE, PRELUDE, SPELL, literal, spell
from cellfuse.graph.ops import OPS

HOST = "#include <math.h>\n#define __device__\n#define __forceinline__ inline\n"
NUMBERS = {"float": (ctypes.c_float, np.float32, 2**-24), "double": (ctypes.c_double, np.float64, 2**-53)}
TRUTHS = {"where": 1, "and": 2, "or": 2, "not": 1}
COUNT = {"where": 3} | dict.fromkeys(("add sub mul div pow max min lt le gt ge eq ne and or").split(), 2)
# Largest error in units of the last place, of the host's libraries with what is built on them.
ULPS = {"sigmoid": 4, "softplus": 4, "pow": 2, "tanh": 3}


def test_every_operation_has_a_spelling():
    elsewhere = {name for names in ELSEWHERE.values() for name in names}
    assert set(SPELL) | elsewhere == set(OPS)
    assert not set(SPELL) & elsewhere


def arguments_of(name, number):
    rng = np.random.default_rng(0)
    size = 4000
    plain = np.concatenate([rng.normal(size=size), rng.normal(size=size) * 1e-4, rng.uniform(-90, 90, size)])
    special = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-30, -1e-30, 700.0, -700.0])
    first = np.concatenate([plain, special, special])
    if name in ("log", "sqrt", "pow"):
        first = np.abs(first)
    if name == "log1p":
        first = np.maximum(first, -0.999)
    values = [first, rng.permutation(first), np.roll(first, 7)][: COUNT.get(name, 1)]
    if name == "pow":
        values[1] = np.clip(values[1], -3, 3)
    return [value.astype(NUMBERS[number][1]) for value in values]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed")
    text = [HOST, PRELUDE]
    for number in NUMBERS:
        for name in SPELL:
            letters = "abc"[: COUNT.get(name, 1)]
            given = [
                f"({x}[i] != 0)" if k < TRUTHS.get(name, 0) else f"{x}[i]" for k, x in enumerate(letters)
            ]
            parameters = ", ".join(f"const {number} *{x}" for x in letters)
            call = spell(name, *given)
            text.append(
                f'extern "C" void {name}_{number}(long n, {number} *y, {parameters}) '
                f"{{ for (long i = 0; i < n; i++) y[i] = {call}; }}"
            )
    folder = tmp_path_factory.mktemp("spell")
    (folder / "spell.cpp").write_text("\n".join(text))
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wno-unused", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", folder / "spell.so", folder / "spell.cpp"], check=True)
    return ctypes.CDLL(str(folder / "spell.so"))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", SPELL)
def test_spelling_means_the_operation(compiled, name, number):
    kind, dtype, unit = NUMBERS[number]
    values = arguments_of(name, number)
    made = np.full(len(values[0]), 77, dtype)
    pointers = [v.ctypes.data_as(ctypes.POINTER(kind)) for v in (made, *values)]
    getattr(compiled, f"{name}_{number}")(ctypes.c_long(len(made)), *pointers)
    with np.errstate(all="ignore"):
        given = [v != 0 if k < TRUTHS.get(name, 0) else v.astype(np.float64) for k, v in enumerate(values)]
        if name == "expand":
            given.append(given[0])
        exact = np.asarray(OPS[name].meaning(*given), np.float64)
        rounded = exact.astype(dtype)
    special = ~np.isfinite(rounded)
    np.testing.assert_array_equal(made[special], rounded[special])
    ok = ~special
    allowed = (ULPS.get(name, 1) + 0.6) * 2 * unit * np.abs(exact[ok]) + 2 * np.finfo(dtype).tiny
    if number == "double":  # the meaning is a double computation, too; exp multiplies its argument's error
        size = np.minimum(np.nan_to_num(np.abs(values[0][ok])), 750.0)
        allowed += np.maximum(6, size) * unit * np.abs(exact[ok])
    error = np.abs(made[ok].astype(np.float64) - exact[ok])
    worst = np.argmax(error - allowed)
    assert (error <= allowed).all(), (values[0][ok][worst], made[ok][worst], exact[ok][worst])


@pytest.mark.parametrize("number", NUMBERS)
def test_literals_are_exact(number, tmp_path):
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed")
    dtype = NUMBERS[number][1]
    values = [0.0, -0.0, 0.1, -0.1, 1e-42, 1e39, -1e39, 3.0, 2**-24, np.inf, -np.inf, np.nan]
    text = ", ".join(literal(v, number) for v in values)
    size = f'extern "C" void fill({number} *y) {{ {number} all[] = {{{text}}}; '
    (tmp_path / "a.cpp").write_text(
        f"{HOST}{PRELUDE}{size}for (int i = 0; i < {len(values)}; i++) y[i] = all[i]; }}"
    )
    subprocess.run(["g++", "-shared", "-fPIC", "-o", tmp_path / "a.so", tmp_path / "a.cpp"], check=True)
    made = np.zeros(len(values), dtype)
    ctypes.CDLL(str(tmp_path / "a.so")).fill(made.ctypes.data_as(ctypes.c_void_p))
    with np.errstate(over="ignore"):
        want = np.array(values).astype(dtype)
    np.testing.assert_array_equal(made, want)
    np.testing.assert_array_equal(np.signbit(made[:4]), np.signbit(want[:4]))


def test_nvrtc_takes_the_prelude():
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    code = """
import sys
from cuda.bindings import nvrtc
text = sys.stdin.read().encode()
error, program = nvrtc.nvrtcCreateProgram(text, b"a.cu", 0, None, None)
(error,) = nvrtc.nvrtcCompileProgram(program, 1, [b"--gpu-architecture=sm_80"])
log = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
nvrtc.nvrtcGetProgramLog(program, log)
sys.exit(log.decode().strip("\\0 \\n") or int(error.value != 0))
"""
    lines = [
        f'extern "C" __global__ void {n}_{number}({number} *a) {{ a[0] = '
        + spell(n, *[f"(a[{k}] != 0)" if k < TRUTHS.get(n, 0) else f"a[{k}]" for k in range(COUNT.get(n, 1))])
        + "; }"
        for n in SPELL
        for number in NUMBERS
    ]
    made = subprocess.run(
        [sys.executable, "-c", code], input="\n".join([PRELUDE, *lines]), text=True, capture_output=True
    )
    assert made.returncode == 0, made.stderr
