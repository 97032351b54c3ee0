"""A drawing of boxes, texts and wires, and its spelling as SVG. Knows nothing of recurrent layers.

Every position is known here, so that tests can see overlaps without a browser.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from cellfuse.explain.palette import COLOURS
from cellfuse.explain.words import LANGUAGES, Words

Point = tuple[float, float]
SIZE, SMALL = 12.0, 10.0
FONT = 'ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace'
# Width of a character over the font's size: the widest of the fonts above; other signs may come from
# a font that is not monospaced.
_NARROW, _OTHER, _WIDE = 0.61, 0.85, 1.0


def text_width(text: str, size: float = SIZE) -> float:
    """The room that a text needs at most."""
    total = 0.0
    for sign in text:
        is_wide = unicodedata.east_asian_width(sign) in "WF"
        total += _WIDE if is_wide else _NARROW if ord(sign) < 0x400 else _OTHER
    return total * size


def widest(text: str | Words, size: float = SIZE) -> float:
    """The room of a text in the language that needs more."""
    return max(text_width(each, size) for each in _both(text))


def _both(text: str | Words) -> tuple[str, str]:
    return (text, text) if isinstance(text, str) else (text[0], text[1])


@dataclass(frozen=True)
class Line:
    """One line of text in a box."""

    text: str | Words
    is_small: bool = False

    @property
    def size(self) -> float:
        """Font size."""
        return SMALL if self.is_small else SIZE


@dataclass(frozen=True)
class Box:
    """A box with centred lines.

    Attributes:
        key: stable name, which wires and pointers use; "" for a box that means nothing by itself.
        x, y, width, height: of its rectangle; x and y are its upper left corner.
        lines: its text.
        kind: classes of its look.
        title: what it is, for who points at it.
        shape: "rect", "pill", "hexagon" or "diamond".
        data: further data- attributes.
    """

    key: str
    x: float
    y: float
    width: float
    height: float
    lines: tuple[Line, ...] = ()
    kind: str = ""
    title: str | Words = ""
    shape: str = "rect"
    data: tuple[tuple[str, str], ...] = ()

    @property
    def centre(self) -> Point:
        """Its middle."""
        return self.x + self.width / 2, self.y + self.height / 2

    def texts(self) -> list[Text]:
        """Its lines, placed."""
        total = sum(line.size + 3 for line in self.lines) - 3
        y, made = self.y + (self.height - total) / 2, []
        for line in self.lines:
            made.append(
                Text(
                    self.centre[0],
                    y + line.size / 2,
                    line.text,
                    line.size,
                    "middle",
                    kind="note" * line.is_small,
                )
            )
            y += line.size + 3
        return made


@dataclass(frozen=True)
class Text:
    """A text on one line; y is its middle."""

    x: float
    y: float
    text: str | Words
    size: float = SIZE
    anchor: str = "start"
    kind: str = ""

    def rectangle(self, lang: str) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        width = text_width(_both(self.text)[LANGUAGES.index(lang)], self.size)
        left = self.x - {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor] * width
        return left, self.y - self.size / 2, left + width, self.y + self.size / 2


@dataclass(frozen=True)
class Wire:
    """An arrow from one box to another through points; curved between every second pair of them."""

    source: str
    target: str
    points: tuple[Point, ...]
    kind: str = ""
    is_curved: bool = False


@dataclass(frozen=True)
class Image:
    """A picture of pixels, as a data address; "" if a script fills it in."""

    key: str
    x: float
    y: float
    width: float
    height: float
    address: str
    title: str | Words


@dataclass
class Drawing:
    """What is drawn, in the order in which it is drawn: wires, images, boxes, texts."""

    title: Words
    description: Words
    boxes: list[Box] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    margin: float = 12.0

    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of everything, with the margin."""
        parts = [(b.x, b.y, b.x + b.width, b.y + b.height) for b in self.boxes]
        parts += [text.rectangle(lang) for text in self.texts for lang in LANGUAGES]
        parts += [(x, y, x, y) for wire in self.wires for x, y in wire.points]
        parts += [(i.x, i.y, i.x + i.width, i.y + i.height) for i in self.images]
        left, top = min(p[0] for p in parts), min(p[1] for p in parts)
        right, bottom = max(p[2] for p in parts), max(p[3] for p in parts)
        return left - self.margin, top - self.margin, right + self.margin, bottom + self.margin

    def box(self, key: str) -> Box:
        """The box of this key."""
        return next(box for box in self.boxes if box.key == key)


