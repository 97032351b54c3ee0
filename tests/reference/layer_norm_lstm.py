"""Ba et al. 2016: layer normalisation of W x, of R h and of the new cell state; rows i f g o."""

import numpy as np


def sigmoid(a):
    return 0.5 * (1 + np.tanh(0.5 * a))


def normalise(a):
    return (a - a.mean(axis=1, keepdims=True)) / np.sqrt(a.var(axis=1, keepdims=True) + 1e-5)


def reference(x, states, w):
    h, c = states
    outputs = []
    for x_t in x:
        a = normalise(x_t @ w["weight_ih"].T) * w["gain_x"] + w.get("shift", 0)
        a = a + normalise(h @ w["weight_hh"].T) * w["gain_h"]
        i, f, g, o = np.split(a, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(normalise(c) * w["gain_c"] + w.get("shift_c", 0))
        outputs.append(h)
    return np.stack(outputs), (h, c)
