"""Gers et al. 2002: i and f see c, o sees the new c; rows i f g o."""

import numpy as np


def sigmoid(a):
    return 0.5 * (1 + np.tanh(0.5 * a))


def reference(x, states, w):
    h, c = states
    outputs = []
    for x_t in x:
        a = x_t @ w["weight_ih"].T + w.get("bias_ih", 0) + h @ w["weight_hh"].T + w.get("bias_hh", 0)
        i, f, g, o = np.split(a, 4, axis=1)
        i, f = sigmoid(i + w["p_i"] * c), sigmoid(f + w["p_f"] * c)
        c = f * c + i * np.tanh(g)
        h = sigmoid(o + w["p_o"] * c) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs), (h, c)
