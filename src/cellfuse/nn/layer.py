"""Layer: one cell over time, in layers and directions, with weights. torch.nn.LSTM's interface.

The computation is elsewhere: `forward` checks, brings the input to [T, B, I] or to packed form, and hands
a Case to `cellfuse.runtime`. Long, because all of torch.nn.RNNBase's interface is one class.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from cellfuse.cell import Cell
from cellfuse.errors import InputError, ShapeError
from cellfuse.nn import arguments, masks, quick, streaming, tracing
from cellfuse.nn.parameters import Block, blocks, initialise
from cellfuse.runtime import choice, resets
from cellfuse.runtime.case import Case, Result
from cellfuse.runtime.torch_text import torch_step

State = Tensor | tuple[Tensor, ...]


class Layer(nn.RNNBase):
    """A recurrent layer of any cell. `cf.LSTM`, `cf.GRU`, `cf.RNN` are this class with the cell chosen.

    Letters: T time steps, B batch, I input_size, H hidden_size, P proj_size, L num_layers,
    D directions (2 if bidirectional), S states.

    Args:
        cell: the cell, see `cellfuse.cell`.
        input_size: I, features of the input.
        hidden_size: H, units.
        num_layers: L; layer k > 0 reads the output of layer k - 1.
        bias: whether the gates have biases.
        batch_first: whether input and output are [B, T, ...]; states never are.
        dropout: probability of zeroing an output between layers, in training; none after the last.
        zoneout: probability that a unit of a state keeps its value of the step before (Krueger et al. 2016,
            arXiv:1606.01305), for every state, or by state: {"h": 0.05, "c": 0.5}. In training drawn anew at
            each time step; in evaluation the expectation is computed. An output that is a state is that
            state; any other output is made before.
        recurrent_dropout: probability of zeroing a unit of what the recurrent matrices multiply (Gal &
            Ghahramani 2016, arXiv:1512.05287), in training; the rest is divided by 1 - p. One mask for each
            sequence of a call, the same at all its time steps. The states themselves are left alone.
        bidirectional: a second direction runs from the last time step to the first; the outputs of
            both are joined, forward first.
        proj_size: P, width of the projected state, for a cell that has one.
        num_heads: N, blocks of a block-diagonal recurrence, for a cell that has one.
        device, dtype: of the parameters.
        backend: "auto", or the name of one backend, which then runs or says why it cannot.
        recompute: training keeps only the states of all time steps; the backward pass makes the rest
            again. Less memory, slower. Refused where no CPU kernel runs: see `why_not`.

    Parameters are named and laid out as torch.nn names them: weight_ih_l{k} [G*H, I] (D*H columns for
    k > 0), weight_hh_l{k} [G*H, H] ([G*H] if diagonal, [G*H, H/N] in blocks), bias_ih_l{k}, bias_hh_l{k}
    [G*H], weight_hr_l{k} [P, H], the cell's own, each again with `_reverse`. Rows are blocks of H per
    gate in the cell's packing order, for the gates that have that part.

    Raises:
        OptionError, OptionTypeError: an option is wrong.

    Exactness: error against float64 at most twice that of torch.nn in the same precision.
    """

    cell: Cell
    # Of layers that were saved or converted without them.
    recompute = False
    _masks: masks.Masks | None = None
    _regularisers: tuple[masks.Zoneout, float] = (0.0, 0.0)

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        num_heads: int = 1,
        zoneout: masks.Zoneout = 0.0,
        recurrent_dropout: float = 0.0,
        backend: str = "auto",
        recompute: bool = False,
    ) -> None:
        # Not RNNBase's own: it knows three cells only. It is the base for `isinstance` in users' code.
        nn.Module.__init__(self)
        arguments.check_dropout(dropout)
        arguments.check_type("bias", bias, bool)
        arguments.check_type("batch_first", batch_first, bool)
        arguments.check_type("recompute", recompute, bool)
        arguments.check_cell(cell)
        arguments.check_sizes(input_size, hidden_size)
        arguments.check_layers(num_layers)
        arguments.check_projection(cell, hidden_size, proj_size)
        arguments.check_heads(cell, hidden_size, num_heads)
        made = masks.of_options(cell, zoneout, recurrent_dropout)
        choice.check_name(backend)
        idle = arguments.warn_of_idle_dropout(dropout, num_layers)
        if idle:
            warnings.warn(idle, stacklevel=2)
        self.cell = cell
        self.mode = _MODES.get(cell.name, cell.name.upper())
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = int(num_layers)
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bool(bidirectional)
        self.proj_size = int(proj_size)
        self.num_heads = int(num_heads)
        self.backend = backend
        self.recompute = recompute
        self._regularisers, self._masks = (_frozen(zoneout), recurrent_dropout), made
        for block in self._blocks():
            for slot in block.slots:
                value = torch.empty(slot.shape, device=device, dtype=dtype)
                if slot.learned:
                    self.register_parameter(slot.name + block.suffix, nn.Parameter(value))
                else:
                    self.register_buffer(slot.name + block.suffix, value)
        self.reset_parameters()
        self.flatten_parameters()
        self._prepare()

    def _prepare(self) -> None:
        """Make what torch.compile and export could not make inside `forward`; without effect if made."""
        self._blocks()
        for cell in dict.fromkeys((self.cell, self._cell_of(True), self._cell_of(False))):
            torch_step(cell.step if self.bias else cell.step_without_bias)
            _ = cell.input_gates, cell.recurrent_gates, cell.reference  # kept by the cell, under a lock

    # Plain nn.Module behaviour: weights are read by name at every call, so nothing is cached that
    # could go stale under .to(), functional_call, parametrize or DataParallel.
    __setattr__ = nn.Module.__setattr__  # type: ignore[assignment]
    _replicate_for_data_parallel = nn.Module._replicate_for_data_parallel

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_quick"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)
        self._prepare()

    def _apply(self, fn: Any, recurse: bool = True) -> Layer:
        nn.Module._apply(self, fn, recurse)
        self.flatten_parameters()
        return self

    def _cell_of(self, is_training: bool) -> Cell:
        """The cell with what zoneout= and recurrent_dropout= add to it."""
        if self._masks is None:
            return self.cell
        return self._masks.in_training if is_training else self._masks.in_evaluation

    @property
    def zoneout(self) -> masks.Zoneout:
        """As it was given; may be set, which takes effect at the next call."""
        given = self._regularisers[0]
        return MappingProxyType(given) if isinstance(given, Mapping) else given

    @zoneout.setter
    def zoneout(self, value: masks.Zoneout) -> None:
        self._regularise(value, self.recurrent_dropout)

    @property
    def recurrent_dropout(self) -> float:
        """As it was given; may be set, which takes effect at the next call."""
        return self._regularisers[1]

    @recurrent_dropout.setter
    def recurrent_dropout(self, value: float) -> None:
        self._regularise(self.zoneout, value)

    def _regularise(self, zoneout: masks.Zoneout, recurrent_dropout: float) -> None:
        self._masks = masks.of_options(self.cell, zoneout, recurrent_dropout)
        self._regularisers = _frozen(zoneout), recurrent_dropout
        self.__dict__.pop("_quick", None)  # it remembers the cell
        self._prepare()

    @property
    def num_directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """D*H, or D*P with a projection: features of the output."""
        return self.num_directions * (self.proj_size or self.hidden_size)

    def _blocks(self) -> tuple[Block, ...]:
        """The parameters of every layer and direction, in torch's order."""
        # Made at first use and kept, because every call reads it; a converted layer has no __init__.
        if "_made_blocks" not in self.__dict__:
            self._made_blocks = blocks(
                self.cell,
                self.input_size,
                self.hidden_size,
                num_layers=self.num_layers,
                num_directions=self.num_directions,
                bias=self.bias,
                proj_size=self.proj_size,
                num_heads=self.num_heads,
            )
        return self._made_blocks

    def reset_parameters(self) -> None:
        """Draw new initial values, the same as torch.nn's for the same seed."""
        for block in self._blocks():
            initialise(self._weights(block), self.cell, block.slots, self.hidden_size)

    def flatten_parameters(self) -> None:
        """Join the weights in memory for cuDNN, where torch's operator would do so at each call.

        Does nothing elsewhere; no result depends on it.
        """
        first = next(self.parameters(), None)
        if first is not None and first.is_cuda and self.cell.aten:
            nn.RNNBase.flatten_parameters(self)

    @property
    def all_weights(self) -> list[list[Tensor]]:  # type: ignore[override]
        """Per layer and direction its parameters, in torch's order."""
        return [[getattr(self, name) for _, name in block.names] for block in self._blocks()]

    @property
    def _flat_weights_names(self) -> list[str]:  # type: ignore[override]
        return [name for block in self._blocks() for _, name in block.names]

    @property
    def _all_weights(self) -> list[list[str]]:  # type: ignore[override]
        return [[name for _, name in block.names] for block in self._blocks()]

    @property
    def _flat_weights(self) -> list[Any]:
        return [getattr(self, name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, values: list[Any]) -> None:
        """Give the weights anew, as code for torch's layers does after it changed some."""
        for name, value in zip(self._flat_weights_names, values, strict=True):
            if value is not getattr(self, name):
                setattr(self, name, value)

    def _init_flat_weights(self) -> None:
        self.flatten_parameters()

    def _weights_have_changed(self) -> bool:
        return False  # they are read at every call

    # What torch's layers call in `forward`, for code that calls it too; for one state the base's is right.

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        """Raise unless the input [T, B, I] and the states fit, as torch.nn's method does."""
        self.check_input(input, batch_sizes)
        if len(self.cell.states) == 1:
            hidden = (hidden,)
        batch = self.get_expected_hidden_size(input, batch_sizes)[1]
        for place, shape in enumerate(self._state_shapes(batch)):
            which = "hidden" if len(self.cell.states) == 1 else f"hidden[{place}]"
            self.check_hidden_size(hidden[place], shape, f"Expected {which} size {{}}, got {{}}")  # type: ignore[arg-type]

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        """The states with their sequences reordered."""
        if permutation is None:
            return hx
        if len(self.cell.states) == 1:
            return _take(hx, permutation)
        return tuple(_take(hx[place], permutation) for place in range(len(self.cell.states)))

    def extra_repr(self) -> str:
        """The options that differ from their defaults, as torch.nn prints them."""
        text = f"{self.input_size}, {self.hidden_size}"
        defaults: dict[str, Any] = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False}
        defaults |= {"dropout": 0.0, "zoneout": 0.0, "recurrent_dropout": 0.0}
        defaults |= {"bidirectional": False, "num_heads": 1, "backend": "auto", "recompute": False}
        for name, default in defaults.items():
            value = dict(value) if isinstance(value := getattr(self, name), Mapping) else value
            if value != default:
                text += f", {name}={value!r}" if isinstance(value, str) else f", {name}={value}"
        return text

    def _get_name(self) -> str:
        return type(self).__name__ if type(self) is not Layer else f"{self.cell.name}.layer"

    def initial_states(self, batch_size: int, like: Tensor) -> tuple[Tensor, ...]:
        """The states before the first time step, [L*D, B, H] each: zeros unless the cell differs."""
        made = []
        for state, shape in zip(self.cell.states, self._state_shapes(batch_size), strict=True):
            value = self.cell.initial.get(state, 0.0)
            if value == 0.0:
                made.append(torch.zeros(shape, dtype=like.dtype, device=like.device))
            else:
                made.append(torch.full(shape, float(value), dtype=like.dtype, device=like.device))  # type: ignore[arg-type]
        return tuple(made)

    def _state_shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        count = self.num_layers * self.num_directions
        widths = {"H": self.hidden_size, "P": self.proj_size}
        return [(count, batch_size, widths[self.cell.width(s)]) for s in self.cell.states]

    def forward(  # type: ignore[override]
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        reset: Tensor | PackedSequence | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        """Run the cell over a sequence.

        Args:
            input: [T, B, I]; [B, T, I] if `batch_first`; [T, I] for one sequence without a batch; or a
                PackedSequence, sorted or not.
            hx: the initial states, [L*D, B, H] each ([L*D, H] without a batch), the projected one P
                wide; a tensor if the cell has one state, else a tuple. None: zeros.
            reset: bool, [T, B] laid out as `input` ([B, T], [T], or packed alike): true where a new
                sequence starts, as at the first step of an episode. Nothing flows between that time step
                and the one before: before it the forward direction has its initial states again, which
                `hx` does not change, and so has the reverse direction when it comes from it. Costs one
                look at the values of `reset`, which torch.compile breaks its graph for.

        Returns:
            output: [T, B, D*H] (as `input`: batch-first, unbatched or packed): the last layer's
                output at every time step. Forward and reverse output are joined, forward first.
            states: as `hx`, after the last time step: entry k = layer * D + direction. For the
                reverse direction the last time step is t = 0.

        Raises:
            InputError: wrong number of dimensions or dtype.
            ShapeError: a size or device disagrees.
            BackendError: a backend was asked for by name and cannot run this.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, reset)
        if type(input) is Tensor and reset is None:
            made = quick.sequence(self, input, hx)
            if made is not None:
                return made
        proxy = tracing.leaf(self, input, hx, reset) if type(input) is not Tensor else None
        if proxy is not None:
            return proxy  # type: ignore[no-any-return]
        self._check_input(input)
        is_batched, batch_dim = input.dim() == 3, 0 if self.batch_first else 1
        mask = None if reset is None else arguments.checked_reset(reset, input.shape[:-1])
        if mask is not None and not is_batched:
            mask = mask.unsqueeze(batch_dim)
        if mask is not None and self.batch_first:
            mask = mask.T
        if not is_batched:
            input = input.unsqueeze(batch_dim)
        if self.batch_first:
            input = input.transpose(0, 1)
        if hx is None:
            states = self.initial_states(input.size(1), input)
        else:
            states = arguments.state_tuple(self.cell, hx, self._get_name())
            states = self._batched_states(states, is_batched)
            arguments.check_states(states, self._state_shapes(input.size(1)), self.cell, input)
        output, finals = self._run(self._case(input, states), mask)
        if self.batch_first:
            output = output.transpose(0, 1)
        if not is_batched:
            output = output.squeeze(batch_dim)
            finals = tuple(state.squeeze(1) for state in finals)
        return output, finals if len(finals) > 1 else finals[0]

    def _run(self, case: Case, reset: Tensor | None) -> Result:
        if reset is None:
            return self._run_drawn(case)
        run = resets.run
        if torch.compiler.is_compiling():
            from cellfuse.runtime.resets_in_graphs import run
        return run(
            case,
            reset,
            lambda batch: self.initial_states(batch, case.states[0]),
            self._run_drawn,
        )

    def _run_drawn(self, case: Case) -> Result:
        """Run a case with the masks it wants."""
        if self._masks is not None and self.training:
            case = self._masks.drawn(case)
        return choice.run(case, self.backend)

    def _forward_packed(
        self, packed: PackedSequence, hx: State | None, reset: Tensor | PackedSequence | None
    ) -> tuple[PackedSequence, State]:
        input, batch_sizes, sorted_indices, unsorted_indices = packed
        self._check_input(input, is_packed=True)
        mask = None if reset is None else arguments.packed_reset(reset, packed)
        batch_size = _batch_of(packed, hx)
        if hx is None:
            states = self.initial_states(batch_size, input)
        else:
            states = arguments.state_tuple(self.cell, hx, self._get_name())
            arguments.check_states(states, self._state_shapes(batch_size), self.cell, input)
            states = tuple(_take(state, sorted_indices) for state in states)
        output, finals = self._run(self._case(input, states, batch_sizes), mask)
        finals = tuple(_take(state, unsorted_indices) for state in finals)
        made = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return made, finals if len(finals) > 1 else finals[0]

    def step(
        self, x_t: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """One time step, for streaming: the same as `forward` on a sequence of one step.

        Args:
            x_t: [B, I], or [I] without a batch. `batch_first` does not matter: there is no time axis.
            state: as `hx` of `forward`, and as this method returns it. None: the initial states.
            reset: bool, [B], or [] without a batch: true where a new sequence starts with this step, which
                then has the initial states before it.

        Returns:
            y_t: [B, H] (P with a projection), or [H] without a batch.
            state: the new states, to be given to the next call.

        Raises:
            InputError: wrong number of dimensions, or a bidirectional layer, whose reverse direction
                needs the end of the sequence first.
            ShapeError: a size disagrees.
        """
        if self.bidirectional:
            raise InputError(
                f"{self._get_name()}.step: a bidirectional layer cannot run step by step, because its "
                "reverse direction starts at the last time step. Make it with bidirectional=False."
            )
        if not isinstance(x_t, Tensor) or x_t.dim() not in (1, 2):
            given = f"{x_t.dim()}D" if isinstance(x_t, Tensor) else type(x_t).__name__
            raise InputError(
                f"{self._get_name()}.step: expected x_t [B, I] or [I], got {given}. For a whole "
                "sequence call the layer itself."
            )
        if reset is not None:
            reset = arguments.checked_reset(reset, x_t.shape[:-1])
            state = None if state is None else self._started_anew(state, reset, x_t)
        made = streaming.step(self, x_t, state)
        if made is not None:
            return made
        time_dim = 1 if self.batch_first and x_t.dim() == 2 else 0
        output, new_state = self(x_t.unsqueeze(time_dim), state)
        return output.squeeze(time_dim), new_state

    def _started_anew(self, state: State, reset: Tensor, x_t: Tensor) -> State:
        """The states given, the initial ones where `reset` is true."""
        is_batched = x_t.dim() == 2
        states = self._batched_states(arguments.state_tuple(self.cell, state, self._get_name()), is_batched)
        batch = x_t.shape[0] if is_batched else 1
        arguments.check_states(states, self._state_shapes(batch), self.cell, x_t)
        initial, anew = self.initial_states(batch, states[0]), reset.to(x_t.device).view(-1, 1)
        made = tuple(torch.where(anew, *pair) for pair in zip(initial, states, strict=True))
        made = made if is_batched else tuple(value.squeeze(1) for value in made)
        return made if len(made) > 1 else made[0]

    def stepper(self, batch_size: int = 1) -> streaming.Stepper:
        """An object that runs one time step at a time and remembers the state: `y_t, state = stepper(x_t)`.

        For streaming on a CPU in float32 or float64, where it is quicker than `step`. It has no gradient
        and applies no dropout. The weights are copied when it is made; `stepper.refresh()` copies them
        again. `stepper.reset(rows)` puts the initial states of some sequences back, `stepper.state` reads
        and sets the states.

        Args:
            batch_size: B, the same at every step.

        Returns:
            The stepper. It takes x_t [B, I] and returns y_t [B, H] (P with a projection) and the states
            as `step` does; both are copies, which no later call changes.

        Raises:
            InputError: a bidirectional layer; at a call, a wrong dtype.
            BackendError: the weights are not float32 or float64 on a CPU.
            ShapeError: at a call, x_t is not [B, I].
        """
        return streaming.Stepper(self, batch_size)

    def why_not(self, input: Tensor | PackedSequence) -> dict[str, str]:
        """For every backend why it cannot run this input; empty text where it can.

        The first one that can is the one `backend="auto"` takes.
        """
        return choice.reasons(self._case_of(input))

    def plan(self, input: Tensor | PackedSequence) -> str:
        """Which backend runs this input and, on a GPU, by which kernels and why, as a line to be printed.

        Raises:
            BackendError: none can, or the one the layer was made with cannot.
        """
        return choice.plan(self._case_of(input), self.backend)

    def _case_of(self, input: Tensor | PackedSequence) -> Case:
        """The case of an input with initial states."""
        if isinstance(input, PackedSequence):
            value, sizes = input.data, input.batch_sizes
            return self._case(value, self.initial_states(int(sizes[0]), value), sizes)
        self._check_input(input)
        value = input if input.dim() == 3 else input.unsqueeze(0 if self.batch_first else 1)
        value = value.transpose(0, 1) if self.batch_first else value
        return self._case(value, self.initial_states(value.size(1), value))

    def _weights(self, block: Block) -> dict[str, Tensor]:
        known = self._parameters  # quicker than getattr, which also finds what stands for a parameter
        return {name: known.get(full) if full in known else getattr(self, full) for name, full in block.names}  # type: ignore[misc]

    def _checked_weights(self, block: Block) -> dict[str, Tensor]:
        """Weights of the right shapes: kernels believe them."""
        weights = self._weights(block)
        for slot, value in zip(block.slots, weights.values(), strict=True):
            if not isinstance(value, Tensor) or value.shape != slot.shape:
                given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ShapeError(
                    f"{self._get_name()}: {slot.name}{block.suffix} is {given}, expected {list(slot.shape)}"
                )
        return weights

    def _case(self, input: Tensor, states: tuple[Tensor, ...], batch_sizes: Tensor | None = None) -> Case:
        return Case(
            cell=self._cell_of(self.training),
            has_bias=self.bias,
            hidden_size=self.hidden_size,
            proj_size=self.proj_size,
            num_heads=self.num_heads,
            num_layers=self.num_layers,
            num_directions=self.num_directions,
            dropout=self.dropout if self.training else 0.0,
            weights=tuple(map(self._checked_weights, self._blocks())),
            input=input,
            states=states,
            batch_sizes=batch_sizes,
            recompute=self.recompute,
        )

    def _check_input(self, input: Tensor, is_packed: bool = False) -> None:
        name, first = self._get_name(), self._blocks()[0].names
        weight = getattr(self, first[0][1]) if first else None
        arguments.check_tensor(name, input)
        if not is_packed and input.dim() not in (2, 3):
            raise InputError(
                f"{name}: Expected input to be 2D or 3D, got {input.dim()}D instead. Give [T, B, I], "
                "[B, T, I] with batch_first=True, or [T, I] for one sequence."
            )
        if is_packed and input.dim() != 2:
            raise ShapeError(
                f"input must have 2 dimensions, got {input.dim()}: {name} takes a PackedSequence whose "
                "data is [N, I]"
            )
        if weight is not None:
            arguments.check_dtype(input, weight)
            arguments.check_features(name, input, self.input_size, weight, self.batch_first)

    def _batched_states(self, states: tuple[Tensor, ...], is_batched: bool) -> tuple[Tensor, ...]:
        """States with a batch axis; their number of dimensions follows the input's."""
        wanted, kind = (3, "batched 3-D") if is_batched else (2, "unbatched 2-D")
        if all(state.dim() == wanted for state in states):
            return states if is_batched else tuple(state.unsqueeze(1) for state in states)
        given = ", ".join(f"{state.dim()}-D" for state in states)
        if len(states) == 1:
            text = f"For {kind} input, hx should also be {wanted}-D but got {given} tensor"
        else:
            text = f"For {kind} input, hx and cx should also be {wanted}-D but got ({given}) tensors"
        shape = "[L*D, B, H]" if is_batched else "[L*D, H]"
        raise ShapeError(f"{text}: each state is {shape}")


def _frozen(zoneout: masks.Zoneout) -> masks.Zoneout:
    """The option, which a later change of the user's mapping does not change."""
    return dict(zoneout) if isinstance(zoneout, Mapping) else zoneout


# The names torch.nn gives its modes; some code reads `layer.mode`.
_MODES = {"rnn": "RNN_TANH", "rnn_relu": "RNN_RELU", "projected_lstm": "LSTM"}


def _batch_of(packed: PackedSequence, hx: Any) -> int:
    """B. torch.compile cannot look into the lengths, which there the kernel checks."""
    if not torch.compiler.is_compiling():
        arguments.check_batch_sizes(packed.batch_sizes, packed.data)
    elif packed.sorted_indices is not None:
        return packed.sorted_indices.shape[0]
    elif hx is not None:
        return (hx if isinstance(hx, Tensor) else hx[0]).shape[1]
    return int(packed.batch_sizes[0])


def _take(state: Tensor, indices: Tensor | None) -> Tensor:
    """Reorder the sequences of a state [L*D, B, H]."""
    return state if indices is None else state.index_select(1, indices)
