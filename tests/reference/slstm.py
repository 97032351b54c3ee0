"""Beck et al. 2024, eq. 8-17: exponential input gate, normaliser n, stabiliser m; rows i f z o, heads."""

import numpy as np


def heads(R, h):
    """Each head of h times its own block of R [H, H/N]."""
    H, K = R.shape
    parts = [h[:, k : k + K] @ R[k : k + K].T for k in range(0, H, K)]
    return np.concatenate(parts, axis=1)


def reference(x, states, w):
    h, c, n, m = states
    H = h.shape[1]
    outputs = []
    for x_t in x:
        a = x_t @ w["weight_ih"].T + w.get("bias_ih", 0)
        rows = [slice(k * H, (k + 1) * H) for k in range(4)]
        i, f, z, o = (a[:, k] + heads(w["weight_hh"][k], h) for k in rows)
        log_f = -np.logaddexp(0, -f)
        m_new = np.maximum(i, log_f + m)
        i, f, m = np.exp(i - m_new), np.exp(log_f + m - m_new), m_new
        c = f * c + i * np.tanh(z)
        n = f * n + i
        h = c / n / (1 + np.exp(-o))
        outputs.append(h)
    return np.stack(outputs), (h, c, n, m)
