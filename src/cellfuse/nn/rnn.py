"""RNN, GRU and LSTM: torch.nn's names and constructor arguments for three cells of the registry."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cellfuse.cells.gru import gru
from cellfuse.cells.lstm import lstm, projected_lstm
from cellfuse.cells.rnn import rnn, rnn_relu
from cellfuse.errors import OptionError
from cellfuse.nn.layer import Layer
from cellfuse.nn.masks import Zoneout


class RNN(Layer):
    """Simple recurrent network; in place of torch.nn.RNN. Arguments and results: see `Layer`.

    nonlinearity: "tanh" or "relu". Source: Elman 1990.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        zoneout: Zoneout = 0.0,
        recurrent_dropout: float = 0.0,
        backend: str = "auto",
        recompute: bool = False,
    ) -> None:
        cell = cell_of_nonlinearity(nonlinearity)
        options = (num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)
        own: dict[str, Any] = {
            "zoneout": zoneout,
            "recurrent_dropout": recurrent_dropout,
            "recompute": recompute,
        }
        super().__init__(cell, input_size, hidden_size, *options, backend=backend, **own)
        self.nonlinearity = nonlinearity


class GRU(Layer):
    """Gated recurrent unit; in place of torch.nn.GRU. Arguments and results: see `Layer`.

    Source: Cho et al. 2014, arXiv:1406.1078; the reset gate acts after the recurrent product.
    """

    def __init__(
        self,
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
        zoneout: Zoneout = 0.0,
        recurrent_dropout: float = 0.0,
        backend: str = "auto",
        recompute: bool = False,
    ) -> None:
        options = (num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)
        own: dict[str, Any] = {
            "zoneout": zoneout,
            "recurrent_dropout": recurrent_dropout,
            "recompute": recompute,
        }
        super().__init__(gru, input_size, hidden_size, *options, backend=backend, **own)


class LSTM(Layer):
    """Long short-term memory; in place of torch.nn.LSTM. Arguments and results: see `Layer`.

    States are (h, c). With proj_size=P, h is P wide and c stays H wide.
    Source: Hochreiter & Schmidhuber 1997; Gers et al. 2000; projection: Sak et al. 2014.
    """

    def __init__(
        self,
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
        zoneout: Zoneout = 0.0,
        recurrent_dropout: float = 0.0,
        backend: str = "auto",
        recompute: bool = False,
    ) -> None:
        cell = projected_lstm if proj_size else lstm
        options = (num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)
        own: dict[str, Any] = {
            "zoneout": zoneout,
            "recurrent_dropout": recurrent_dropout,
            "recompute": recompute,
        }
        super().__init__(cell, input_size, hidden_size, *options, backend=backend, **own)

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, ...]:
        """The shape of c, as torch.nn.LSTM's method gives it."""
        batch = self.get_expected_hidden_size(input, batch_sizes)[1]
        return self._state_shapes(batch)[1]


def cell_of_nonlinearity(nonlinearity: str) -> Any:
    """The simple recurrent cell with this non-linearity."""
    cells = {"tanh": rnn, "relu": rnn_relu}
    if nonlinearity not in cells:
        raise OptionError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return cells[nonlinearity]
