"""Run a cell's function on symbols and keep the graph it builds.

A Symbol stands for one value of one time step. `torch` functions reach it through
`__torch_function__` and are looked up by name in TORCH; whatever is not in the table is an error that
names the line of the user's function. Long, because the table and what each of its functions means in
operations stand together, and so do the refusals of everything else.
"""

from __future__ import annotations

import difflib
import linecache
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NoReturn

import torch

from cellfuse.errors import CellfuseError, TraceError
from cellfuse.graph.expr import Expr, constant, node, size

# Code that is never the user's: the tracer, cell.py beside this folder, torch, and what is not in a file,
# except for what is typed at a prompt: <stdin>, <ipython-input-1>.
_OURS = (str(Path(__file__).parent), str(Path(__file__).parents[1] / "cell.py"))
_NOT_THE_USERS = (*_OURS, str(Path(torch.__file__).parent), "<cellfuse", "<frozen", "<string")


def refuse(problem: str, instead: str = "") -> NoReturn:
    """Raise a TraceError that names the user's line.

    problem: what was done. instead: what to write.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.f_back
    place = "" if frame is None else _place(frame, frame.f_lineno)
    raise TraceError(problem + place + (f"\n  Write instead: {instead}" if instead else ""))


def _place_of(error: Exception) -> str:
    """The innermost of the user's lines that an error passed."""
    place, step = "", error.__traceback__
    while step is not None:
        if not step.tb_frame.f_code.co_filename.startswith(_NOT_THE_USERS):
            place = _place(step.tb_frame, step.tb_lineno)
        step = step.tb_next
    return place


def _place(frame: FrameType, line: int) -> str:
    file = frame.f_code.co_filename
    text = linecache.getline(file, line).strip()
    return f"\n  {Path(file).name}, line {line}, in {frame.f_code.co_name}" + (f":  {text}" if text else "")


def make(name: str, *args: Any) -> Symbol:
    """The operation `name` on symbols and numbers; an error names the user's line."""
    if _is_grad_enabled and not torch.is_grad_enabled():
        refuse("torch.no_grad() has no effect on a cell's graph.", "value.detach()")
    nodes = [expr_of(arg) for arg in args]
    try:
        made = node(name, *nodes)
    except CellfuseError as error:
        refuse(str(error))
    return Symbol(made)


def expr_of(value: Any) -> Expr:
    """The expression behind a symbol or a number; refuses everything else."""
    if isinstance(value, Symbol):
        return value.expr
    if isinstance(value, torch.Tensor):
        if value.requires_grad:
            refuse(
                "a tensor from outside that needs a gradient was used in a cell.",
                'declare it: @cell(parameters={"p": cf.scalar(0.0)}) and take p as an argument',
            )
        if value.ndim == 0:
            return constant(value.item())
        refuse(
            f"a tensor of shape {list(value.shape)} from outside was used in a cell.",
            'declare it: @cell(parameters={"p": cf.per_unit(0.0)}) and take p as an argument',
        )
    if isinstance(value, _Batch):
        value._refused()
    if isinstance(value, bool):
        refuse("True or False was used as a number.", "1.0 or 0.0, or torch.where(condition, a, b)")
    if isinstance(value, int | float):
        return constant(value)
    refuse(f"a {type(value).__name__} was used where a value of the time step is needed.")


_ARITHMETIC = "an expression of +, -, *, /, **, comparisons and torch functions"

# Whether gradients were on when the cell's function was called.
_is_grad_enabled = False


