"""exp, expm1, sigmoid, tanh and softplus on vectors, from polynomials.

Largest error in units of the last place, float32: exp 1.0, expm1 1.5, sigmoid 2.4, tanh 1.5, softplus 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cellfuse.codegen.cpu.text import Code


@dataclass(frozen=True)
class Format:
    """What exp needs to know of a floating-point format.

    Attributes:
        fraction: bits of the fraction.
        bias: of the exponent.
        ln2: log(2) in two parts; the first is short, so that its multiples are exact.
        powers: coefficients of (exp(r) - 1 - r) / r**2 for |r| <= log(2) / 2, highest first.
        limit: exp overflows above it.
        lowest: exp is 0 below it.
        series: terms of the series of log.
    """

    fraction: int
    bias: int
    ln2: tuple[float, float]
    powers: tuple[float, ...]
    limit: float
    lowest: float
    series: int


FORMATS = {
    32: Format(
        23,
        127,
        (0.693145751953125, 1.428606765330187e-06),
        # least largest error
        (0.0013882439816370606, 0.008366649970412254, 0.04166720435023308, 0.16666541993618011, 0.5),
        88.72283,
        -87.33654,
        8,
    ),
    64: Format(
        52,
        1023,
        (0.6931471803691238, 1.9082149292705877e-10),
        tuple(1 / math.factorial(k) for k in range(13, 1, -1)),
        709.782712893384,
        -708.39641853226408,
        18,
    ),
}


def _split(code: Code, x: str) -> tuple[str, str]:
    """(n in the lowest bits of a whole number, expm1(r)) with x = n log(2) + r, |r| <= log(2) / 2."""
    form = FORMATS[code.module.bits]
    # Adding 1.5 * 2**fraction rounds to a whole number, which then stands in the lowest bits.
    shift = 1.5 * 2.0**form.fraction
    shifted = code.fma(x, code.constant(1 / math.log(2)), code.constant(shift))
    n = code.let(f"fsub {code.vector} {shifted}, {code.constant(shift)}")
    r = code.fma(n, code.constant(-form.ln2[0]), x)
    r = code.fma(n, code.constant(-form.ln2[1]), r)
    p = code.constant(form.powers[0])
    for power in form.powers[1:]:
        p = code.fma(p, r, code.constant(power))
    expm1 = code.fma(code.binary("fmul", p, r), r, r)
    bits = code.let(f"bitcast {code.vector} {shifted} to {code.integers}")
    return code.let(f"shl {code.integers} {bits}, {code.whole(form.fraction)}"), expm1


def _power(code: Code, x: str) -> tuple[str, str]:
    """(2**(n-1), expm1(r)) with x = n log(2) + r; 2**(n-1) is 0 or an ordinary number."""
    form = FORMATS[code.module.bits]
    exponent, expm1 = _split(code, x)
    bits = code.let(f"add {code.integers} {exponent}, {code.whole((form.bias - 1) << form.fraction)}")
    return code.let(f"bitcast {code.integers} {bits} to {code.vector}"), expm1


def at_most(code: Code, x: str, high: float) -> str:
    """The smaller of x and a number; NaN stays."""
    return code.select(code.compare("ogt", x, code.constant(high)), code.constant(high), x)


def at_least(code: Code, x: str, low: float) -> str:
    """The larger of x and a number; NaN stays."""
    return code.select(code.compare("olt", x, code.constant(low)), code.constant(low), x)


def exp(code: Code, x: str) -> str:
    """e**x; results too small for the format's ordinary numbers are 0."""
    form = FORMATS[code.module.bits]
    exponent, expm1 = _split(code, at_least(code, at_most(code, x, form.limit), form.lowest))
    near = code.binary("fadd", expm1, code.constant(1.0))
    # n goes to the exponent's bits, which loses no ordinary number: 2**n itself may be none.
    bits = code.let(f"bitcast {code.vector} {near} to {code.integers}")
    bits = code.let(f"add {code.integers} {bits}, {exponent}")
    value = code.let(f"bitcast {code.integers} {bits} to {code.vector}")
    above = code.binary("fadd", x, code.constant(math.inf))  # NaN stays
    value = code.select(code.compare("ole", x, code.constant(form.limit)), value, above)
    return code.select(code.compare("olt", x, code.constant(form.lowest)), code.constant(0.0), value)


def expm1(code: Code, x: str) -> str:
    """e**x - 1, to the last digits near 0, too: there n is 0 and nothing is subtracted."""
    form = FORMATS[code.module.bits]
    half, inner = _power(code, at_least(code, at_most(code, x, form.limit), form.lowest))
    value = code.fma(half, inner, code.binary("fsub", half, code.constant(0.5)))
    value = code.call("copysign", code.binary("fadd", value, value), x)  # keeps -0.0
    return code.select(code.compare("ogt", x, code.constant(form.limit)), code.constant(math.inf), value)


def _quotient(code: Code, a: str, b: str) -> str:
    """a / b for 0.5 <= b < 2**126, or NaN."""
    if not code.module.has_slow_division or code.module.bits != 32:
        return code.binary("fdiv", a, b)
    name = "llvm.x86.avx512.rcp14.ps.512"
    code.module.declare(name, code.vector, [code.vector, code.vector, "i16"])
    near = code.let(f"call {code.vector} @{name}({code.vector} {b}, {code.vector} {b}, i16 -1)")  # 14 bits
    minus = code.let(f"fneg {code.vector} {b}")
    near = code.fma(code.fma(minus, near, code.constant(1.0)), near, near)
    value = code.binary("fmul", a, near)
    return code.fma(code.fma(minus, value, a), near, value)


def sigmoid(code: Code, x: str) -> str:
    """1 / (1 + e**-x); 0 where that is no ordinary number of the format by far."""
    limit = FORMATS[code.module.bits].limit - 0.7
    minus = code.let(f"fneg {code.vector} {x}")
    is_tiny = code.compare("ogt", minus, code.constant(limit))
    minus = code.select(is_tiny, code.constant(limit), minus)
    half, expm1 = _power(code, at_least(code, minus, FORMATS[code.module.bits].lowest))
    # Twice the numbers are halved away: 0.5 / (0.5 + e / 2).
    below = code.fma(half, expm1, code.binary("fadd", half, code.constant(0.5)))
    return code.select(is_tiny, code.constant(0.0), _quotient(code, code.constant(0.5), below))


def tanh(code: Code, x: str) -> str:
    """(e**2a - 1) / (e**2a + 1) with a = |x|, and the sign of x; the division shrinks the error."""
    size = at_most(code, code.call("fabs", x), 20.0)
    half, expm1 = _power(code, code.binary("fadd", size, size))
    above = code.fma(half, expm1, code.binary("fsub", half, code.constant(0.5)))
    value = _quotient(code, above, code.binary("fadd", above, code.constant(1.0)))
    return code.call("copysign", value, x)


def softplus(code: Code, x: str) -> str:
    """log(1 + e**x) as max(x, 0) + log(1 + e**-|x|), by the series of atanh, which loses no digits."""
    form = FORMATS[code.module.bits]
    e = exp(code, code.let(f"fneg {code.vector} {code.call('fabs', x)}"))
    s = code.binary("fdiv", e, code.binary("fadd", e, code.constant(2.0)))
    square = code.binary("fmul", s, s)
    p = code.constant(2 / (2 * form.series - 1))
    for k in range(form.series - 2, -1, -1):
        p = code.fma(p, square, code.constant(2 / (2 * k + 1)))
    return code.fma(p, s, at_least(code, x, 0.0))
