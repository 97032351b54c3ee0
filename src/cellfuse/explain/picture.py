"""Picture: one drawing of an explanation as a file. Which pictures there are, and when there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellfuse.errors import OptionError
from cellfuse.explain.cell_picture import draw_cell
from cellfuse.explain.facts import Explanation
from cellfuse.explain.gates_picture import draw_gates
from cellfuse.explain.layer_map import draw_layer, draw_stack
from cellfuse.explain.ragged_picture import draw_ragged
from cellfuse.explain.shapes_picture import draw_shapes
from cellfuse.explain.svg import FONT, Drawing, stand_alone
from cellfuse.explain.words import LANGUAGES

PICTURES: dict[str, Callable[[Explanation], Drawing]] = {
    "cell": draw_cell,
    "layer": draw_layer,
    "stack": draw_stack,
    "shapes": draw_shapes,
    "gates": draw_gates,
    "ragged": draw_ragged,
}


@dataclass(frozen=True)
class Picture:
    """One picture. A notebook shows it; `save` writes it.

    Attributes:
        name: which one.
        svg: the whole file, without scripts, outside fonts or addresses.
        drawing: its boxes, texts and wires with their places.
    """

    name: str
    svg: str
    drawing: Drawing

    def save(self, path: str | Path) -> Path:
        """Write an .svg or .png file.

        Raises:
            OptionError: another kind of file, or what makes PNG is not installed.
        """
        path = Path(path)
        if path.suffix == ".svg":
            path.write_text(self.svg, encoding="utf-8")
        elif path.suffix == ".png":
            _converter()(bytestring=_with_one_font(self.svg).encode(), write_to=str(path), scale=2.0)
        else:
            raise OptionError(f"picture {path}: give a name that ends with .svg or .png")
        return path

    def _repr_svg_(self) -> str:
        return self.svg


def _with_one_font(svg: str) -> str:
    """The converter looks at the first font of a list only, and takes no sign from another."""
    is_chinese = any("\u4e00" <= sign <= "\u9fff" for sign in svg)
    return svg.replace(FONT, '"Noto Sans Mono CJK SC"' if is_chinese else "monospace")


def _converter() -> Any:
    """cairosvg's converter.

    Raises:
        OptionError: it is not installed.
    """
    try:
        from cairosvg import svg2png
    except (ImportError, OSError) as error:
        raise OptionError(
            "a .png needs cairosvg and the system's cairo library: pip install 'cellfuse[png]'. "
            f"Or save the picture as .svg. ({error})"
        ) from error
    return svg2png


def picture_of(facts: Explanation, name: str, lang: str) -> Picture:
    """The picture of this name.

    Raises:
        OptionError: there is no such picture, or this layer or input has none.
    """
    if name not in PICTURES:
        raise OptionError(f"picture {name!r}: use one of {', '.join(PICTURES)}")
    if lang not in LANGUAGES:
        raise OptionError(f"picture: lang={lang!r}; use one of {', '.join(LANGUAGES)}")
    why = why_not(facts, name)
    if why:
        raise OptionError(f"picture {name!r}: {why}")
    drawing = PICTURES[name](facts)
    return Picture(name, stand_alone(drawing, lang), drawing)


def why_not(facts: Explanation, name: str) -> str:
    """Why a layer or input has no such picture; "" if it has."""
    if name in ("layer", "stack") and facts.kind == "step":
        return 'a one-step module has no time and no layers; use "cell" or "shapes"'
    if name == "ragged" and facts.form != "packed":
        return (
            "the sequences have one length; write explain(layer, x, lengths=lengths), or give what "
            "pack_padded_sequence makes"
        )
    if name == "gates" and not facts.trace:
        return "there are no values over time: the output has NaN, or it is a one-step module"
    return ""
