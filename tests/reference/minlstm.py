"""Feng et al. 2024, section 3.2: f' = f / (f + i), i' = i / (f + i), h' = f' h + i' n; rows f i n."""

import numpy as np


def reference(x, states, w):
    (h,) = states
    outputs = []
    for x_t in x:
        f, i, n = np.split(x_t @ w["weight_ih"].T + w.get("bias_ih", 0), 3, axis=1)
        f, i = 1 / (1 + np.exp(-f)), 1 / (1 + np.exp(-i))
        f, i = f / (f + i), i / (f + i)
        h = f * h + i * n
        outputs.append(h)
    return np.stack(outputs), (h,)
