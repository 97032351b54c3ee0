"""Cho et al. 2014, Chung et al. 2014: n = tanh(W_n x + R_n (r * h)), the reset gate before the product."""

import numpy as np


def sigmoid(a):
    return 0.5 * (1 + np.tanh(0.5 * a))


def reference(x, states, w):
    (h,) = states
    H = h.shape[1]
    R, d = w["weight_hh"], w.get("bias_hh", np.zeros(3 * H))
    outputs = []
    for x_t in x:
        xr, xz, xn = np.split(x_t @ w["weight_ih"].T + w.get("bias_ih", 0), 3, axis=1)
        r = sigmoid(xr + h @ R[:H].T + d[:H])
        z = sigmoid(xz + h @ R[H : 2 * H].T + d[H : 2 * H])
        n = np.tanh(xn + (r * h) @ R[2 * H :].T + d[2 * H :])
        h = (1 - z) * n + z * h
        outputs.append(h)
    return np.stack(outputs), (h,)
