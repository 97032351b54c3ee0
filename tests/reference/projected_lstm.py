"""Sak et al. 2014: the hidden state is a projection of o * tanh(c); rows i f g o."""

import numpy as np


def sigmoid(a):
    return 0.5 * (1 + np.tanh(0.5 * a))


def reference(x, states, w):
    h, c = states
    outputs = []
    for x_t in x:
        a = x_t @ w["weight_ih"].T + w.get("bias_ih", 0) + h @ w["weight_hh"].T + w.get("bias_hh", 0)
        i, f, g, o = np.split(a, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = (sigmoid(o) * np.tanh(c)) @ w["weight_hr"].T
        outputs.append(h)
    return np.stack(outputs), (h, c)
