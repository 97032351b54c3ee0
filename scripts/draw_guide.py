"""Draw the guide's pictures into docs/en/pictures and docs/zh/pictures.

`python scripts/draw_guide.py` writes both languages. They are pictures of `cf.explain`; a test draws the SVGs
again and compares. gates.png is what the code of the page docs/en/gates.md draws.
"""

import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import cellfuse as cf

DOCS = Path(__file__).parents[1] / "docs"
LANGUAGES = ("en", "zh")
# What a cell cannot be made without.
OPTIONS = {"projected_lstm": {"proj_size": 6}, "slstm": {"num_heads": 4}}


def picture(layer, name, **size):
    """A function that draws one picture in a language."""

    def draw(lang):
        facts = replace(cf.explain(layer(), **size), was_given_input=False)
        return facts.picture(name, lang).svg

    return draw


PICTURES = {
    "one-rnn": picture(lambda: cf.RNN(10, 20), "cell"),
    "one-gru": picture(lambda: cf.GRU(10, 20), "cell"),
    "one-cell": picture(lambda: cf.LSTM(10, 20), "cell"),
    "one-layer": picture(lambda: cf.GRU(10, 20), "layer", seq_len=4),
    "many-layers": picture(lambda: cf.GRU(10, 20, 3), "stack", seq_len=4),
    "two-directions": picture(lambda: cf.LSTM(10, 20, 2, bidirectional=True), "stack", seq_len=4),
    "shapes": picture(lambda: cf.LSTM(10, 20, 2, bidirectional=True), "shapes"),
    "lengths": picture(lambda: cf.GRU(10, 20, bidirectional=True), "ragged", lengths=[5, 2, 4]),
}
for name, cell in cf.cells.CELLS.items():
    PICTURES[f"cells/{name}"] = picture(
        lambda name=name, cell=cell: cell.layer(10, 20, **OPTIONS.get(name, {})), "cell"
    )


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
        for lang in LANGUAGES:
            shutil.copy(Path(folder) / "gates.png", DOCS / lang / "pictures/gates.png")


if __name__ == "__main__":
    for lang in LANGUAGES:
        folder = DOCS / lang / "pictures"
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        for name, draw in PICTURES.items():
            (folder / f"{name}.svg").write_text(draw(lang), encoding="utf-8")
    draw_gates()
