"""The `@cell` decorator: a cell is one function of one time step, plus the facts a reader needs.

Does not run anything over time: see `cellfuse.nn` for the layer. Long, because each fact that can be wrong
has its check and its advice here, where the cell is defined.
"""

from __future__ import annotations

import hashlib
import inspect
import numbers
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from types import FunctionType
from typing import Any, NoReturn

from cellfuse.errors import CellError, ShapeError, TraceError
from cellfuse.graph.expr import Expr, leaf, node, order
from cellfuse.graph.graph import Graph
from cellfuse.graph.ops import BLOCKS, Shape
from cellfuse.graph.show import show
from cellfuse.graph.simplify import simplify
from cellfuse.graph.trace import Symbol, expr_of, refuse, run

RECURRENCES = ("dense", "diagonal", "blocks")

# A number; a (low, high) pair for a uniform draw; "uniform" for torch's own +-1/sqrt(H); or a function
# that fills a tensor in place.
Initial = float | tuple[float, float] | str | Callable[[Any], None]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a cell besides the matrices and biases of its gates.

    Attributes:
        per: "unit" ([H]), "gate" ([G*H], read as p.k for gate k) or "cell" (one number).
        initial: the value at the start.
        learned: False makes it a constant: a buffer of the layer, without gradient.
        is_bias: True leaves it out (zero) in a layer made with bias=False.
    """

    per: str
    initial: Initial
    learned: bool = True
    is_bias: bool = False


def per_unit(initial: Initial, *, learned: bool = True, is_bias: bool = False) -> Parameter:
    """A parameter with one value per hidden unit, shape [H]."""
    return Parameter("unit", initial, learned, is_bias)


def per_gate(initial: Initial, *, learned: bool = True, is_bias: bool = False) -> Parameter:
    """A parameter with one value per gate and hidden unit, [G*H]; gate k's part is `p.k`."""
    return Parameter("gate", initial, learned, is_bias)


def scalar(initial: Initial, *, learned: bool = True, is_bias: bool = False) -> Parameter:
    """A parameter of one number for the whole cell, shape []."""
    return Parameter("cell", initial, learned, is_bias)


