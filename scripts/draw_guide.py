"""Draw the guide's pictures into docs/en/pictures and docs/zh/pictures.

`python scripts/draw_guide.py` writes both languages. Equations, states, sizes and every arrow are read from
`cf.explain`, so a picture cannot say anything else than the code; a test draws the SVGs again and compares.
gates.png is what the code of the page docs/en/gates.md draws.
"""

import os
import re
import shutil
import tempfile
from html import escape
from pathlib import Path

import cellfuse as cf

DOCS = Path(__file__).parents[1] / "docs"
WORDS = {
    "en": {
        "in": "input",
        "out": "output",
        "layer": "layer {}",
        "forward": "forward →",
        "reverse": "← reverse",
        "x": "x, the input of this time step",
        "y": "output y of this time step",
        "before": "states of the step before",
        "after": "states for the next step",
        "joined": "→ | ←  both outputs of one time step, side by side: forward | reverse",
        "first": "first states",
        "last": "last states",
    },
    "zh": {
        "in": "输入 input",
        "out": "输出 output",
        "layer": "第 {} 层",
        "forward": "正向 →",
        "reverse": "← 反向",
        "x": "x，当前时间步的输入",
        "y": "当前时间步的输出 y",
        "before": "上一步的状态",
        "after": "传给下一步的状态",
        "joined": "→ | ←  同一时间步的两个输出并排：正向 | 反向",
        "first": "初始状态",
        "last": "最后的状态",
    },
}
STYLE = """
text { font-family: 'DejaVu Sans', 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', sans-serif;
font-size: 13px; fill: #1b2733 }
.mono { font-family: 'DejaVu Sans Mono', Menlo, Consolas, monospace; white-space: pre }
.tiny { font-size: 12px; fill: #44525f } .head { font-size: 15px; font-weight: bold }
.cell { fill: #dceaf7; stroke: #2c6ea6; stroke-width: 1.4 } .cell.d1 { fill: #ecdff5; stroke: #7a3aa0 }
.box { fill: #f4f7fa; stroke: #8a98a5 } .end { fill: #fff3e0; stroke: #b86e00; stroke-width: 1.6 }
.d0 { stroke: #2c6ea6 } .d1 { stroke: #7a3aa0 } .d0, .d1, .up { stroke-width: 1.6 }
path.d0, path.d1, path.up { fill: none }
path.d1 { stroke-dasharray: 6 3 } path.up { stroke: #44525f; stroke-width: 1.3 }
""".strip()
COLOURS = {"d0": "#2c6ea6", "d1": "#7a3aa0", "up": "#44525f"}
STEP, CELL_W, CELL_H = 150, 54, 34
COLUMNS = ("0", "1", "…", "T−1")


def head(width, height, label):
    """The start of an SVG: size, name, style, one arrow head for each colour."""
    made = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
    made += f'aria-label="{escape(label)}">\n<title>{escape(label)}</title>\n<style>{STYLE}</style>\n<defs>'
    for name, colour in COLOURS.items():
        made += f'<marker id="{name}" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8" '
        made += 'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" '
        made += f'fill="{colour}"/></marker>'
    return made + f'</defs>\n<rect width="{width}" height="{height}" fill="#ffffff"/>'


def text(x, y, content, kind="", anchor="start"):
    """One line of text."""
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def box(x, y, width, height, kind, content=""):
    """A box around (x, y) with a name inside."""
    made = f'<rect x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width}" height="{height}" rx="5" '
    return made + f'class="{kind}"/>' + (text(x, y + 4.5, content, "mono", "middle") if content else "")


def arrow(kind, *points):
    """An arrow through points."""
    line = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<path class="{kind}" d="M{line.replace(" ", " L")}" marker-end="url(#{kind})"/>'