def stand_alone(drawing: Drawing, lang: str) -> str:
    """An SVG file in one language that follows the reader's light or dark setting."""
    light, dark = (_colours(place) for place in (0, 1))
    style = f"{light}{STYLE}@media (prefers-color-scheme:dark){{{dark}}}"
    width, height = _size(drawing)
    head = f'width="{_n(width)}" height="{_n(height)}" class="picture"'
    ground = _tag("rect", "", **_rectangle(drawing), **{"class": "ground"})
    return _svg(drawing, (lang,), "p", head, f"<style>{style}</style>", ground) + "\n"


def inline(drawing: Drawing, prefix: str) -> str:
    """The SVG inside a page, in both languages; its ids start with `prefix`."""
    width, height = _size(drawing)
    head = f'width="{_n(width)}" height="{_n(height)}" class="picture"'
    return _svg(drawing, LANGUAGES, prefix, head, "", "")


# Colours are plain values rather than CSS variables, which converters to PNG do not know.
_RULES: tuple[tuple[str, str, str], ...] = (
    (".ground", "fill", "bg"),
    (".picture text", "fill", "fg"),
    (".picture text.note", "fill", "muted"),
    (".n>rect,.n>path", "fill", "box"),
    (".n>rect,.n>path,.w,.n>.hatch", "stroke", "line"),
    (".head", "fill", "line"),
    (".kstate>rect,.kend>rect", "fill", "state"),
    (".kproduct>rect", "fill", "product"),
    (".kactivation>rect", "fill", "activation"),
    (".d0>rect,.w.d0,.kh.d0>rect", "stroke", "forward"),
    (".head.d0", "fill", "forward"),
    (".d1>rect,.w.d1,.kh.d1>rect", "stroke", "reverse"),
    (".head.d1", "fill", "reverse"),
    (".kout>rect,.w.spine", "stroke", "out"),
    (".head.spine", "fill", "out"),
    (".kc>rect", "stroke", "cell"),
)
STYLE = (
    f".picture text{{font-family:{FONT};font-size:12px;stroke:none}}"
    ".picture text.s{font-size:10px}.picture text.heading{font-weight:bold}"
    ".n>rect,.n>path{stroke-width:1.2}.w{fill:none;stroke-width:1.5}"
    ".w.d1,.d1>rect{stroke-dasharray:5 3}.w.dim{stroke-dasharray:2 3}"
    ".kout>rect,.kh>rect{stroke-width:2.4}.kc>rect{stroke-width:2;stroke-dasharray:2 2}"
    ".kgap>rect{stroke-dasharray:1 3}.kparameter>rect{stroke-dasharray:3 2}.w.spine{stroke-width:3}"
    ".kframe>rect{fill:none}"
)
_HEADS = ("", "d0", "d1", "spine")


def _colours(place: int) -> str:
    return "".join(f"{where}{{{what}:{COLOURS[name][place]}}}" for where, what, name in _RULES)


def page_colours() -> str:
    """The same rules with the page's variables."""
    return "".join(f"{where}{{{what}:var(--{name})}}" for where, what, name in _RULES)


def _svg(drawing: Drawing, langs: tuple[str, ...], prefix: str, head: str, style: str, ground: str) -> str:
    left, top, right, bottom = drawing.bounds()
    view = " ".join(_n(v) for v in (left, top, right - left, bottom - top))
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" {head} role="group" '
             f'aria-labelledby="{prefix}-t {prefix}-d">']  # fmt: skip
    parts += _words("title", drawing.title, langs, f"{prefix}-t")
    parts += _words("desc", drawing.description, langs, f"{prefix}-d")
    parts += [style, _markers(prefix), ground]
    parts += [_wire(wire, prefix) for wire in drawing.wires]
    parts += [_image(image, langs) for image in drawing.images]
    parts += [_box(box, langs) for box in drawing.boxes]
    parts += [part for text in drawing.texts for part in _text(text, langs)]
    return "\n".join(part for part in parts if part) + "\n</svg>"


def _words(name: str, words: Words, langs: tuple[str, ...], identity: str) -> list[str]:
    """A title or description: in the first language only, since one element has one name."""
    text = _both(words)[LANGUAGES.index(langs[0])]
    return [f'<{name} id="{identity}">{html.escape(text)}</{name}>']


def _markers(prefix: str) -> str:
    made = []
    for kind in _HEADS:
        made.append(
            f'<marker id="{prefix}-a{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" '
            f'markerHeight="9" markerUnits="userSpaceOnUse" orient="auto">'
            f'<path d="M0,0.5 L8,4 L0,7.5z" class="head {kind}"/></marker>'
        )
    return f"<defs>{''.join(made)}</defs>"


