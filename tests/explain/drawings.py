"""What is wrong with a drawing: overlaps and wires through boxes, from the drawing's own rectangles."""

from itertools import combinations, pairwise

from cellfuse.explain.words import LANGUAGES

SLACK = 0.5


def area(a, b):
    """How far two rectangles overlap, at the smaller side."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return min(width, height)


def rectangle(box):
    return (box.x, box.y, box.x + box.width, box.y + box.height)


def inside(inner, outer):
    return (
        inner[0] >= outer[0] - SLACK
        and inner[1] >= outer[1] - SLACK
        and inner[2] <= outer[2] + SLACK
        and inner[3] <= outer[3] + SLACK
    )


def texts(drawing, lang):
    """(text, rectangle, box or None)"""
    made = [(t, t.rectangle(lang), None) for t in drawing.texts]
    return made + [(t, t.rectangle(lang), box) for box in drawing.boxes for t in box.texts()]


def faults(drawing):
    """Sentences that say what overlaps."""
    found = []
    for lang in LANGUAGES:
        placed = texts(drawing, lang)
        for text, place, box in placed:
            if box is not None and not inside(place, rectangle(box)):
                found.append(f"{lang}: {text.text} is wider than its box {box.key}")
        for (a, place, _), (b, other, _) in combinations(placed, 2):
            if area(place, other) > SLACK:
                found.append(f"{lang}: {a.text} over {b.text}")
        for text, place, own in placed:
            for box in drawing.boxes:
                is_frame = box is own or (own is not None and inside(rectangle(own), rectangle(box)))
                if not is_frame and area(place, rectangle(box)) > SLACK:
                    found.append(f"{lang}: {text.text} over box {box.key}")
        for text, place, own in placed:
            if own is None:
                found += [f"{lang}: wire {w.source}>{w.target} through {text.text}"
                          for w in drawing.wires if crosses(w, place)]  # fmt: skip
    for a, b in combinations(drawing.boxes, 2):
        place, other = rectangle(a), rectangle(b)
        if area(place, other) > SLACK and not (inside(place, other) or inside(other, place)):
            found.append(f"box {a.key} over box {b.key}")
    return found + wire_faults(drawing)


def segments(wire):
    return [(a, b) for a, b in pairwise(wire.points) if a != b]


def crosses(wire, place):
    """Whether a straight piece of a wire passes a rectangle. A slanted piece is a curve between ranks,
    where nothing stands."""
    for (x1, y1), (x2, y2) in segments(wire):
        if x1 == x2 or abs(y1 - y2) < 0.05:
            piece = (min(x1, x2), min(y1, y2) - 0.01, max(x1, x2), max(y1, y2) + 0.01)
            width, height = (min(piece[i + 2], place[i + 2]) - max(piece[i], place[i]) for i in (0, 1))
            if width >= -0.01 and height >= -0.01 and max(width, height) > SLACK:
                return True
    return False


def wire_faults(drawing):
    """Wires through boxes that are not their ends, and two wires on one line."""
    found = []
    boxes = {box.key: box for box in drawing.boxes if box.key}
    for wire in drawing.wires:
        ends = [rectangle(boxes[key]) for key in (wire.source, wire.target)]
        for box in drawing.boxes:
            place = rectangle(box)
            shrunk = (place[0] + 1, place[1] + 1, place[2] - 1, place[3] - 1)
            is_end = any(inside(place, end) or inside(end, place) for end in ends)
            if not is_end and crosses(wire, shrunk):
                found.append(f"wire {wire.source}>{wire.target} through box {box.key}")
    pieces = [(wire, piece) for wire in drawing.wires for piece in segments(wire)]
    for (a, piece), (b, other) in combinations(pieces, 2):
        if a.source != b.source and a.target != b.target and runs_over(piece, other):
            found.append(f"wire {a.source}>{a.target} over wire {b.source}>{b.target}")
    return found


def runs_over(piece, other):
    for axis in (0, 1):
        along = 1 - axis
        same = {round(p[axis], 1) for p in (*piece, *other)}
        if len(same) == 1:
            low = max(min(p[along] for p in piece), min(p[along] for p in other))
            high = min(max(p[along] for p in piece), max(p[along] for p in other))
            return high - low > SLACK
    return False