def one_cell(lang):
    """The LSTM's equations in a box, its states through it from left to right."""
    words, facts = WORDS[lang], cf.explain(cf.LSTM(10, 20))
    rows = [(f"{e.left} = {e.right}", getattr(e, lang)) for e in facts.equations]
    left, right, top, gap = 190, 790, 70, 30
    bottom = top + gap * len(rows) + 22
    made = [head(980, bottom + 80, f"{words['before']}; {words['after']}")]
    size = f'width="{right - left}" height="{bottom - top}"'
    made.append(f'<rect x="{left}" y="{top}" {size} rx="8" class="cell"/>')
    for k, (equation, meaning) in enumerate(rows):
        y = top + 30 + gap * k
        made += [text(left + 20, y, equation, "mono"), text(left + 330, y, meaning, "tiny")]
    for k, state in enumerate(facts.states):
        y = bottom - 34 - 60 * (len(facts.states) - 1 - k)
        made += [arrow("d0", (left - 60, y), (left, y)), text(left - 84, y + 5, state, "mono")]
        made += [arrow("d0", (right, y), (right + 60, y)), text(right + 68, y + 5, f"{state}′", "mono")]
    y = bottom - 34 - 60 * len(facts.states) + 24
    made += [text(left - 16, y, words["before"], "tiny", "end"), text(right + 16, y, words["after"], "tiny")]
    middle = (left + right) / 2
    made.append(arrow("up", (middle, bottom + 44), (middle, bottom)))
    made.append(text(middle + 12, bottom + 44, words["x"], "tiny"))
    made.append(arrow("up", (middle, top), (middle, top - 40)))
    made.append(text(middle + 12, top - 32, f"{words['y']} = {facts.output_states[0]}′", "tiny"))
    return "\n".join([*made, "</svg>", ""])


def layers(lang, layer):
    """A layer over time, every arrow of `wiring` drawn at every time step."""
    words, facts = WORDS[lang], cf.explain(layer)
    L, D = facts.sizes["L"], facts.sizes["D"]
    floor, block = 46 * D + (64 if D == 2 else 20), 0
    height = 184 + floor * L
    width = 330 + STEP * len(COLUMNS)
    block = height - 96

    def column(t):
        return 190 + STEP * t + STEP / 2

    def place(l, d, t):
        """Middle of a cell; the reverse direction stands to the right of the forward one and higher."""
        return column(t) + (0, 30 * (2 * d - 1))[D == 2], block - 40 - floor * l - 50 * d

    def joined(l):
        return block - 40 - floor * l - 100

    shapes = {fact.name: f"[{', '.join(fact.letters)}]" for fact in facts.tensors}
    top = joined(L - 1) if D == 2 else block - 40 - floor * L - 14
    made = [head(width, height, facts.title)]
    for t, name in enumerate(COLUMNS):
        made.append(box(column(t), block + 24, 76, 28, "box", f"x[{name}]"))
        made.append(text(column(t), block + 60, f"t = {name}" if name != "…" else name, "tiny", "middle"))
        made.append(box(column(t), top, 116 if D == 2 else 92, 28, "end", f"output[{name}]"))
        for l in range(L - 1) if D == 2 else ():
            made.append(box(column(t), joined(l), 116, 26, "box", "→  |  ←"))
    for l in range(L - 1):  # the box between two layers stands for an arrow from each to each
        both = {(f"c/{l}/{a}", f"c/{l + 1}/{b}") for a in range(D) for b in range(D)}
        assert both <= set(facts.wiring)
    for source, target in facts.wiring:
        made += wires(source, target, place, joined, (block + 10, top + 14), D)
    for l in range(L):
        for d in range(D):
            for t, name in enumerate(COLUMNS):
                inside = "…" if name == "…" else "cell"
                made.append(box(*place(l, d, t), CELL_W, CELL_H, f"cell d{d}", inside))
            y, k = place(l, d, 0)[1], l * D + d
            ends = [", ".join(f"{s}_{when}[{k}]" for s in facts.states) for when in "0n"]
            far = (136, 190 + STEP * len(COLUMNS) + 4)
            for x, content, way in zip(far, ends if d == 0 else ends[::-1], ("end", "start"), strict=True):
                made.append(text(x, y + 5, content, "mono", way))
        label = words["layer"].format(l)
        made.append(text(16, place(l, 0, 0)[1] + 5, label, "head"))
        if D == 2:
            made.append(text(16, place(l, 0, 0)[1] + 23, words["forward"], "tiny"))
            made.append(text(16, place(l, 1, 0)[1] + 5, words["reverse"], "tiny"))
    made += [text(16, block + 22, words["in"], "head"), text(16, block + 40, shapes["input"], "mono")]
    made += [text(16, top - 2, words["out"], "head"), text(16, top + 16, shapes["output"], "mono")]
    state = f"{facts.states[0]}_n"
    made.append(text(width - 134, top - 2, words["last"], "head"))
    made.append(text(width - 134, top + 16, f"{state} {shapes[state]}", "mono"))
    if D == 2:
        made.append(text(190, height - 10, words["joined"], "tiny"))
    return "\n".join([*made, "</svg>", ""])