def _wire(wire: Wire, prefix: str) -> str:
    (x, y), *rest = wire.points
    path, is_bend = f"M{_n(x)},{_n(y)}", False
    for x2, y2 in rest:
        if wire.is_curved and is_bend and abs(y2 - y) > 0.05:
            middle = _n((x + x2) / 2)
            path += f" C{middle},{_n(y)} {middle},{_n(y2)} {_n(x2)},{_n(y2)}"
        else:
            path += f" L{_n(x2)},{_n(y2)}"
        x, y, is_bend = x2, y2, not is_bend
    kinds = wire.kind.split()
    end = next((kind for kind in kinds if kind in _HEADS), "")
    marker = "" if "open" in kinds else f"url(#{prefix}-a{end})"
    where = {"data-from": wire.source, "data-to": wire.target}
    return _tag("path", "", d=path, **{"class": f"w {wire.kind}".strip(), "marker-end": marker}, **where)


def _image(image: Image, langs: tuple[str, ...]) -> str:
    place = {"x": image.x, "y": image.y, "width": image.width, "height": image.height}
    label = _both(image.title)[LANGUAGES.index(langs[0])]
    return _tag(
        "image", "", **place, preserveAspectRatio="none", href=image.address, role="img",
        **{"image-rendering": "pixelated", "data-k": image.key, "aria-label": label},
    )  # fmt: skip


def _box(box: Box, langs: tuple[str, ...]) -> str:
    titles = _both(box.title)
    own = {"class": f"n {box.kind}".strip(), "data-k": box.key, **{f"data-{k}": v for k, v in box.data}}
    inside = [_outline(box), *(part for text in box.texts() for part in _text(text, langs))]
    if box.kind == "kpad":
        inside.append(_hatch(box))
    if len(langs) == 1:
        title = titles[LANGUAGES.index(langs[0])]
        inside.insert(0, f"<title>{html.escape(title)}</title>" if title else "")
    elif titles[0]:
        own |= {"data-en": titles[0], "data-zh": titles[1]}
    return _tag("g", "".join(inside), **own)


def _outline(box: Box) -> str:
    x, y, w, h = box.x, box.y, box.width, box.height
    if box.shape == "hexagon":
        points = [
            (x + 8, y),
            (x + w - 8, y),
            (x + w, y + h / 2),
            (x + w - 8, y + h),
            (x + 8, y + h),
            (x, y + h / 2),
        ]
    elif box.shape == "diamond":
        points = [(x + w / 2, y), (x + w, y + h / 2), (x + w / 2, y + h), (x, y + h / 2)]
    else:
        return _tag(
            "rect", "", x=x, y=y, width=w, height=h, rx=min(h / 2, 14.0) if box.shape == "pill" else 5
        )
    return _tag("path", "", d="M" + " L".join(f"{_n(a)},{_n(b)}" for a, b in points) + "z")


def _hatch(box: Box) -> str:
    """Slanted lines over a box."""
    lines = []
    for offset in range(-int(box.height), int(box.width), 7):
        start, end = max(offset, 0), min(offset + box.height, box.width)
        lines.append(
            f"M{_n(box.x + start)},{_n(box.y + start - offset)} L{_n(box.x + end)},{_n(box.y + end - offset)}"
        )
    return _tag("path", "", d=" ".join(lines), **{"class": "hatch"})


def _text(text: Text, langs: tuple[str, ...]) -> Iterable[str]:
    both = _both(text.text)
    shown = langs if both[0] != both[1] else langs[:1]
    for lang in shown:
        kind = f"{text.kind} s".strip() if text.size == SMALL else text.kind
        own: dict[str, object] = {"x": text.x, "y": text.y + 0.35 * text.size, "class": kind}
        own["text-anchor"] = "" if text.anchor == "start" else text.anchor
        own["lang"] = {"en": "en", "zh": "zh-Hans"}[lang] if len(shown) > 1 else ""
        yield _tag("text", html.escape(both[LANGUAGES.index(lang)]), **own)


def _rectangle(drawing: Drawing) -> dict[str, object]:
    left, top, right, bottom = drawing.bounds()
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def _size(drawing: Drawing) -> tuple[float, float]:
    left, top, right, bottom = drawing.bounds()
    return right - left, bottom - top


def _tag(name: str, inside: str, **attributes: object) -> str:
    """An element; attributes that are "" are left out."""
    texts = {k: _n(v) if isinstance(v, float | int) else str(v) for k, v in attributes.items()}
    own = "".join(f' {key}="{html.escape(value)}"' for key, value in texts.items() if value)
    return f"<{name}{own}>{inside}</{name}>" if inside else f"<{name}{own}/>"


def _n(value: float) -> str:
    """A number with at most one decimal."""
    return (
        f"{value:.1f}".removesuffix(".0").replace("-0", "0")
        if abs(value) < 0.05
        else f"{value:.1f}".removesuffix(".0")
    )
