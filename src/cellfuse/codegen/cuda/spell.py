"""How each operation is written in CUDA C++: one row per row of the operation table, for float and double.

The same text is valid C++ where <math.h> is included and `__device__` is defined. Full precision: the
functions are those that torch's own kernels call, so `--use_fast_math` must stay off.
"""

from __future__ import annotations

import math

import numpy as np

# Words in braces are the arguments, each an expression in brackets or a name.
SPELL: dict[str, str] = {
    "add": "({} + {})",
    "sub": "({} - {})",
    "mul": "({} * {})",
    "div": "({} / {})",
    "neg": "(-{})",
    "pow": "cf_pow({}, {})",
    "abs": "cf_abs({})",
    "sign": "cf_sign({})",
    "sqrt": "cf_sqrt({})",
    "exp": "cf_exp({})",
    "log": "cf_log({})",
    "expm1": "cf_expm1({})",
    "log1p": "cf_log1p({})",
    "sin": "cf_sin({})",
    "cos": "cf_cos({})",
    "erf": "cf_erf({})",
    "tanh": "cf_tanh({})",
    "sigmoid": "cf_sigmoid({})",
    "relu": "cf_relu({})",
    "softplus": "cf_softplus({})",
    "max": "cf_max({}, {})",
    "min": "cf_min({}, {})",
    "where": "({} ? {} : {})",
    "lt": "({} < {})",
    "le": "({} <= {})",
    "gt": "({} > {})",
    "ge": "({} >= {})",
    "eq": "({} == {})",
    "ne": "({} != {})",
    "and": "({} && {})",
    "or": "({} || {})",
    "not": "(!{})",
    "detach": "{}",
    "expand": "{}",
}

# Needs more than one unit of one sequence, or is a product with a matrix.
ELSEWHERE = {
    "reductions": ("sum", "amax"),
    "scans": ("cumsum", "cumsum_reversed"),
    "products": ("product", "product_t", "blocks_product", "blocks_product_t"),
    "after the loop": ("outer", "blocks_outer"),
}

_LIBRARY = {
    "pow": "ab",
    "sqrt": "a",
    "exp": "a",
    "log": "a",
    "expm1": "a",
    "log1p": "a",
    "sin": "a",
    "cos": "a",
    "erf": "a",
    "tanh": "a",
}

# R is float or double; a comparison with NaN is false, and NaN goes through.
_OURS = """
__device__ __forceinline__ R cf_abs(R a) { return fabs_(a); }
__device__ __forceinline__ R cf_sign(R a) { return (R)((a > (R)0) - (a < (R)0)); }
__device__ __forceinline__ R cf_relu(R a) { return a < (R)0 ? (R)0 : a; }
__device__ __forceinline__ R cf_max(R a, R b) { return (a > b || a != a) ? a : b; }
__device__ __forceinline__ R cf_min(R a, R b) { return (a < b || a != a) ? a : b; }
__device__ __forceinline__ R cf_sigmoid(R a) { return (R)1 / ((R)1 + cf_exp(-a)); }
__device__ __forceinline__ R cf_softplus(R a) { return cf_relu(a) + cf_log1p(cf_exp(-cf_abs(a))); }
"""


def _functions(number: str) -> str:
    suffix = {"float": "f", "double": ""}[number]
    lines = []
    for name, letters in _LIBRARY.items():
        given = ", ".join(f"{number} {letter}" for letter in letters)
        call = f"{name}{suffix}({', '.join(letters)})"
        lines.append(f"__device__ __forceinline__ {number} cf_{name}({given}) {{ return {call}; }}")
    ours = _OURS.strip().replace("fabs_", f"fabs{suffix}").replace("(R)", f"({number})")
    return "\n".join((*lines, ours.replace("R ", f"{number} ")))


# Goes to the top of every text.
PRELUDE = (
    "\n".join(_functions(number) for number in ("float", "double"))
    + """
__device__ __forceinline__ float cf_float_of_bits(unsigned int bits) {
  union { unsigned int from; float to; } both;
  both.from = bits;
  return both.to;
}
"""
)

_SPECIAL = {math.inf: 0x7F800000, -math.inf: 0xFF800000}


def literal(value: float, number: str) -> str:
    """A constant of the type `number`, to the last digit."""
    if not math.isfinite(value):
        bits = _SPECIAL.get(value, 0x7FC00000)
        return f"(({number})cf_float_of_bits({bits:#x}u))"
    if number == "double":
        return f"({value!r})" if value < 0 or str(value)[0] == "-" else repr(value)
    with np.errstate(over="ignore", under="ignore"):
        rounded = float(np.float32(value))
    if not math.isfinite(rounded):
        return literal(rounded, number)
    return f"({rounded!r}f)" if str(rounded)[0] == "-" else f"{rounded!r}f"


def spell(name: str, *arguments: str) -> str:
    """The operation `name` on expressions: names, literals or what this function returned."""
    return SPELL[name].format(*arguments)