def wires(source, target, place, joined, edges, D):
    """One arrow of the wiring, at every time step."""
    floor, ceiling = edges
    made, (kind, *at) = [], source.split("/")
    goal, *to = target.split("/")
    at, to = [int(n) for n in at], [int(n) for n in to]
    last = len(COLUMNS) - 1
    if goal == "h" or source == target:
        l, d = at
        for t in range(last + 1):
            x, y = place(l, d, t)
            way = 1 - 2 * d
            if goal == "h" and t == (last, 0)[d]:
                end = (190 + STEP * len(COLUMNS), 140)[d]
                made.append(arrow(f"d{d}", (x + way * CELL_W / 2, y), (end, y)))
            if source == target:
                start = place(l, d, t - way)[0] + way * CELL_W / 2 if 0 <= t - way <= last else None
                if start is None:  # from the first state
                    start = (140, 190 + STEP * len(COLUMNS))[d]
                made.append(arrow(f"d{d}", (start, y), (x - way * CELL_W / 2, y)))
        return made
    for t in range(last + 1):
        if kind == "in":
            x, y = place(*to, t)
            made.append(arrow("up", (x, floor), (x, y + CELL_H / 2)))
        elif goal == "out":
            x, y = place(*at, t)
            made.append(arrow("up", (x, y - CELL_H / 2), (x, ceiling)))
        elif D == 1:
            (x, y), (_, above) = place(*at, t), place(*to, t)
            made.append(arrow("up", (x, y - CELL_H / 2), (x, above + CELL_H / 2)))
        else:  # through the box where both directions' outputs stand side by side
            x, y = place(*at, t)
            if at[1] == to[1]:
                made.append(arrow("up", (x, y - CELL_H / 2), (x, joined(at[0]) + 13)))
            if at[1] == 0:
                x, y = place(*to, t)
                made.append(arrow("up", (x, joined(at[0]) - 13), (x, y + CELL_H / 2)))
    return made


PICTURES = {
    "one-cell": one_cell,
    "one-layer": lambda lang: layers(lang, cf.GRU(10, 20)),
    "many-layers": lambda lang: layers(lang, cf.GRU(10, 20, num_layers=3)),
    "two-directions": lambda lang: layers(lang, cf.GRU(10, 20, num_layers=2, bidirectional=True)),
}


def draw_gates():
    """Run the code of the page on gates, and keep its picture."""
    page = (DOCS / "en/gates.md").read_text(encoding="utf-8")
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        names = {"__name__": "page"}
        for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
            lines = block.splitlines(keepends=True)
            Path("page.py").write_text(block)  # a cell reads its own text
            exec(compile("".join(lines), "page.py", "exec"), names)
        os.chdir(here)
        for lang in WORDS:
            shutil.copy(Path(folder) / "gates.png", DOCS / lang / "pictures/gates.png")


if __name__ == "__main__":
    for lang in WORDS:
        folder = DOCS / lang / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in PICTURES.items():
            (folder / f"{name}.svg").write_text(picture(lang), encoding="utf-8")
    draw_gates()
