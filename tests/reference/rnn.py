"""Elman 1990: h' = tanh(W x + b + R h + d)."""

import numpy as np


def reference(x, states, w):
    (h,) = states
    outputs = []
    for x_t in x:
        a = x_t @ w["weight_ih"].T + w.get("bias_ih", 0) + h @ w["weight_hh"].T + w.get("bias_hh", 0)
        h = np.tanh(a)
        outputs.append(h)
    return np.stack(outputs), (h,)