class Symbol:
    """A value of one time step while its cell is traced. Behaves as a tensor [B, H] of floats."""

    def __init__(self, expr: Expr) -> None:
        self._expr = expr

    __hash__ = None  # type: ignore[assignment]  # == makes a node, so a symbol cannot be a key

    def __array_ufunc__(self, function: Any, method: str, *args: Any, **kwargs: Any) -> NoReturn:
        refuse(f"NumPy's {function.__name__} was used on a traced value.", "the torch function")

    @property
    def expr(self) -> Expr:
        """The node of the graph."""
        return self._expr

    @property
    def shape(self) -> tuple[Any, Any]:
        """Batch (unknown while tracing) and units, as a number of the graph."""
        return (_Batch(), Symbol(size(self.expr.shape[-1])) if self.expr.shape else 1)

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", str(function))
        if name == "__get__":  # a property of torch.Tensor, such as .dtype
            name = getattr(getattr(function, "__self__", None), "__name__", name)
        return call(name, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in TORCH or name in _RANDOM or _changes_in_place(name):
            return lambda *args, **kwargs: call(name, (self, *args), kwargs)
        refuse(
            f"`.{name}` of a value is not known while a cell is traced.{_similar(name, 0.7)}",
            "an expression in the gates, states and parameters",
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "_expr":
            refuse(f"`.{name} = ...` changes a value in place.", "a new value under a new name")
        object.__setattr__(self, name, value)

    def __add__(self, other: Any) -> Symbol:
        return make("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return make("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return make("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return make("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return make("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return make("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return make("div", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return make("div", other, self)

    def __pow__(self, other: Any) -> Symbol:
        return make("pow", self, other)

    def __rpow__(self, other: Any) -> Symbol:
        return make("pow", other, self)

    def __neg__(self) -> Symbol:
        return make("neg", self)

    def __pos__(self) -> Symbol:
        return self

    def __abs__(self) -> Symbol:
        return make("abs", self)

    def __lt__(self, other: Any) -> Symbol:
        return make("lt", self, other)

    def __le__(self, other: Any) -> Symbol:
        return make("le", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return make("gt", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return make("ge", self, other)

    def __eq__(self, other: object) -> Any:
        return make("eq", self, other)

    def __ne__(self, other: object) -> Any:
        return make("ne", self, other)

    def __and__(self, other: Any) -> Symbol:
        return make("and", self, other)

    def __or__(self, other: Any) -> Symbol:
        return make("or", self, other)

    def __invert__(self) -> Symbol:
        return make("not", self)

    def __bool__(self) -> bool:
        refuse(
            "a traced value was used in an `if`, `while`, `and`, `or` or `assert`. The cell is "
            "recorded once and its values are not known then.",
            "torch.where(condition, a, b)",
        )

    def __float__(self) -> float:
        refuse(
            "a traced value was turned into a Python number (math.tanh, float(), round() do that).",
            "the torch function, such as torch.tanh(value)",
        )

    __int__ = __index__ = __complex__ = __float__  # type: ignore[assignment]

    def __iter__(self, *_: Any) -> Iterator[Any]:
        refuse("a traced value was iterated over.", "element-wise operations on the whole value")

    __len__ = __iter__  # type: ignore[assignment]
    __contains__ = __iter__  # type: ignore[assignment]

    def __getitem__(self, index: Any) -> Any:
        refuse(
            "a traced value was indexed; a cell works on all units at once.",
            "separate gates or states for the parts",
        )

    def __setitem__(self, index: Any, value: Any) -> None:
        refuse("a traced value was changed in place.", "torch.where(condition, new, old)")

    def __matmul__(self, other: Any) -> Any:
        refuse(
            "`@` between values of a cell. A cell's matrices belong to its gates.",
            "gate.k.of(value), which multiplies by the recurrent matrix of gate k",
        )

    __rmatmul__ = __matmul__

    def _unknown(self, *_: Any) -> NoReturn:
        refuse("an operator that a cell's graph does not have (%, //, ^, round and the like).", _ARITHMETIC)

    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __divmod__ = __rdivmod__ = _unknown
    __xor__ = __rxor__ = __lshift__ = __rshift__ = __round__ = __trunc__ = __floor__ = __ceil__ = _unknown

    def _in_place(self, other: Any) -> NoReturn:
        refuse(
            "`+=`, `-=`, `*=` or `/=` changes a value in place, which would change the caller's "
            "state when the cell is called with tensors.",
            "h = h + value",
        )

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __iand__ = __ior__ = _in_place

    def __repr__(self) -> str:
        return f"Symbol({self.expr!r})"

    def __format__(self, how: str) -> str:
        if how:
            refuse(
                f"a traced value was formatted as a number ({how}).",
                "print(value), which shows the operation",
            )
        return repr(self)


class _Batch:
    """The batch size, which a cell must not depend on."""

    def _refused(self, *_: Any) -> NoReturn:
        refuse("the batch size was used in a cell.", "an expression per sequence")

    def __getattr__(self, name: str) -> Any:
        self._refused()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refused
    __floordiv__ = __rfloordiv__ = __mod__ = __pow__ = __rpow__ = __neg__ = __hash__ = _refused  # type: ignore[assignment]
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __bool__ = _refused  # type: ignore[assignment]
    __int__ = __float__ = __index__ = _refused


def call(name: str, args: tuple, kwargs: dict) -> Any:
    """A torch function on symbols, by its name."""
    name = name.removeprefix("special_")  # torch.special.expit
    if name in _RANDOM:
        refuse(
            f"torch.{name} draws random numbers, which a cell's graph cannot hold.",
            "the layer's dropout= option, or pass the noise in as part of the input",
        )
    if _changes_in_place(name) or kwargs.get("inplace") or kwargs.get("out") is not None:
        refuse(f"`{name}` changes a value in place.", f"the form without change: {name.rstrip('_')}")
    function = TORCH.get(name)
    if function is None:
        all_known = ", ".join(_known())
        refuse(f"torch's `{name}` cannot be part of a cell.{_similar(name)} All that can: {all_known}.")
    # torch.nn.functional passes on what the user left out: inplace=False, dtype=None.
    given = {
        key: value for key, value in kwargs.items() if key != "inplace" and (key, value) != ("dtype", None)
    }
    try:
        return function(*args, **given)
    except TypeError as error:
        refuse(f"torch's `{name}` was called with arguments that a cell cannot hold: {error}")


def _known() -> list[str]:
    return sorted(name for name in TORCH if not name.startswith("__"))


def _similar(name: str, cutoff: float = 0.6) -> str:
    near = difflib.get_close_matches(name, _known(), 3, cutoff)
    return f" Similar ones that can: {', '.join(near)}." if near else ""


def _changes_in_place(name: str) -> bool:
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


_RANDOM = {
    *("dropout", "bernoulli", "rand_like", "randn_like", "normal", "alpha_dropout", "rrelu"),
    *("feature_dropout", "multinomial", "gumbel_softmax", "randint_like", "poisson"),
}


def _hidden_axis(dim: Any) -> None:
    if dim != -1 and dim != (-1,) and dim != [-1]:
        refuse(f"a reduction over dim={dim}; a cell can reduce over its units only.", "dim=-1")


def _kept(keepdim: bool) -> None:
    if not keepdim:
        refuse(
            "a reduction over the units that drops the axis; the result would not combine with other values.",
            "the reduction with dim=-1, keepdim=True",
        )


def _one(name: str) -> Callable[[Any], Symbol]:
    return lambda input: make(name, input)


def _two(name: str) -> Callable[[Any, Any], Symbol]:
    return lambda input, other: make(name, input, other)


def _units(value: Any) -> Any:
    return value.shape[-1]


def _add(input: Any, other: Any, *, alpha: float = 1) -> Symbol:
    return make("add", input, other if alpha == 1 else make("mul", other, alpha))


def _sub(input: Any, other: Any, *, alpha: float = 1) -> Symbol:
    return make("sub", input, other if alpha == 1 else make("mul", other, alpha))


def _where(condition: Any, input: Any, other: Any) -> Symbol:
    return make("where", condition, input, other)


def _sum(input: Any, dim: Any = None, keepdim: bool = False) -> Symbol:
    _hidden_axis(dim)
    _kept(keepdim)
    return make("sum", input)


def _mean(input: Any, dim: Any = None, keepdim: bool = False) -> Symbol:
    return _sum(input, dim, keepdim) / _units(input)


def _var(
    input: Any,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: int = 1,
) -> Symbol:
    centred = input - _mean(input, dim, keepdim)
    correction = correction if unbiased else 0
    return _sum(centred * centred, dim, keepdim) / (_units(input) - correction)


def _std(*args: Any, **kwargs: Any) -> Symbol:
    # The derivative of the root is infinite where all units are equal; torch's gradient is 0 there.
    variance = _var(*args, **kwargs)
    is_flat = make("eq", variance, 0.0)
    return make("where", is_flat, 0.0, make("sqrt", make("where", is_flat, 1.0, variance)))


def _amax(input: Any, dim: Any = None, keepdim: bool = False) -> Symbol:
    _hidden_axis(dim)
    _kept(keepdim)
    return make("amax", input)


def _softmax(input: Any, dim: Any = None, _stacklevel: int = 3) -> Symbol:
    _hidden_axis(dim)
    # The largest value is subtracted only against overflow: it cancels, so it carries no gradient.
    raised = make("exp", input - make("detach", make("amax", input)))
    return raised / make("sum", raised)


def _log_softmax(input: Any, dim: Any = None, _stacklevel: int = 3) -> Symbol:
    _hidden_axis(dim)
    lowered = input - make("detach", make("amax", input))
    return lowered - make("log", make("sum", make("exp", lowered)))


def _cumsum(input: Any, dim: Any = None) -> Symbol:
    _hidden_axis(dim)
    return make("cumsum", input)


def _layer_norm(
    input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Symbol:
    sizes = tuple(normalized_shape)
    if len(sizes) != 1:
        refuse("layer_norm over more than the units.", "F.layer_norm(v, v.shape[-1:])")
    if not isinstance(sizes[0], Symbol) or sizes[0].expr is not _units(input).expr:
        refuse(
            f"layer_norm over {sizes[0]!r} units; a layer may have any number.",
            "F.layer_norm(v, v.shape[-1:])",
        )
    centred = input - _mean(input, -1, True)
    scaled = centred / make("sqrt", _mean(centred * centred, -1, True) + eps)
    scaled = scaled if weight is None else scaled * weight
    return scaled if bias is None else scaled + bias


def _clamp(input: Any, min: Any = None, max: Any = None) -> Any:
    # Not the operations max and min: at the bounds torch gives clamp's input the whole gradient, at NaN none.
    lifted = input if min is None else _bounded(input, "ge", "lt", min)
    return lifted if max is None else _bounded(lifted, "le", "gt", max)


def _bounded(input: Any, inside: str, outside: str, bound: Any) -> Symbol:
    neither = make("detach", make("add", input, bound))  # NaN
    return make(
        "where", make(inside, input, bound), input, make("where", make(outside, input, bound), bound, neither)
    )


def _hardtanh(input: Any, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    # At the bounds torch gives hardtanh's input no gradient.
    lifted = make("where", make("le", input, min_val), min_val, input)
    return make("where", make("ge", lifted, max_val), max_val, lifted)


def _leaky_relu(input: Any, negative_slope: float = 0.01) -> Symbol:
    return make("where", make("gt", input, 0.0), input, input * negative_slope)


def _elu(input: Any, alpha: float = 1.0) -> Symbol:
    # 0 on the other side keeps expm1 finite where its branch is not taken.
    above = make("gt", input, 0.0)
    below = make("expm1", make("where", above, 0.0, input)) * alpha
    return make("where", above, input, below)


def _gelu(input: Any, approximate: str = "none") -> Symbol:
    if approximate == "tanh":
        inner = (input + input * input * input * 0.044715) * math.sqrt(2 / math.pi)
        return input * 0.5 * (make("tanh", inner) + 1.0)
    return input * 0.5 * (make("erf", input * math.sqrt(0.5)) + 1.0)


def _softplus(input: Any, beta: float = 1, threshold: float = 20) -> Symbol:
    exact = make("softplus", input) if beta == 1 else make("softplus", input * beta) / beta
    if threshold >= 20:  # torch returns its input above it; the exact value differs by under 3e-9
        return exact
    return make("where", make("gt", input * beta, threshold), input, exact)


def _full_like(input: Any, fill_value: float) -> Symbol:
    return make("expand", fill_value, input)


# Every function of torch, torch.nn.functional and torch.Tensor that a cell may use, by its name.
TORCH: dict[str, Callable[..., Any]] = {
    **{name: _one(name) for name in ("abs", "sign", "sqrt", "exp", "log", "expm1", "log1p")},
    **{name: _one(name) for name in ("sin", "cos", "erf", "tanh", "sigmoid", "relu", "neg", "detach")},
    "expit": _one("sigmoid"),
    "absolute": _one("abs"),
    "negative": _one("neg"),
    "logical_not": _one("not"),
    "bitwise_not": _one("not"),
    "maximum": _two("max"),
    "minimum": _two("min"),
    "mul": _two("mul"),
    "div": _two("div"),
    "multiply": _two("mul"),
    "divide": _two("div"),
    "true_divide": _two("div"),
    **{name: _two(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    "pow": lambda input, exponent: make("pow", input, exponent),
    "less": _two("lt"),
    "greater": _two("gt"),
    "less_equal": _two("le"),
    "greater_equal": _two("ge"),
    "not_equal": _two("ne"),
    "logical_and": _two("and"),
    "logical_or": _two("or"),
    "__radd__": _add,
    "__rmul__": _two("mul"),
    "__and__": _two("and"),
    "__or__": _two("or"),
    "__rsub__": lambda input, other: make("sub", other, input),
    "__rdiv__": lambda input, other: make("div", other, input),
    "__rpow__": lambda input, other: make("pow", other, input),
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": lambda input, other, alpha=1: _sub(other, input, alpha=alpha),
    "where": _where,
    "reciprocal": lambda input: make("div", 1.0, input),
    "rsqrt": lambda input: make("div", 1.0, make("sqrt", input)),
    "square": lambda input: make("mul", input, input),
    "tan": lambda input: make("div", make("sin", input), make("cos", input)),
    "sinh": lambda input: (make("expm1", input) - make("expm1", -input)) * 0.5,
    "cosh": lambda input: (make("exp", input) + make("exp", -input)) * 0.5,
    "sum": _sum,
    "mean": _mean,
    "var": _var,
    "std": _std,
    "amax": _amax,
    "amin": lambda input, dim=None, keepdim=False: -_amax(-input, dim, keepdim),
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "cumsum": _cumsum,
    "layer_norm": _layer_norm,
    "clamp": _clamp,
    "clip": _clamp,
    "hardtanh": _hardtanh,
    "relu6": lambda input: _hardtanh(input, 0.0, 6.0),
    "hardsigmoid": lambda input: _hardtanh(input, -3.0, 3.0) / 6.0 + 0.5,
    "hardswish": lambda input: input * (_hardtanh(input, -3.0, 3.0) / 6.0 + 0.5),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    "silu": lambda input: make("mul", input, make("sigmoid", input)),
    "mish": lambda input: make("mul", input, make("tanh", make("softplus", input))),
    "softplus": _softplus,
    "softsign": lambda input: make("div", input, make("abs", input) + 1.0),
    "tanhshrink": lambda input: make("sub", input, make("tanh", input)),
    "logsigmoid": lambda input: -make("softplus", -input),
    "log_sigmoid": lambda input: -make("softplus", -input),
    "lerp": lambda input, end, weight: input + weight * (end - input),
    "addcmul": lambda input, a, b, *, value=1: _add(input, a * b, alpha=value),
    "zeros_like": lambda input: _full_like(input, 0.0),
    "ones_like": lambda input: _full_like(input, 1.0),
    "full_like": _full_like,
    "clone": lambda input: input,
    "contiguous": lambda input: input,
}


def run(function: Callable, args: tuple, kwargs: dict) -> tuple[Any, dict[str, Any]]:
    """Call a cell's function on symbols; also return its local variables at the end.

    The variables give the nodes of the graph the names the user chose.
    """
    code: CodeType = function.__code__
    variables: dict[str, Any] = {}

    def at_return(frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and frame.f_code is code:
            variables.update(frame.f_locals)

    global _is_grad_enabled
    _is_grad_enabled = torch.is_grad_enabled()
    before = sys.getprofile()
    sys.setprofile(at_return)
    try:
        result = function(*args, **kwargs)
    except TypeError as error:  # from Python or torch itself, which do not know what a Symbol is
        raise TraceError(f"a call in a cell failed: {error}{_place_of(error)}") from error
    finally:
        sys.setprofile(before)
        _is_grad_enabled = False
    return result, variables
