"""why_not: whether one of our kernels runs a layer on an input.

The reasons of every backend are `Layer.why_not`'s.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from cellfuse.errors import ConvertError
from cellfuse.nn.layer import Layer
from cellfuse.runtime import choice
from cellfuse.runtime.choice import BACKENDS


def why_not(layer: nn.Module, input: Tensor | PackedSequence) -> str:
    """Why no kernel of cellfuse's runs `layer(input)`; empty text where one does.

    Args:
        layer: a layer of cellfuse's.
        input: as the layer takes it. The reason is the one of its device's backend, "cuda" or "cpu";
            `layer.why_not(input)` has those of all.

    Raises:
        ConvertError: the layer is not one of cellfuse's.
    """
    if not isinstance(layer, Layer):
        raise ConvertError(
            f"why_not takes a layer of cellfuse's, got {type(layer).__name__}. `cf.convert` makes one of "
            "torch.nn.RNN, GRU and LSTM."
        )
    case = layer._case_of(input)
    name = "cuda" if case.input.is_cuda else "cpu"
    if layer.backend not in ("auto", name):
        return f"it was made with backend={layer.backend!r}"
    reason: str = choice.reasons(case)[name] if layer.backend == "auto" else BACKENDS[name].why_not(case)
    return reason
