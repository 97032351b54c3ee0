"""Compare cellfuse's RNN, GRU and LSTM with torch.nn: outputs, states and every gradient, all options.

`python scripts/parity.py` prints the number of cases and the largest difference per backend.
"""

import itertools

import torch

import cellfuse as cf

T, B, I, H = 6, 3, 4, 5
# Sorting them is not its own inverse, so that sorted and unsorted are told apart.
LENGTHS = torch.tensor([2, 6, 4])


def cases():
    """Every combination of options: (class name, constructor options, form of the input)."""
    for name, layers, directions, batch_first, bias, form, proj in itertools.product(
        ("RNN", "GRU", "LSTM"), (1, 3), (1, 2), (False, True), (True, False),
        ("batched", "unbatched", "packed"), (0, 3),
    ):  # fmt: skip
        options = {"num_layers": layers, "bidirectional": directions == 2}
        options |= {"batch_first": batch_first, "bias": bias, "dropout": 0.0}
        if name == "RNN":
            yield name, options | {"nonlinearity": ("tanh", "relu")[bool(proj)]}, form
        elif name == "LSTM":
            yield name, options | {"proj_size": proj}, form
        elif not proj:
            yield name, options, form


def values(layer, form, seed, dtype):
    """Outputs, states and all gradients of one layer on seeded data."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    batch = () if form == "unbatched" else (B,)
    shape = (B, T, I) if layer.batch_first and batch else (T, *batch, I)
    x = draw(*shape).requires_grad_()
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    states = [draw(count, *batch, layer.proj_size or H).requires_grad_()]
    if isinstance(layer, torch.nn.LSTM | cf.LSTM):
        states.append(draw(count, *batch, H).requires_grad_())
    input = x
    if form == "packed":
        input = torch.nn.utils.rnn.pack_padded_sequence(
            x, LENGTHS, batch_first=layer.batch_first, enforce_sorted=False
        )
    output, finals = layer(input, tuple(states) if len(states) > 1 else states[0])
    output = output.data if form == "packed" else output
    results = [output, *(finals if isinstance(finals, tuple) else (finals,))]
    loss = sum((result * draw(*result.shape)).sum() for result in results)
    wanted = [x, *states, *layer.parameters()]
    return [*results, *torch.autograd.grad(loss, wanted)]


def compare(name, options, form, backend, seeds=range(6)):
    """(largest float64 difference, float32 error against float64 over twice torch's).

    The float32 error of a seed is the largest over outputs, states and gradients of |error| / |value|,
    both as Euclidean norms; it is averaged over the seeds, because in small tensors a single one is
    often off by one rounding or none.
    """
    exact, errors = 0.0, {"ours": 0.0, "theirs": 0.0}
    for seed in seeds:
        torch.manual_seed(seed)
        theirs = getattr(torch.nn, name)(I, H, dtype=torch.float64, **options)
        ours = getattr(cf, name)(I, H, dtype=torch.float64, backend=backend, **options)
        ours.load_state_dict(theirs.state_dict())
        want = values(theirs, form, seed, torch.float64)
        got = values(ours, form, seed, torch.float64)
        exact = max(exact, *(distance(a, b, 1.0) for a, b in zip(got, want, strict=True)))
        for who, layer in (("ours", ours), ("theirs", theirs)):
            low = values(layer.float(), form, seed, torch.float32)
            pairs = zip(low, want, strict=True)
            errors[who] += max(distance(a, b, b.norm().item() + 1e-30) for a, b in pairs)
    return exact, errors["ours"] / (2 * errors["theirs"])


def distance(value, truth, scale):
    """Norm of the difference, in units of `scale`."""
    return (value - truth).norm().item() / scale


def main():
    """Print one line per backend."""
    for backend in ("cpu", "aten", "eager"):
        found = [compare(*case, backend) for case in cases()]
        exact, ratio = (max(column) for column in zip(*found, strict=True))
        print(
            f"{backend:<6} {len(found)} cases: largest float64 difference {exact:.1e}; "
            f"float32 error at most {ratio:.2f} of what is allowed (twice torch's own)"
        )


if __name__ == "__main__":
    main()
