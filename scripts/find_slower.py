"""Random cases in which cellfuse is slower than torch.nn: python scripts/find_slower.py --cases 300

Every case is checked against torch first, then both are timed in turn, and the medians compared. Prints the
share of slower cases and the worst ones.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

import torch

import cellfuse as cf


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 5, 10, 20, 50, 100], help="T")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--seconds", type=float, default=0.3, help="of timing a case, about")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    draw, found = random.Random(options.seed), []
    for number in range(options.cases):
        found.append(time_case(random_case(draw, options.steps), options.backend, options.seconds))
        if number % 20 == 19:
            print(f"  {number + 1} of {options.cases}: {summary(found)}", flush=True)
    print(summary(found))
    print("slowest (torch.nn's time over ours, ours in us):")
    for ratio, ours, text in sorted(found)[:25]:
        print(f"  {ratio:5.2f} {ours:9.0f} {text}")


def random_case(draw: random.Random, steps: list[int]) -> dict[str, Any]:
    """Sizes and options of one case."""
    H = draw.choice([1, 5, 16, 20, 32, 50, 64, 100, 128, 200, 256, 400, 512])
    return {
        "cell": draw.choice(["RNN", "GRU", "LSTM"]),
        "T": draw.choice(steps),
        "B": draw.choice([1, 1, 2, 4, 8, 16, 32, 64]),
        "I": draw.choice([1, 7, 16, 40, H, H, 256]),
        "H": H,
        "num_layers": draw.choice([1, 1, 1, 2, 3]),
        "bidirectional": draw.random() < 0.3,
        "batch_first": draw.random() < 0.3,
        "bias": draw.random() < 0.9,
        "sliced": draw.random() < 0.2,
        "hx": draw.random() < 0.3,
        "training": draw.random() < 0.5,
    }


def time_case(case: dict[str, Any], backend: str, budget: float) -> tuple[float, float, str]:
    """(torch's time over ours, ours in microseconds, the case as a text)."""
    names = ("num_layers", "bidirectional", "batch_first", "bias")
    options = {name: case[name] for name in names}
    theirs = getattr(torch.nn, case["cell"])(case["I"], case["H"], **options)
    ours = getattr(cf, case["cell"])(case["I"], case["H"], backend=backend, **options)
    ours.load_state_dict(theirs.state_dict())
    shape = (case["B"], case["T"]) if case["batch_first"] else (case["T"], case["B"])
    x = torch.randn(*shape, 2 * case["I"])[..., ::2] if case["sliced"] else torch.randn(*shape, case["I"])
    depth = case["num_layers"] * (1 + case["bidirectional"])
    state = torch.zeros(depth, 1, case["H"]).expand(-1, case["B"], -1)  # as of a learned initial state
    hx = None if not case["hx"] else (state, state) if case["cell"] == "LSTM" else state

    def run(layer: torch.nn.Module) -> torch.Tensor:
        if not case["training"]:
            with torch.no_grad():
                return layer(x, hx)[0]
        layer.zero_grad()
        output = layer(x, hx)[0]
        output.sum().backward()
        return output

    for _ in range(3):
        torch.testing.assert_close(run(ours), run(theirs), rtol=1e-3, atol=1e-4)
    if case["training"]:
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            scale = 1 + float(other.grad.abs().max())
            torch.testing.assert_close(mine.grad / scale, other.grad / scale, rtol=1e-3, atol=1e-4)
    samples: dict[torch.nn.Module, list[float]] = {ours: [], theirs: []}
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(samples[ours]) < 5:
        for layer, seconds in samples.items():
            start = time.perf_counter()
            run(layer)
            seconds.append(time.perf_counter() - start)
    mine, other = (statistics.median(seconds) for seconds in samples.values())
    return other / mine, mine * 1e6, " ".join(f"{name}={value}" for name, value in case.items())


def summary(found: list[tuple[float, float, str]]) -> str:
    """How many are slower, and the mean."""
    ratios = [ratio for ratio, *_ in found]
    slower, much = (sum(ratio < limit for ratio in ratios) / len(ratios) for limit in (0.97, 0.8))
    mean = statistics.geometric_mean(ratios)
    return f"{slower:.1%} below 0.97, {much:.1%} below 0.8, geometric mean {mean:.2f}"


if __name__ == "__main__":
    main()
