"""The CPU taken for a GPU whose kernels the emulator runs, and layers on it beside the eager formula."""

import pytest
import torch

import cellfuse as cf
from compare import OPTIONS
from gpu.emulator.launcher import WHY_NOT, Emulator

emulated = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


class Emulated(Emulator):
    """All CTAs find room."""

    def fits(self, kernel, entry, blocks):
        return True


class Noted(Emulated):
    """Notes the launches of whole loops, and may change them."""

    def __init__(self, change=lambda text, arguments: (text, arguments)):
        super().__init__()
        self.launched, self.change = [], change

    def launch(self, kernel, entry, grid, arguments, shared_bytes=None):
        self.launched.append((entry, grid))
        names = [parameter.name for parameter in kernel.parameters]
        text, given = self.change(kernel.text, dict(zip(names, arguments, strict=True)))
        object.__setattr__(kernel, "text", text)
        super().launch(kernel, entry, grid, list(given.values()), shared_bytes)


def pair(name, *sizes, **options):
    options = {"dtype": torch.float64} | OPTIONS.get(name, {}) | options
    make = cf.cells.find(name).layer
    ours, eager = make(*sizes, backend="cuda", **options), make(*sizes, backend="eager", **options)
    eager.load_state_dict(ours.state_dict())
    return ours, eager


def results(layer, x, states=None, more=()):
    """Output, final states, the gradients of parameters, of initial states and of what more there is."""
    output, finals = layer(x, states)
    output = output.data if isinstance(output, torch.nn.utils.rnn.PackedSequence) else output
    finals = finals if isinstance(finals, tuple) else (finals,)
    generator = torch.Generator().manual_seed(0)
    loss = sum(
        (v * torch.randn(v.shape, dtype=torch.float64, generator=generator).to(v.dtype)).sum()
        for v in (output, *finals)
    )
    given = () if states is None else states if isinstance(states, tuple) else (states,)
    leaves = [*layer.parameters(), *given, *more]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [output, *finals, *grads]
