"""Turn lines of `cellfuse bench --json FILE` into a page and a picture.

`python scripts/draw_benchmarks.py FILE ... ` writes benchmarks/RESULTS.md and docs/speed.svg, which
the guide holds, too. Of lines about the same machine, case, pass and number of threads the last one counts;
the picture is of the machine that comes first.
"""

import json
import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "cellfuse"
import matplotlib.pyplot as plt  # noqa: E402

from cellfuse.bench.cases import CASES, FAMILIES, HEART, SHAPES  # noqa: E402

ROOT = Path(__file__).parents[1]
PASSES = ("inference", "training")
COLOURS = {"lstm": "#0072b2", "gru": "#d55e00", "rnn": "#009e73"}
HEARTS = {f"{cell}/T{T}-B{B}-H{H}" for cell in HEART for T, B, H in SHAPES}  # the 48, less their passes
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
# What the page says of each family, and the unit of its figures.
CHAPTERS = {
    "": ("Every cell, small", "Milliseconds of our layer; the others' time over ours.", "ms"),
    "ragged": ("Packed sequences", "Lengths from T/4 to T.", "ms"),
    "directions": (
        "Two directions",
        "Milliseconds of our bidirectional layer; the others' time over ours.",
        "ms",
    ),
    "reset": (
        "Episodes that start inside a window",
        "`layer(x, reset=mask)`, true at one time step in fifty. *torch.nn*: its layer in a loop over "
        "time, as without such a mask. *loop*: the same pieces by our eager backend.",
        "ms",
    ),
    "stream": (
        "Streaming",
        "`layer.step` at each time step, beside `layer.stepper`, torch.nn's layer at T = 1 and its cell.",
        "us/step",
    ),
    "custom": (
        "Cells of a user's own",
        "A peephole LSTM and one invented for this, both with the LSTM's products. *our LSTM*: the time "
        "of our own LSTM kernel over theirs.",
        "ms",
    ),
    "zoneout": (
        "Zoneout",
        "Training with a mask for every time step. *torch.nn cell*: torch.nn.LSTMCell in a loop over time, "
        "with the same masks.",
        "ms",
    ),
    "linear": (
        "Cells without a recurrent matrix",
        "*our input product*: the time of W x + b for all time steps, by torch, over that of our layer. "
        "What is missing to 1 is all that a parallel scan over time could gain.",
        "ms",
    ),
    "bf16": (
        "bfloat16",
        "Weights, input and output in bfloat16 for all. *our float32*: our layer in float32.",
        "ms",
    ),
    "memory": (
        "Memory",
        "Peak MiB that a forward and backward pass borrows from torch's allocator; the others' over ours.",
        "MiB",
    ),
    "accuracy": (
        "Accuracy at T = 1000",
        "Largest relative error against float64 over outputs, states and gradients; torch.nn's (the loop's) "
        "error over ours for the result where ours is worst. At least 0.5 is required.",
        "error",
    ),
}


def read(files):
    """For each processor its lines by (case, pass, threads)."""
    lines = [json.loads(text) for file in files for text in Path(file).read_text().splitlines()]
    wrong = [line["case"] for line in lines if line["wrong"]]
    if wrong:
        raise SystemExit(f"these cases were wrong and must not be published: {', '.join(wrong)}")
    versions = {line["torch"] for line in lines}
    if len(versions) != 1:
        raise SystemExit(f"the lines are of different versions of torch: {sorted(versions)}")
    unknown = {line["case"] for line in lines} - CASES.keys()
    if unknown:
        raise SystemExit(f"these cases do not exist any more: {', '.join(sorted(unknown))}")
    found = {}
    for line in lines:
        found.setdefault(line["processor"], {})[line["case"], line["pass"], line["threads"]] = line
    return found


