"""Draw the README's pictures: a cell's own text, its equations and its layer; two layers in two directions.

`python scripts/draw_readme.py` writes both languages. Text and equations are read from the cell, so the
picture cannot say anything else than the code; a test draws it again and compares.
"""

import inspect
from html import escape
from pathlib import Path

import cellfuse as cf
from cellfuse.graph.equations import equations

DOCS = Path(__file__).parents[1] / "docs"
WORDS = {
    "en": {
        "write": "You write one time step",
        "traced": "cellfuse reads its equations",
        "layer": "You get a layer: any length, layers, directions",
        "note": "Shapes are checked and gradients follow; the same text is run and explained.",
        "in": "input  x",
        "out": "output",
        "time": "time step",
        "one": "layer 0",
        "two": "layer 1",
    },
    "zh": {
        "write": "你写下一个时间步",
        "traced": "cellfuse 读出方程",
        "layer": "得到一个层：任意长度、层数、方向",
        "note": "形状自动检查，梯度自动得到；运行和讲解用的是同一段代码。",
        "in": "输入 x",
        "out": "输出 output",
        "time": "时间步",
        "one": "第 0 层",
        "two": "第 1 层",
    },
}
STYLE = """
text { font-family: 'DejaVu Sans', 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', sans-serif }
text { fill: #1b2733 }
.mono { font-family: 'DejaVu Sans Mono', Menlo, Consolas, monospace; font-size: 13px; white-space: pre }
.head { font-size: 17px; font-weight: bold } .small { font-size: 13px }
.tiny { font-size: 12px; fill: #44525f }
.card { fill: #f4f7fa; stroke: #c9d3dc } .cell { fill: #dceaf7; stroke: #2c6ea6 }
.way { stroke: #2c6ea6; stroke-width: 1.6; fill: none; marker-end: url(#tip) }
.up { stroke: #44525f; stroke-width: 1.4; fill: none; marker-end: url(#tip2) }
""".strip()
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1180 400" role="img" aria-label="{label}">
<style>{style}</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" fill="#2c6ea6"/></marker>
<marker id="tip2" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" fill="#44525f"/></marker></defs>
<rect width="1180" height="400" fill="#ffffff"/>"""


def text(x, y, content, kind="small", anchor="start"):
    """One line of text."""
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def code_of(cell):
    """The cell's function as it stands in its file, without its docstring."""
    lines = inspect.getsource(cell.function).rstrip().splitlines()
    return [line for line in lines if '"""' not in line]


def card(x, y, width, height, title):
    """A panel with a heading."""
    made = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" class="card"/>'
    return [made, text(x + 16, y + 28, title, "head")]


def unrolled(x, words):
    """Two layers over four time steps, with what goes in, out and on."""
    made, steps, gap = [], ("0", "1", "…", "T−1"), 96
    rows = {0: 236, 1: 140}
    for column, name in enumerate(steps):
        left = x + 92 + column * gap
        made.append(text(left + 25, 344, f"t = {name}" if name != "…" else name, "tiny", "middle"))
        made.append(text(left + 25, 322, "x" if name != "…" else "…", "mono", "middle"))
        made.append(f'<path class="up" d="M{left + 25} 306V284"/>')
        made.append(f'<path class="up" d="M{left + 25} 236V188"/>')
        made.append(f'<path class="up" d="M{left + 25} 140V102"/>')
        made.append(text(left + 25, 94, "h" if name != "…" else "…", "mono", "middle"))
        for row in rows.values():
            made.append(f'<rect x="{left}" y="{row}" width="50" height="48" rx="6" class="cell"/>')
            made.append(text(left + 25, row + 29, "mgu" if name != "…" else "…", "mono", "middle"))
            made.append(f'<path class="way" d="M{left + 50} {row + 24}H{left + gap}"/>')
    for k, row in rows.items():
        made.append(f'<path class="way" d="M{x + 64} {row + 24}H{x + 92}"/>')
        made.append(text(x + 14, row + 20, words[("one", "two")[k]], "tiny"))
        made.append(text(x + 14, row + 37, f"h_0[{k}]", "mono"))
        made.append(text(x + 92 + 4 * gap + 6, row + 29, f"h_n[{k}]", "mono"))
    made.append(text(x + 14, 322, words["in"], "tiny"))
    made.append(text(x + 14, 94, words["out"], "tiny"))
    made.append(text(x + 92 + 4 * gap - 40, 322, "[T, B, I]", "mono"))
    made.append(text(x + 92 + 4 * gap - 40, 94, "[T, B, H]", "mono"))
    return made


def picture(lang):
    """The SVG in one language."""
    words, cell = WORDS[lang], cf.cells.mgu
    label = "; ".join(words[key] for key in ("write", "traced", "layer"))
    made = [HEAD.format(style=STYLE, label=escape(label))]
    made += card(12, 14, 588, 182, f"1  {words['write']}")
    made += [text(28, 76 + 22 * k, line, "mono") for k, line in enumerate(code_of(cell))]
    made += card(12, 208, 588, 152, f"2  {words['traced']}")
    for k, (name, value) in enumerate(equations(cell.step)):
        made.append(text(28, 272 + 28 * k, f"{name} = {value}", "mono"))
    made += card(612, 14, 556, 346, f"3  {words['layer']}")
    made += unrolled(620, words)
    made.append(text(590, 386, words["note"], "tiny", "middle"))
    return "\n".join([*made, "</svg>", ""])


def stack(lang):
    """A bidirectional LSTM of two layers, as `explain` draws it."""
    layer = cf.LSTM(10, 20, num_layers=2, bidirectional=True)
    return cf.explain(layer, seq_len=4, batch=3).picture("stack", lang=lang).svg


PICTURES = {"cell-to-layer": picture, "stack": stack}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        for lang, suffix in (("en", ""), ("zh", ".zh-CN")):
            (DOCS / f"{name}{suffix}.svg").write_text(draw(lang), encoding="utf-8")
