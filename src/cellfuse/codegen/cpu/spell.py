"""How each operation is written in LLVM IR: one row per row of the operation table."""

from __future__ import annotations

from collections.abc import Callable

from cellfuse.codegen.cpu import functions
from cellfuse.codegen.cpu.text import Code


def _binary(name: str) -> Callable[..., str]:
    return lambda code, a, b: code.binary(name, a, b)


def _compare(how: str) -> Callable[..., str]:
    return lambda code, a, b: code.compare(how, a, b)


def _truth(name: str) -> Callable[..., str]:
    return lambda code, a, b: code.let(f"{name} {code.truths} {a}, {b}")


def _llvm(name: str) -> Callable[..., str]:
    """A function that LLVM has for vectors; without an instruction it becomes calls of the C library."""
    return lambda code, *values: code.call(name, *values)


def _sign(code: Code, a: str) -> str:
    zero, one = code.constant(0.0), code.call("copysign", code.constant(1.0), a)
    return code.select(code.compare("one", a, zero), one, zero)  # 0 for NaN, as in torch


def _library(name: str) -> Callable[..., str]:
    """A function of the C library, called for each lane."""

    def each(code: Code, a: str) -> str:
        full = name + {32: "f", 64: ""}[code.module.bits]
        code.module.declare(full, code.number, [code.number])
        value = "poison"
        for lane in range(code.lanes):
            one = code.let(f"extractelement {code.vector} {a}, i64 {lane}")
            one = code.let(f"call {code.number} @{full}({code.number} {one})")
            value = code.let(f"insertelement {code.vector} {value}, {code.number} {one}, i64 {lane}")
        return value

    return each


SPELL: dict[str, Callable[..., str]] = {
    "add": _binary("fadd"),
    "sub": _binary("fsub"),
    "mul": _binary("fmul"),
    "div": _binary("fdiv"),
    "neg": lambda code, a: code.let(f"fneg {code.vector} {a}"),
    "pow": _llvm("pow"),
    "abs": _llvm("fabs"),
    "sign": _sign,
    "sqrt": _llvm("sqrt"),
    "exp": functions.exp,
    "log": _llvm("log"),
    "expm1": functions.expm1,
    "log1p": _library("log1p"),
    "sin": _llvm("sin"),
    "cos": _llvm("cos"),
    "erf": _library("erf"),
    "tanh": functions.tanh,
    "sigmoid": functions.sigmoid,
    "relu": lambda code, a: functions.at_least(code, a, 0.0),
    "softplus": functions.softplus,
    "max": _llvm("maximum"),
    "min": _llvm("minimum"),
    "where": lambda code, c, a, b: code.select(c, a, b),
    "lt": _compare("olt"),
    "le": _compare("ole"),
    "gt": _compare("ogt"),
    "ge": _compare("oge"),
    "eq": _compare("oeq"),
    "ne": _compare("une"),
    "and": _truth("and"),
    "or": _truth("or"),
    "not": lambda code, a: code.let(f"xor {code.truths} {a}, splat (i1 true)"),
    "detach": lambda code, a: a,
    "expand": lambda code, a: a,
}

# Written by `emit` and `products`, because they need more than the lanes of one vector; and products
# of two values, which are summed over time after the loop.
ELSEWHERE = {
    "emit": ("sum", "amax", "cumsum", "cumsum_reversed"),
    "products": ("product", "product_t", "blocks_product", "blocks_product_t"),
    "after the loop": ("outer", "blocks_outer"),
}
