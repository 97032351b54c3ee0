"""Zhou et al. 2016, eq. 6: one gate f for reset and update; rows f n."""

import numpy as np


def sigmoid(a):
    return 0.5 * (1 + np.tanh(0.5 * a))


def reference(x, states, w):
    (h,) = states
    H = h.shape[1]
    R, d = w["weight_hh"], w.get("bias_hh", np.zeros(2 * H))
    outputs = []
    for x_t in x:
        xf, xn = np.split(x_t @ w["weight_ih"].T + w.get("bias_ih", 0), 2, axis=1)
        f = sigmoid(xf + h @ R[:H].T + d[:H])
        n = np.tanh(xn + (f * h) @ R[H:].T + d[H:])
        h = (1 - f) * h + f * n
        outputs.append(h)
    return np.stack(outputs), (h,)
