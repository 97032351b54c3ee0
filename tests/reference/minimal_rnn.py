"""Chen 2017: z = tanh(W x), u = sigmoid(R_u h + R_v z), h' = u h + (1 - u) z; rows u v of R."""

import numpy as np


def reference(x, states, w):
    (h,) = states
    H = h.shape[1]
    d = w.get("bias_hh", np.zeros(2 * H))
    outputs = []
    for x_t in x:
        z = np.tanh(x_t @ w["weight_ih"].T + w.get("bias_ih", 0))
        a = h @ w["weight_hh"][:H].T + z @ w["weight_hh"][H:].T + d[:H] + d[H:]
        u = 1 / (1 + np.exp(-a))
        h = u * h + (1 - u) * z
        outputs.append(h)
    return np.stack(outputs), (h,)
