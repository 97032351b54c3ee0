"""Turn lines of `cellfuse bench --json FILE` into a table and a picture.

`python scripts/draw_benchmarks.py FILE ... ` writes benchmarks/RESULTS.md and docs/speed.svg, which
the guide holds, too. Of lines about the same case, pass and number of threads the last one counts.
"""

import json
import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "cellfuse"
import matplotlib.pyplot as plt  # noqa: E402

from cellfuse.bench.cases import HEART, SHAPES  # noqa: E402

ROOT = Path(__file__).parents[1]
PASSES = ("inference", "training")
COLOURS = {"lstm": "#0072b2", "gru": "#d55e00", "rnn": "#009e73"}


def read(files):
    """The lines by (case, pass, threads), and the facts all share."""
    lines = [json.loads(text) for file in files for text in Path(file).read_text().splitlines()]
    wrong = [line["case"] for line in lines if line["wrong"]]
    if wrong:
        raise SystemExit(f"these cases were wrong and must not be published: {', '.join(wrong)}")
    facts = {(line["processor"], line["torch"]) for line in lines}
    if len(facts) != 1:
        raise SystemExit(f"the lines are of different machines or versions of torch: {sorted(facts)}")
    return {(line["case"], line["pass"], line["threads"]): line for line in lines}


def mean(ratios):
    """Geometric mean."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def heart(lines, threads, other="torch.nn"):
    """Rows of (shape, ratio of each cell and pass) and all their ratios."""
    rows, every = [], []
    for T, B, H in SHAPES:
        row = []
        for cell in HEART:
            found = [lines.get((f"{cell}/T{T}-B{B}-H{H}", kind, threads)) for kind in PASSES]
            ratios = [line["ratios"][other] for line in found if line]
            every += ratios
            row.append(" / ".join(f"{ratio:.2f}" for ratio in ratios))
        rows.append((f"{T}, {B}, {H}", row))
    return rows, every


def table(lines, threads):
    """The Markdown table of the three cells."""
    rows, every = heart(lines, threads)
    text = [f"### {threads} thread{'s' if threads > 1 else ''}", ""]
    text += ["| T, B, I = H | LSTM | GRU | RNN |", "|---|---|---|---|"]
    text += [f"| {name} | {' | '.join(row)} |" for name, row in rows]
    slower = sum(ratio < 1 for ratio in every)
    text += ["", f"Geometric mean of the {len(every)}: {mean(every):.2f}; below 1: {slower}.", ""]
    return text


def others(lines):
    """The Markdown table of everything else that was measured."""
    text = ["| case | pass | backend | ms | torch.nn / ours | torch.nn cell / ours | loop / ours |"]
    text += ["|---|---|---|---|---|---|---|"]
    known = {f"{cell}/T{T}-B{B}-H{H}" for cell in HEART for T, B, H in SHAPES}
    for (case, kind, threads), line in sorted(lines.items()):
        if case in known or threads != 1:
            continue
        ratios = [line["ratios"].get(other) for other in ("torch.nn", "torch.nn cell", "loop")]
        cells = " | ".join("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        milliseconds = line["times"]["cellfuse"]["median"] * 1e3
        text.append(f"| {case} | {kind} | {line['backend']} | {milliseconds:.3g} | {cells} |")
    return [*text, ""]


def picture(lines, path):
    """Bars: torch.nn's time over ours, one thread, on a logarithmic axis with 1 as its base."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    names = [f"{T}, {B}, {H}" for T, B, H in SHAPES]
    for axis, kind in zip(axes, PASSES, strict=True):
        for k, cell in enumerate(HEART):
            found = [lines[f"{cell}/T{T}-B{B}-H{H}", kind, 1]["ratios"]["torch.nn"] for T, B, H in SHAPES]
            places = [place + (k - 1) * 0.27 for place in range(len(SHAPES))]
            heights = [ratio - 1 for ratio in found]
            axis.bar(places, heights, 0.25, bottom=1, color=COLOURS[cell], label=cell.upper())
        axis.axhline(1, color="#444444", linewidth=1)
        axis.set(yscale="log", title=f"{kind}, one thread", xlabel="T, B, I = H")
        axis.set_xticks(range(len(SHAPES)), names, rotation=35, ha="right")
        axis.set_yticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
        axis.minorticks_off()
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("torch.nn's time / cellfuse's")
    axes[1].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main(files):
    """Write the page and the picture."""
    lines = read(files)
    line = next(iter(lines.values()))
    text = ["# Results", "", "Made by `scripts/draw_benchmarks.py` from the lines in `benchmarks/results/`."]
    text += [f"{line['processor']}, torch {line['torch']}, commit {line['commit']}, {line['date']}.", ""]
    text += ["![torch.nn's time over ours for eight sizes](../docs/speed.svg)", "", "## Against torch.nn", ""]
    text += ["torch.nn's time over ours, float32, inference / training with all gradients.", ""]
    for threads in sorted({threads for _, _, threads in lines}):
        text += table(lines, threads)
    text += ["## Other cases, one thread", "", *others(lines)]
    (ROOT / "benchmarks" / "RESULTS.md").write_text("\n".join(text), encoding="utf-8")
    for folder in ("docs", "docs/en/pictures", "docs/zh/pictures"):
        picture(lines, ROOT / folder / "speed.svg")


if __name__ == "__main__":
    main(sys.argv[1:])