def mean(ratios):
    """Geometric mean."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def text_of(ratio, least=1.0):
    """A ratio; bold below what it should be."""
    return f"{ratio:.2f}" if ratio >= least else f"**{ratio:.2f}**"


def title(threads):
    """Of a number of threads."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def heart(lines, threads):
    """(shape, lines of each cell's passes) of the 48 cases."""
    for T, B, H in SHAPES:
        row = [[lines.get((f"{cell}/T{T}-B{B}-H{H}", kind, threads)) for kind in PASSES] for cell in HEART]
        yield (T, B, H), [[line for line in pair if line] for pair in row]


def share(line, shape, cell):
    """How much of the multiply-add roof a pass reaches: the arithmetic of its matrix products alone."""
    T, B, H = shape
    operations = 2 * T * B * 2 * H * GATES[cell] * H * (1 if line["pass"] == "inference" else 3)
    return operations / line["times"]["cellfuse"]["median"] / 1e9 / line["roof"]["fma"]


def heart_tables(lines, threads):
    """The Markdown tables of the three cells."""
    rows, every = list(heart(lines, threads)), []
    head = ["| T, B, I = H | LSTM | GRU | RNN |", "|---|---|---|---|"]
    text = [f"#### {title(threads)}", "", *head]
    for (T, B, H), row in rows:
        ratios = [[line["ratios"]["torch.nn"] for line in pair] for pair in row]
        every += [ratio for pair in ratios for ratio in pair]
        text.append(f"| {T}, {B}, {H} | {' | '.join(' / '.join(map(text_of, pair)) for pair in ratios)} |")
    if not every:
        return []
    slower = sum(ratio < 1 for ratio in every)
    text += ["", f"Geometric mean of the {len(every)}: {mean(every):.2f}; below 1: {slower}."]
    if all("roof" in line for _, row in rows for pair in row for line in pair):
        text += ["", "Share of the multiply-add roof, percent:", "", *head]
        for shape, row in rows:
            shares = [
                " / ".join(f"{100 * share(line, shape, cell):.0f}" for line in pair)
                for cell, pair in zip(HEART, row, strict=True)
            ]
            text.append(f"| {', '.join(map(str, shape))} | {' | '.join(shares)} |")
    return [*text, ""]


def roofs(lines):
    """The machine's limits, one row for each number of threads."""
    found = {line["threads"]: line["roof"] for line in lines.values() if "roof" in line}
    if not found:
        return []
    levels = list(next(iter(found.values()))["read"])
    says = "Measured in the same runs: multiply-adds at full vector width, GFLOP/s; torch.mm of 1024 x 1024 "
    text = ["### The machine", "", says + "matrices; reading, GB/s, each thread from memory of its own."]
    text += ["", f"| threads | multiply-adds | torch.mm float32 | bfloat16 | {' | '.join(levels)} |"]
    text.append("|---" * (4 + len(levels)) + "|")
    for threads, roof in sorted(found.items()):
        rates = [roof["fma"], roof["sgemm"], roof["bf16 gemm"], *roof["read"].values()]
        text.append(f"| {threads} | {' | '.join(f'{rate:.0f}' for rate in rates)} |")
    return [*text, ""]


def figure(line, case, unit):
    """Our figure in the chapter's unit."""
    value = line["times"]["cellfuse"]["median"]
    if unit == "error":
        return f"{value:.1e}"
    return f"{value * {'ms': 1e3, 'us/step': 1e6 / case.T, 'MiB': 2.0**-20}[unit]:.3g}"