@dataclass(frozen=True, eq=False)
class Cell:
    """A recurrent cell: the function of one time step and its facts. Made by `cell`.

    `cellfuse.reference.one_step` calls the function on tensors: one step in plain PyTorch.

    Attributes:
        name: the function's name.
        function: the step as the user wrote it.
        gates: gate names in packing order: rows of `weight_ih` and `weight_hh` follow it.
        states: state names; `gate.k.h` reads the first one.
        recurrence: "dense" (one matrix per gate), "diagonal" (one weight per unit) or "blocks"
            (block-diagonal; the layer takes num_heads).
        biases: which of "ih" (added to W x) and "hh" (added to R h) exist.
        parameters: further parameters by name, see `per_unit`, `per_gate`, `scalar`.
        projected: the state of width P that `gate.project` makes, or "" (see proj_size).
        initial: initial values that differ from torch's uniform +-1/sqrt(H), by the name of a weight or
            bias, or for one gate: "bias_ih.f", and "p.f" of a parameter p per gate; and of states, by
            state name: a number each, 0 if it is not there.
        source: paper and equations the step is taken from.
        deviation: where the step differs from the source, and why; empty if it does not.
        aten: name of torch's own operator for exactly this cell, or "".
        number: counts the cells of this process.
    """

    name: str
    function: Callable
    gates: tuple[str, ...]
    states: tuple[str, ...]
    recurrence: str = "dense"
    biases: tuple[str, ...] = ("ih", "hh")
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    projected: str = ""
    initial: Mapping[str, Initial] = field(default_factory=dict)
    source: str = ""
    deviation: str = ""
    aten: str = ""
    number: int = field(default=-1, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_facts(self)
        _ = self.step, self.step_without_bias  # trace now, so that mistakes show at the definition
        _check_initial(self)
        object.__setattr__(self, "number", len(_numbered))
        _numbered.append(weakref.ref(self))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @cached_property
    def step(self) -> Graph:
        """Graph of one time step, with biases."""
        return _trace(self, has_bias=True)

    @cached_property
    def step_without_bias(self) -> Graph:
        """Graph of one time step for a layer with bias=False."""
        return _trace(self, has_bias=False)

    @cached_property
    def input_gates(self) -> tuple[str, ...]:
        """The gates with an input product, in packing order: the rows of weight_ih."""
        used = {i.label for i in self.step.of_role("input product")}
        return tuple(gate for gate in self.gates if f"{gate}.x" in used)

    @cached_property
    def recurrent_gates(self) -> tuple[str, ...]:
        """The gates with a recurrent weight, in packing order: the rows of weight_hh."""
        inputs = self.step.of_role("matrix") + self.step.of_role("diagonal")
        used = {i.label for i in inputs}
        return tuple(gate for gate in self.gates if f"R_{gate}" in used)

    @cached_property
    def reference(self) -> str:
        """A text for programs of torch: where the cell is found, and what it means."""
        module, name = self.function.__module__, self.function.__qualname__
        is_there = module in sys.modules and _look_up(module, name) is self
        return f"{module}:{name}:{self._meaning}" if is_there else f":#{self.number}:{self._meaning}"

    @cached_property
    def _meaning(self) -> str:
        facts = (self.gates, self.states, self.recurrence, self.biases, sorted(self.parameters))
        text = f"{facts} {self.projected} {show(self.step)} {show(self.step_without_bias)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def output_is_a_state(self) -> bool:
        """Whether the output is the new value of one of the states."""
        output, *states = self.step.results
        return output in states

    def width(self, state: str) -> str:
        """Axis letter of a state: "P" for the projected one, else "H"."""
        return "P" if state == self.projected else "H"

    def layer(self, *args: Any, **kwargs: Any) -> Any:
        """A layer of this cell with torch.nn.LSTM's arguments: see `cellfuse.nn.Layer`."""
        return _made_by_nn("layer")(self, *args, **kwargs)

    def one_step(self, *args: Any, **kwargs: Any) -> Any:
        """A module for one time step, as torch.nn.LSTMCell: see `cellfuse.nn.OneStep`."""
        return _made_by_nn("one_step")(self, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<cell {self.name}: gates {' '.join(self.gates)}, states {' '.join(self.states)}>"

    def __deepcopy__(self, memo: dict) -> Cell:
        return self  # immutable

    def __reduce__(self) -> tuple:
        module, name = self.function.__module__, self.function.__qualname__
        if _look_up(module, name) is not self:
            raise CellError(
                f"cell {self.name} cannot be pickled: {module}.{name} is not it. "
                "Define the cell at the top level of a module, under the function's own name."
            )
        return _load, (module, name)


# Filled by cellfuse.nn, which is to the right of this module and cannot be imported here.
_factories: dict[str, Callable] = {}


# Every cell of this process by `cell.number`.
_numbered: list[weakref.ref[Cell]] = []


def cell_of_reference(reference: str) -> Cell:
    """The cell with this `Cell.reference`, which may come from a file that another process wrote.

    Raises:
        CellError: there is none here, or it computes something else.
    """
    place, _, meaning = reference.rpartition(":")
    module, _, name = place.rpartition(":")
    if module:
        if module.startswith("cellfuse.cells."):
            with suppress(ModuleNotFoundError):
                __import__(module)
        found = _look_up(module, name)  # a module that is not there is not imported for a file's sake
    else:
        number = name.removeprefix("#")
        found = _numbered[int(number)]() if number.isdecimal() and int(number) < len(_numbered) else None
    if not isinstance(found, Cell):
        where = f"{module}.{name}" if module else "a cell that no module holds"
        raise CellError(
            f"{where} is not here. Import the module that defines it before the program is loaded; "
            "in another process only a cell at the top level of a module, under its own name, is found."
        )
    if found._meaning != meaning:
        raise CellError(
            f"{found.name} is not the cell that the program was made with: its equation or the order of its "
            "gates is another. Make the program again."
        )
    return found


def _made_by_nn(what: str) -> Callable:
    if what not in _factories:
        raise CellError(f"`cell.{what}` needs the layers: write `import cellfuse` first.")
    return _factories[what]


def _look_up(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _load(module: str, name: str) -> Cell:
    """Find a pickled cell again by the place it was defined in."""
    __import__(module)
    found = _look_up(module, name)
    if not isinstance(found, Cell):
        raise CellError(f"no cell {name} in module {module}; it was there when it was saved.")
    return found


def _names(given: str | tuple[str, ...] | list[str], what: str) -> tuple[str, ...]:
    """ "rzn", "r z n" or ("r", "z", "n") as a tuple."""
    parts = given
    if isinstance(given, str):
        parts = given.split() if " " in given else list(given)
    names = tuple(parts)
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise CellError(f"{what}={given!r}: {name!r} is not a name such as 'f' or 'forget'")
    if len(set(names)) != len(names):
        raise CellError(f"{what}={given!r}: a name appears twice")
    return names


def cell(
    *,
    gates: str | tuple[str, ...] | list[str],
    states: str | tuple[str, ...] | list[str] = "h",
    recurrence: str = "dense",
    biases: tuple[str, ...] = ("ih", "hh"),
    parameters: Mapping[str, Parameter] | None = None,
    projected: str = "",
    initial: Mapping[str, Initial] | None = None,
    source: str = "",
    deviation: str = "",
    aten: str = "",
) -> Callable[[Callable], Cell]:
    """Turn a function of one time step into a `Cell`.

    The function takes `gate`, then each state, then each parameter, by these names, and returns the
    new value of each state in the same order; the first one is the output. A cell whose output is not
    a state returns `output, (state, ...)`.

    Inside, `gate.k.x` is W_k x + b_k (the input product), `gate.k.h` is R_k h + d_k with h the first
    state (the recurrent product), `gate.k` is their sum, and `gate.k.of(v)` is R_k v + d_k for any value
    v computed so far in the step. Each gate has one R_k. All values are [B, H]; hidden-axis functions
    (softmax, cumsum, layer_norm, sum with keepdim=True) take dim=-1.

    Args:
        gates: gate names, one letter each ("rzn") or separated by blanks; this is the packing order.
        states: state names in the same form.
        recurrence, biases, parameters, projected, initial, source, deviation, aten: see `Cell`.

    Raises:
        CellError: the facts and the function do not fit together.
        TraceError: the function does something that cannot be traced; names its line.

    Example:
        @cf.cell(gates="fn", states="h", source="Zhou et al. 2016, arXiv:1603.09420")
        def mgu(gate, h):
            f = torch.sigmoid(gate.f)
            n = torch.tanh(gate.n.x + gate.n.of(f * h))
            return (1 - f) * h + f * n
    """

    def wrap(function: Callable) -> Cell:
        if not isinstance(function, FunctionType):
            raise CellError(
                f"@cell takes a function written with def, got {_kind(function)}. Write a function of one "
                "time step; values to be filled in belong to parameters= or into its text."
            )
        return Cell(
            name=function.__name__,
            function=function,
            gates=_names(gates, "gates"),
            states=_names(states, "states"),
            recurrence=recurrence,
            biases=tuple(biases),
            parameters=dict(parameters or {}),
            projected=projected,
            initial=dict(initial or {}),
            source=source,
            deviation=deviation,
            aten=aten,
        )

    return wrap


def _kind(value: Any) -> str:
    return "a cell already" if isinstance(value, Cell) else f"a {type(value).__name__}"


# Weights and attributes of layers, which a state or parameter of a cell would hide.
_OF_LAYERS = {
    *("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh", "W_hr"),
    *("cell", "bias", "input_size", "hidden_size", "proj_size", "num_heads", "training"),
}


def _check_facts(cell: Cell) -> None:
    """The facts fit together and the function takes what they promise."""
    if not cell.source:
        raise CellError(
            f"{cell.name}: say where the equation is from: source='Zhou et al. 2016, arXiv:1603.09420', "
            "or source='my own'"
        )
    if not cell.states:
        raise CellError(f"{cell.name}: a recurrent cell needs at least one state, such as states='h'")
    if not cell.gates:
        raise CellError(f"{cell.name}: a cell needs at least one gate, such as gates='n'")
    if cell.recurrence not in RECURRENCES:
        raise CellError(f"{cell.name}: recurrence={cell.recurrence!r}; use one of {RECURRENCES}")
    if not set(cell.biases) <= {"ih", "hh"}:
        raise CellError(f"{cell.name}: biases={cell.biases!r}; use 'ih', 'hh' or both")
    if cell.projected and cell.projected not in cell.states:
        raise CellError(f"{cell.name}: projected={cell.projected!r} is not one of {cell.states}")
    taken = {*cell.gates, *cell.states, "gate", "size", "output"}
    reserved = {*_OF_LAYERS, *(f"R_{gate}" for gate in cell.gates)}
    for name in cell.parameters:
        if name in taken:
            raise CellError(f"{cell.name}: a gate or state has the parameter's name {name} already")
    for name in (*cell.states, *cell.parameters):
        if name in reserved:
            raise CellError(f"{cell.name}: {name} is a name of every layer's own; call yours otherwise")
    if "project" in cell.gates:
        raise CellError(f"{cell.name}: gate.project is the projection; call the gate otherwise")
    wanted = ("gate", *cell.states, *cell.parameters)
    arguments = inspect.signature(cell.function).parameters
    given = tuple(
        name if a.kind is a.POSITIONAL_OR_KEYWORD else f"{a.kind.description} {name}"
        for name, a in arguments.items()
    )
    if given != wanted:
        raise CellError(
            f"{cell.name}: the function takes ({', '.join(given)}); with these states and parameters "
            f"it must take ({', '.join(wanted)})"
        )


def _check_initial(cell: Cell) -> None:
    """Every initial value is one, and belongs to something the cell has."""
    into, back = cell.input_gates, cell.recurrent_gates
    rows = {"weight_ih": into, "weight_hh": back}
    rows |= {"bias_ih": into} if "ih" in cell.biases else {}
    rows |= {"bias_hh": back} if "hh" in cell.biases else {}
    known = {name for name, gates in rows.items() if gates} | ({"weight_hr"} if cell.projected else set())
    rows |= {name: cell.gates for name, own in cell.parameters.items() if own.per == "gate"}
    known |= {*cell.states, *(f"{name}.{gate}" for name, gates in rows.items() for gate in gates)}
    for name, value in cell.initial.items():
        if name in cell.parameters:
            maker = {"unit": "per_unit", "gate": "per_gate", "cell": "scalar"}[cell.parameters[name].per]
            raise CellError(
                f"{cell.name}: initial={{{name!r}: ...}}: a parameter's initial value stands where it is "
                f"declared: parameters={{{name!r}: cf.{maker}({value!r})}}"
            )
        if name not in known:
            raise CellError(
                f"{cell.name}: initial={{{name!r}: ...}} names nothing; this cell has "
                f"{', '.join(sorted(known))}"
            )
        if name in cell.states and not _is_number(value):
            raise CellError(
                f"{cell.name}: initial={{{name!r}: {value!r}}}: a state begins with one number, such as 0.0; "
                "for other beginnings pass hx to the layer"
            )
        _check_value(cell, f"initial={{{name!r}: {value!r}}}", value)
    for name, own in cell.parameters.items():
        _check_value(cell, f"parameter {name}: {own.initial!r}", own.initial)


def _check_value(cell: Cell, given: str, value: Any) -> None:
    is_range = isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))
    if is_range and value[0] > value[1]:
        raise CellError(f"{cell.name}: {given} is an empty range; write ({value[1]!r}, {value[0]!r})")
    if not (
        is_range or _is_number(value) or callable(value) or (isinstance(value, str) and value == "uniform")
    ):
        raise CellError(
            f"{cell.name}: {given} is no initial value; use a number, a range (low, high), 'uniform' for "
            "+-1/sqrt(H), or a function that fills a tensor in place, such as torch.nn.init.orthogonal_"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


class _Gate(Symbol):
    """`gate.k`: the sum of its two parts, made only if it is used."""

    def __init__(self, name: str, tracing: _Tracing) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_tracing", tracing)

    @property
    def expr(self) -> Expr:
        return node("add", self.x.expr, self.h.expr)

    @property
    def x(self) -> Symbol:
        return Symbol(self._tracing.input_product(self._name))

    @property
    def h(self) -> Symbol:
        first = self._tracing.cell.states[0]
        return self.of(Symbol(self._tracing.states[first]))

    def of(self, value: Any) -> Symbol:
        operand = expr_of(value)
        try:
            return Symbol(self._tracing.recurrent_product(self._name, operand))
        except ShapeError as error:
            refuse(str(error))


class _ByName:
    """Something whose parts are read as attributes and in no other way."""

    _name: str
    _tracing: _Tracing

    def __getitem__(self, key: Any) -> NoReturn:
        gates = self._tracing.cell.gates
        wanted = key if key in gates else gates[0]
        refuse(f"{self._name}[{key!r}]: the gates are attributes.", f"{self._name}.{wanted}")

    def __iter__(self, *_: Any) -> Iterator[Any]:
        parts = ", ".join(f"{self._name}.{gate}" for gate in self._tracing.cell.gates)
        refuse(f"`{self._name}` was iterated over; the gates are attributes.", f"[{parts}]")

    __len__ = __iter__  # type: ignore[assignment]
    __contains__ = __iter__  # type: ignore[assignment]


class _Gates(_ByName):
    """`gate`: the gates by name, and the projection."""

    def __init__(self, tracing: _Tracing) -> None:
        self._name, self._tracing = "gate", tracing

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        cell = self._tracing.cell
        if name not in cell.gates:
            refuse(
                f"gate.{name}: the gates of {cell.name} are {' '.join(cell.gates)}.",
                f"gate.{cell.gates[0]}.{name}" if name in ("x", "h", "of") else "",
            )
        return _Gate(name, self._tracing)

    def project(self, value: Any) -> Symbol:
        """The projection W_hr v, from H units to P."""
        cell = self._tracing.cell
        if not cell.projected:
            refuse(
                "gate.project needs a projected state.",
                f'@cell(..., projected="{cell.states[0]}")',
            )
        matrix = self._tracing.use(leaf("W_hr", ("P", "H"), "matrix"))
        return Symbol(node("product", matrix, expr_of(value)))


class _GateParts(_ByName):
    """A per-gate parameter: `p.k` is gate k's part."""

    def __init__(self, name: str, parameter: Parameter, tracing: _Tracing) -> None:
        self._name, self._parameter, self._tracing = name, parameter, tracing

    def __getattr__(self, gate: str) -> Symbol:
        if gate.startswith("__"):
            raise AttributeError(gate)
        gates = self._tracing.cell.gates
        if gate not in gates:
            refuse(f"{self._name}.{gate}: the gates are {' '.join(gates)}.")
        return self._tracing.parameter(f"{self._name}.{gate}", ("H",), self._parameter)


class _Tracing:
    """One run of a cell's function on symbols."""

    def __init__(self, cell: Cell, has_bias: bool) -> None:
        self.cell, self.has_bias = cell, has_bias
        self.states = {s: leaf(s, (cell.width(s),), "state") for s in cell.states}
        self.used: dict[str, Expr] = {}
        self.operands: dict[str, Expr] = {}

    def use(self, expr: Expr) -> Expr:
        return self.used.setdefault(expr.label, expr)

    def parameter(self, label: str, shape: Shape, parameter: Parameter) -> Symbol:
        if parameter.is_bias and not self.has_bias:
            return Symbol(expr_of(0.0))
        return Symbol(self.use(leaf(label, shape, "parameter")))

    def input_product(self, gate: str) -> Expr:
        return self.use(leaf(f"{gate}.x", ("H",), "input product"))

    def recurrent_product(self, gate: str, operand: Expr) -> Expr:
        cell, known = self.cell, self.operands.get(gate)
        if known is not None and known is not operand:
            refuse(
                f"gate {gate} multiplies two different values by its one recurrent matrix R_{gate}.",
                "a further gate for the second value: it may have a recurrent part only",
            )
        self.operands[gate] = operand
        if cell.recurrence == "diagonal":
            product = node("mul", self.use(leaf(f"R_{gate}", ("H",), "diagonal")), operand)
        elif cell.recurrence == "blocks":
            matrix = self.use(leaf(f"R_{gate}", BLOCKS, "matrix"))
            product = node("blocks_product", matrix, operand)
        else:
            shape = ("H", *operand.shape) if operand.shape else ("H", "H")
            first, width = next(((g, r.shape[1]) for g, r in self.matrices()), (gate, shape[1]))
            if width != shape[1]:
                wide = first if width == "H" else gate
                refuse(
                    f"gate {first} multiplies a value of {width} units by its recurrent matrix and gate "
                    f"{gate} one of {shape[1]}. The matrices are rows of one weight_hh, so they are equally "
                    "wide.",
                    f"gate.{wide}.of(gate.project(value)), which brings it to P units",
                )
            matrix = self.use(leaf(f"R_{gate}", shape, "matrix"))
            product = node("product", matrix, operand)
        if self.has_bias and "hh" in cell.biases:
            product = node("add", product, self.use(leaf(f"{gate}.b", ("H",), "bias")))
        return product

    def matrices(self) -> list[tuple[str, Expr]]:
        """(gate, its recurrent matrix) so far."""
        named = ((gate, self.used.get(f"R_{gate}")) for gate in self.cell.gates)
        return [(gate, matrix) for gate, matrix in named if matrix is not None]

    def argument(self, name: str, parameter: Parameter) -> Any:
        if parameter.per == "gate":
            return _GateParts(name, parameter, self)
        return self.parameter(name, ("H",) if parameter.per == "unit" else (), parameter)

    def inputs(self) -> tuple[Expr, ...]:
        """Every leaf the function used, by role and in packing order."""
        cell, wanted = self.cell, []
        wanted += [f"{gate}.x" for gate in cell.gates]
        wanted += [f"R_{gate}" for gate in cell.gates] + [f"{gate}.b" for gate in cell.gates]
        wanted += ["W_hr"]
        for name, parameter in cell.parameters.items():
            wanted += [f"{name}.{g}" for g in cell.gates] if parameter.per == "gate" else [name]
        used = [self.used[label] for label in wanted if label in self.used]
        inputs = [expr for expr in used if expr.role == "input product"]
        rest = [expr for expr in used if expr.role != "input product"]
        return (*inputs, *self.states.values(), *rest)


def _trace(cell: Cell, *, has_bias: bool) -> Graph:
    """Run the function on symbols and return the graph of the step."""
    tracing = _Tracing(cell, has_bias)
    states = [Symbol(expr) for expr in tracing.states.values()]
    extra = [tracing.argument(name, parameter) for name, parameter in cell.parameters.items()]
    result, variables = run(cell.function, (_Gates(tracing), *states, *extra), {})
    output, new_states = _outcome(cell, result)
    read = {expr.label for expr in order((output, *new_states)) if expr.op == "input"}
    parts = {label.partition(".")[0] for label in read}
    for name, parameter in cell.parameters.items():
        if name not in parts and not (parameter.is_bias and not has_bias):
            raise CellError(f"{cell.name}: parameter {name} is never used; leave it out.")
    for gate in cell.gates:
        if f"{gate}.x" not in read and f"R_{gate}" not in read:
            raise CellError(f"{cell.name}: gate {gate} is never used; leave it out of gates=.")
    outputs = [("output", output)]
    for state, expr in zip(cell.states, new_states, strict=True):
        outputs.append((f"new {state}", _of_width(cell, state, expr, tracing.states[state])))
    if not output.shape:
        outputs[0] = ("output", node("expand", output, tracing.states[cell.states[0]]))
    names = _variable_names(variables, cell)
    has_input_bias = has_bias and "ih" in cell.biases
    return simplify(Graph(cell.name, tracing.inputs(), tuple(outputs), names, has_input_bias))


def _outcome(cell: Cell, result: Any) -> tuple[Expr, tuple[Expr, ...]]:
    """(output, new states) from what the function returned."""
    parts = result if isinstance(result, tuple) else (result,)
    output: Any = None
    if len(parts) == 2 and isinstance(parts[1], tuple):
        output, parts = parts
    if len(parts) != len(cell.states):
        raise TraceError(
            f"{cell.name}: takes {len(cell.states)} state(s) ({', '.join(cell.states)}) but returns "
            f"{len(parts)}. Return the new value of every state, in the order they are taken; if the "
            "output is none of them, return output, (state, ...)."
        )
    for part in (*parts, *(() if output is None else (output,))):
        if not isinstance(part, Symbol | int | float):
            raise TraceError(
                f"{cell.name}: returned a {type(part).__name__}; return values computed from the "
                "gates, states and parameters."
            )
    states = tuple(expr_of(part) for part in parts)
    made = states[0] if output is None else expr_of(output)
    for what, expr in (
        ("the output", made),
        *((f"state {s}", e) for s, e in zip(cell.states, states, strict=True)),
    ):
        if expr.is_truth:
            raise TraceError(f"{cell.name}: {what} is true or false; return torch.where(c, 1.0, 0.0)")
    return made, states


def _of_width(cell: Cell, state: str, expr: Expr, before: Expr) -> Expr:
    """A new state must be as wide as the old one; a number is expanded."""
    if not expr.shape:
        return node("expand", expr, before)
    if expr.shape != before.shape:
        raise CellError(
            f"{cell.name}: state {state} is [{', '.join(before.shape)}] but its new value is "
            f"[{', '.join(expr.shape)}]. gate.project(v) makes the state named by projected=."
        )
    return expr


def _variable_names(variables: dict[str, Any], cell: Cell) -> tuple[tuple[Expr, str], ...]:
    """The user's names of inner values; arguments keep their labels."""
    names: dict[Expr, str] = {}
    for name, value in variables.items():
        if isinstance(value, Symbol) and not isinstance(value, _Gate) and not value.expr.is_leaf:
            names.setdefault(value.expr, name)
    return tuple(names.items())
