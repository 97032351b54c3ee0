"""`resets.run` for a layer that torch.compile traces: the graph breaks there and says why.

A module of its own, because the decorator loads torch's whole compiler, more than a second.
"""

from __future__ import annotations

import torch

from cellfuse.runtime import resets

_WHY = "cellfuse: reset= cuts sequences by its values, which a compiled graph does not know"

run = torch.compiler.disable(resets.run, reason=_WHY)
