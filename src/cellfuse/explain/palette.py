"""The colours of pictures and page, light and dark. A test measures the contrast of every pair in PAIRS."""

# Every colour by its name, first in light, then in dark.
COLOURS: dict[str, tuple[str, str]] = {
    "bg": ("#ffffff", "#11161b"),
    "fg": ("#14202b", "#e8eef4"),
    "muted": ("#45525f", "#b3c0cc"),
    "line": ("#5f6f7e", "#8a9aa9"),
    "box": ("#f4f7fa", "#1c252d"),
    "forward": ("#0b5cad", "#7cc0ff"),
    "reverse": ("#7a2aa0", "#dca6ff"),
    "out": ("#9a4a00", "#ffb066"),
    "cell": ("#136b3a", "#7fd6a0"),
    "state": ("#fff3d1", "#3a2f10"),
    "product": ("#e4effb", "#16304a"),
    "activation": ("#fdebe0", "#45260f"),
    "mark": ("#ffe29a", "#5a4300"),
}

# (text, ground) as they meet in a picture or on the page.
PAIRS: tuple[tuple[str, str], ...] = (
    *((text, ground) for text in ("fg", "muted") for ground in
      ("bg", "box", "state", "product", "activation", "mark")),
    *((text, ground) for text in ("forward", "reverse", "out", "cell") for ground in ("bg", "box")),
)  # fmt: skip

_MAPS: dict[str, tuple[tuple[int, int, int], ...]] = {
    # from closed (0) to open (1): dark blue to yellow, lighter all the way
    "gate": ((12, 24, 74), (58, 76, 140), (62, 139, 148), (122, 195, 104), (253, 231, 37)),
    # below zero blue, above zero red, zero white
    "value": ((24, 74, 160), (146, 188, 230), (247, 247, 247), (240, 160, 130), (160, 20, 40)),
}


def heat(name: str) -> list[tuple[int, int, int]]:
    """256 colours of the map "gate" or "value"."""
    stops = _MAPS[name]
    made = []
    for place in range(256):
        position = place / 255 * (len(stops) - 1)
        left = min(int(position), len(stops) - 2)
        share = position - left
        low, high = stops[left], stops[left + 1]
        made.append(
            (
                round(low[0] + share * (high[0] - low[0])),
                round(low[1] + share * (high[1] - low[1])),
                round(low[2] + share * (high[2] - low[2])),
            )
        )
    return made