def chapter(lines, family):
    """The Markdown tables of one family, one for each number of threads."""
    name, says, unit = CHAPTERS[family]
    mine = {k: line for k, line in lines.items() if CASES[k[0]].family == family and k[0] not in HEARTS}
    text = [f"### {name}", "", says, ""] if mine else []
    for threads in sorted({threads for _, _, threads in mine}):
        found = {key: line for key, line in mine.items() if key[2] == threads}
        others = list(dict.fromkeys(other for line in found.values() for other in line["ratios"]))
        text += [f"{title(threads)}:", "", f"| case | pass | backend | {unit} | {' | '.join(others)} |"]
        text.append("|---" * (4 + len(others)) + "|")
        for (case, kind, _), line in sorted(found.items()):
            least = {other: 0.0 if other.startswith("our") else 1.0 for other in others}
            if family == "accuracy":
                least = dict.fromkeys(others, 0.5)
            ratios = [(other, line["ratios"].get(other)) for other in others]
            cells = " | ".join("" if r is None else text_of(r, least[other]) for other, r in ratios)
            ours = figure(line, CASES[case], unit)
            text.append(f"| {case} | {kind} | {line['backend']} | {ours} | {cells} |")
        text.append("")
    return text


def picture(lines, path):
    """Bars: torch.nn's time over ours, a row for each number of threads, on a logarithmic axis from 1."""
    counts = sorted({threads for case, _, threads in lines if case in HEARTS})
    size = (11, 0.6 + 3.6 * len(counts))
    drawn, axes = plt.subplots(len(counts), 2, figsize=size, sharey=True, squeeze=False, layout="constrained")
    names = [", ".join(map(str, shape)) for shape in SHAPES]
    for row, threads in zip(axes, counts, strict=True):
        for axis, kind in zip(row, PASSES, strict=True):
            for k, cell in enumerate(HEART):
                found = [lines.get((f"{cell}/T{T}-B{B}-H{H}", kind, threads)) for T, B, H in SHAPES]
                bars = [(place, line["ratios"]["torch.nn"]) for place, line in enumerate(found) if line]
                places = [place + (k - 1) * 0.27 for place, _ in bars]
                heights = [ratio - 1 for _, ratio in bars]
                axis.bar(places, heights, 0.25, bottom=1, color=COLOURS[cell], label=cell.upper())
            axis.axhline(1, color="#444444", linewidth=1)
            axis.set(yscale="log", title=f"{kind}, {title(threads)}", xlabel="T, B, I = H")
            axis.set_xticks(range(len(SHAPES)), names, rotation=35, ha="right")
            axis.set_yticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
            axis.minorticks_off()
            axis.grid(axis="y", alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("torch.nn's time / cellfuse's")
    axes[0][1].legend(frameon=False)
    drawn.savefig(path, metadata={"Date": None})


def machine(processor, lines):
    """The chapters of one machine."""
    line = next(iter(lines.values()))
    commits = sorted({str(each["commit"]) for each in lines.values()})
    dates = sorted({each["date"] for each in lines.values()})
    text = [
        f"## {processor}",
        "",
        f"torch {line['torch']}, commit {', '.join(commits)}, {', '.join(dates)}.",
        "",
    ]
    text += [*roofs(lines), "### Against torch.nn", ""]
    text += ["torch.nn's time over ours, float32, inference / training with all gradients.", ""]
    for threads in sorted({threads for _, _, threads in lines}):
        text += heart_tables(lines, threads)
    for family in FAMILIES:
        text += chapter(lines, family)
    return text


def main(files):
    """Write the page and the picture."""
    machines = read(files)
    text = ["# Results", "", "Made by `scripts/draw_benchmarks.py` from the lines in `benchmarks/results/`."]
    text += ["Ratios are the other's figure over ours; below 1, where ours is worse, they are bold.", ""]
    text += [f"![torch.nn's time over ours for eight sizes, {next(iter(machines))}](../docs/speed.svg)", ""]
    for processor, lines in machines.items():
        text += machine(processor, lines)
    (ROOT / "benchmarks" / "RESULTS.md").write_text("\n".join(text), encoding="utf-8")
    for folder in ("docs", "docs/en/pictures", "docs/zh/pictures"):
        picture(next(iter(machines.values())), ROOT / folder / "speed.svg")


if __name__ == "__main__":
    main(sys.argv[1:])
