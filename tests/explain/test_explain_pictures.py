"""The pictures: nothing overlaps, every file is whole, state paths are straight, labels are the tensors'."""

import io
import os
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import cellfuse as cf
from cellfuse.errors import OptionError
from cellfuse.explain import picture
from cellfuse.explain.layer_map import draw_stack
from cellfuse.explain.palette import COLOURS, PAIRS, heat
from cellfuse.explain.pixels import png
from cellfuse.explain.svg import Text
from cellfuse.explain.words import LANGUAGES, Words
from compare import OPTIONS
from explain.cases import leaky, made, options, read_out
from explain.drawings import faults

CELLS = [*cf.cells.CELLS.values(), leaky, read_out]


def layer_of(cell, L=1, D=1, bias=True, form="batched", hidden=6):
    return cell.layer(2, hidden, **options(form, L, D, bias), **OPTIONS.get(cell.name, {}))


# States with a path through the step on which no matrix and no activation lies.
STRAIGHT = {
    **dict.fromkeys(("gru", "gru_reset_before", "mgu", "mingru", "minimal_rnn", "ugrnn"), "h"),
    **dict.fromkeys(("coupled_lstm", "layer_norm_lstm", "lstm", "lstm_without_forget"), "c"),
    **dict.fromkeys(("peephole_lstm", "projected_lstm", "qrnn", "ran", "sru"), "c"),
    "slstm": "cnm",
    "leaky": "m",
}


def at(facts, length):
    """The facts as if the sequence were longer."""
    return replace(facts, sizes=facts.sizes | {"T": length})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_the_cell_has_no_overlaps_and_straight_states(cell, bias):
    facts = cf.explain(layer_of(cell, bias=bias))
    drawing = facts.picture("cell").drawing
    assert faults(drawing) == []
    assert {spine[0] for spine in facts.graph.spines} == {f"s/{s}" for s in STRAIGHT.get(cell.name, "")}
    for spine in facts.graph.spines:
        heights = {round(drawing.box(key).centre[1], 3) for key in spine}
        assert len(heights) == 1, spine
    starts = [drawing.box(f"s/{state}").centre[0] for state in facts.states]
    ends = [drawing.box(f"new/{state}").centre[0] for state in facts.states]
    assert max(starts) < min(ends)


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("name", ["gru", "lstm", "slstm"])
def test_the_layers_have_no_overlaps(name, D):
    for L in range(1, 13):
        facts = cf.explain(layer_of(cf.cells.CELLS[name], L, D), (1, 3, 2))
        for length in (1, 2, 5, 7, 8, 1000) if L in (1, 2, 5, 12) else (5,):
            for drawn in (facts.picture("layer").drawing, draw_stack(at(facts, length))):
                assert faults(drawn) == [], (L, length)
            if length > 7:
                for around in (0, length // 2, length - 1):
                    assert faults(draw_stack(at(facts, length), around)) == [], (L, length, around)


@pytest.mark.parametrize("form", ["batched", "batch_first", "unbatched", "packed", "sorted"])
@pytest.mark.parametrize("name", ["rnn", "lstm", "layer_norm_lstm", "slstm", "projected_lstm"])
def test_shapes_values_and_sequences_have_no_overlaps(name, form):
    cell = cf.cells.CELLS[name]
    for L, D in ((1, 1), (2, 2), (12, 2)):
        layer = layer_of(cell, L, D, form=form)
        facts = cf.explain(layer, made(layer, form))
        for kind in ("shapes", "gates", "stack", *(["ragged"] if form in ("packed", "sorted") else [])):
            assert faults(facts.picture(kind).drawing) == [], (kind, L, D)


def test_large_sizes_have_no_overlaps():
    layer = cf.LSTM(700, 1500, 3, bidirectional=True)
    facts = cf.explain(layer, (2, 128, 700))
    for kind in ("cell", "layer", "stack", "shapes", "gates"):
        assert faults(facts.picture(kind).drawing) == [], kind
    lengths = [300, 77, 1, 299, 5, 30, 200, 12, 9, 4]
    layer = cf.GRU(2, 3, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(300, 10, 2), lengths, enforce_sorted=False)
    assert faults(cf.explain(layer, packed).picture("ragged").drawing) == []


def test_overlaps_are_seen():
    facts = cf.explain(cf.GRU(2, 6))
    drawing = facts.picture("stack").drawing
    cell = drawing.box("c/0/0/1")
    drawing.boxes.append(replace(cell, key="copy", x=cell.x + 30))
    assert any("copy" in fault for fault in faults(drawing))
    drawing = facts.picture("stack").drawing
    drawing.texts.append(Text(*cell.centre, "a label that is somewhere else"))
    assert any("somewhere else over" in fault for fault in faults(drawing))
    drawing = facts.picture("stack").drawing
    line = replace(cell.lines[0], text="a label that is too long")
    drawing.boxes[drawing.boxes.index(cell)] = replace(cell, lines=(line,))
    assert any("wider than its box" in fault for fault in faults(drawing))
    drawing = facts.picture("stack").drawing
    wire = next(wire for wire in drawing.wires if wire.target == "h/0")
    first = drawing.box("c/0/0/0")
    start = (first.x + first.width, first.centre[1])
    drawing.wires.append(replace(wire, source="x/0", target="out/0", points=(start, wire.points[-1])))
    assert any("through box" in fault for fault in faults(drawing))
    assert any("over wire" in fault for fault in faults(drawing))


@pytest.fixture(scope="module")
def packed_facts():
    torch.manual_seed(0)
    layer = torch.nn.LSTM(4, 6, 2, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(9, 3, 4), [4, 9, 2], enforce_sorted=False)
    return cf.explain(layer, packed)


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("name", list(picture.PICTURES))
def test_files_are_whole_readable_and_offline(packed_facts, name, lang):
    svg = packed_facts.picture(name, lang=lang).svg
    root = ET.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text
    assert root.find(f"{space}desc").text
    assert len(root.findall(f".//{space}text")) > 10
    assert "script" not in svg
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]+", "", svg))
    assert svg.count("http") == 1  # the name space
    ids = re.findall(r' id="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(ids)
    assert set(root.get("aria-labelledby").split()) <= set(ids)
    has_chinese = any("\u4e00" <= sign <= "\u9fff" for sign in svg)
    assert has_chinese == (lang == "zh")
    assert not re.search(r"<text[^>]*stroke", svg)


def test_pictures_are_the_same_bytes_each_time(packed_facts):
    for name in picture.PICTURES:
        assert packed_facts.picture(name, "en").svg == packed_facts.picture(name, "en").svg


GOLDEN = Path(__file__).parents[1] / "golden"
DRAWN = {
    "cell_gru_en": lambda: cf.explain(cf.GRU(10, 20)).picture("cell", "en"),
    "cell_lstm_zh": lambda: cf.explain(cf.LSTM(10, 20)).picture("cell", "zh"),
    "stack_lstm_en": lambda: cf.explain(cf.LSTM(10, 20, 2, bidirectional=True)).picture("stack", "en"),
    "stack_gru_zh": lambda: cf.explain(cf.GRU(10, 20, 12), (40, 3, 10)).picture("stack", "zh"),
    "shapes_lstm_en": lambda: cf.explain(cf.LSTM(10, 20, 2, bidirectional=True)).picture("shapes", "en"),
}


@pytest.mark.parametrize("name", list(DRAWN))
def test_golden_pictures(name):
    file, svg = GOLDEN / f"explain_{name}.svg", DRAWN[name]().svg
    if os.environ.get("CELLFUSE_UPDATE_GOLDEN"):
        file.write_text(svg, encoding="utf-8")
    assert svg == file.read_text(encoding="utf-8")


def test_shapes_in_pictures_are_the_tensors_shapes(packed_facts):
    facts = packed_facts
    known = {tuple(fact.shape) for fact in facts.tensors}
    parts = {shape[1:] for shape in known} | {(3, 12), (3, 4)}
    for name in ("stack", "layer", "shapes"):
        for found in re.findall(r">\[([\d, ]+)\]<", facts.picture(name).svg):
            shape = tuple(int(n) for n in found.split(","))
            assert shape in known | parts, (name, shape)


def test_gates_have_the_user_s_names_and_rows():
    drawing = cf.explain(cf.LSTM(4, 6)).picture("cell").drawing
    shown = {box.lines[0].text: box.lines for box in drawing.boxes}
    for place, gate in enumerate("ifgo"):
        rows = f"{6 * place}:{6 * place + 6}"
        product = shown[f"W_{gate} x + b_{gate} + R_{gate} h + d_{gate}"]
        assert product[1].text.en == f"rows {rows}"
        assert shown[gate][1].text == ("tanh" if gate == "g" else "σ")


def test_a_changed_operator_changes_picture_and_equation():
    def step(gate, h):
        """n: candidate."""
        n = torch.tanh(gate.n)
        return h + n

    def other(gate, h):
        """n: candidate."""
        n = torch.relu(gate.n)
        return h - n

    facts = [cf.explain(cf.cell(gates="n", source="none")(f).layer(2, 3)) for f in (step, other)]
    svgs = [each.picture("cell").svg for each in facts]
    assert ">tanh<" in svgs[0]
    assert ">relu<" in svgs[1]
    assert ">tanh<" not in svgs[1]
    assert ">+<" in svgs[0]
    assert ">h − n<" in svgs[1]


def test_ragged_codes_are_true(packed_facts):
    torch.manual_seed(0)
    layer = torch.nn.LSTM(4, 6, 2, bidirectional=True)
    x = torch.randn(9, 3, 4)
    output, (h_n, _) = layer(pack_padded_sequence(x, [4, 9, 2], enforce_sorted=False))
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(output)
    codes = [t.text for t in packed_facts.picture("ragged").drawing.texts if "==" in str(t.text)]
    assert len(codes) == 6
    for code in codes:
        assert eval(code, {"h_n": h_n, "padded": padded}).all(), code


def test_values_are_the_step_s_own():
    torch.manual_seed(0)
    layer, x = torch.nn.GRU(3, 4), torch.randn(6, 2, 3)
    (trace,) = cf.explain(layer, x).trace
    series = {each.name: each for each in trace.series}
    assert list(series) == ["r", "z", "n", "h′"]
    with torch.no_grad():
        output, _ = layer(x)
    assert torch.allclose(torch.tensor(series["h′"].units), output[:, 0].T, atol=1e-4)
    previous = torch.cat([torch.zeros(1, 2, 4), output[:-1]])
    rows = slice(4, 8)
    z = torch.sigmoid(
        x @ layer.weight_ih_l0[rows].T + layer.bias_ih_l0[rows]
        + previous @ layer.weight_hh_l0[rows].T + layer.bias_hh_l0[rows]
    )  # fmt: skip
    assert torch.allclose(torch.tensor(series["z"].units), z[:, 0].T, atol=1e-4)
    assert series["z"].mean == pytest.approx(z.mean().item(), abs=1e-5)
    assert series["z"].keeps == "h"
    assert 0.5 ** (1 / series["z"].half_life) == pytest.approx(series["z"].mean)


def test_values_of_the_reverse_direction_and_of_padding(packed_facts):
    forward, reverse = packed_facts.trace[:2]
    assert (forward.direction, reverse.direction, forward.length) == (0, 1, 4)
    for trace in (forward, reverse):
        assert [row.count(None) for row in trace.series[0].units] == [5] * 6
    layer, x = torch.nn.RNN(3, 4, bidirectional=True), torch.randn(250, 2, 3)
    facts = cf.explain(layer, x)
    output, _ = layer(x)
    reverse = torch.tensor(facts.trace[1].series[-1].units)
    assert reverse.shape == (4, 100)
    assert facts.trace[1].starts[:3] == (0, 2, 5)
    assert torch.allclose(reverse[:, 1], output[2:5, 0, 4:].mean(0), atol=1e-4)


def contrast(a, b):
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    for text, ground in PAIRS:
        for place in (0, 1):
            assert contrast(COLOURS[text][place], COLOURS[ground][place]) >= 4.5, (text, ground, place)
    for line in ("line", "forward", "reverse", "out", "cell"):
        for place in (0, 1):
            assert contrast(COLOURS[line][place], COLOURS["bg"][place]) >= 3, line


def test_heat_maps_are_monotonic_and_png_is_png():
    def light(colour):
        return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]

    lights = [light(colour) for colour in heat("gate")]
    assert all(a < b + 0.5 for a, b in pairwise(lights))
    image = pytest.importorskip("PIL.Image")
    made = image.open(io.BytesIO(png([bytes([0, 255]), bytes([128, 7])], heat("value")))).convert("RGB")
    assert made.size == (2, 2)
    assert made.getpixel((1, 0)) == heat("value")[255]
    assert made.getpixel((0, 1)) == heat("value")[128]


def test_saving(tmp_path, packed_facts, monkeypatch):
    made = packed_facts.picture("cell")
    assert made.save(tmp_path / "cell.svg").read_text(encoding="utf-8") == made._repr_svg_()
    with pytest.raises(OptionError, match=r"ends with \.svg or \.png"):
        made.save(tmp_path / "cell.gif")
    monkeypatch.setitem(__import__("sys").modules, "cairosvg", None)
    with pytest.raises(OptionError, match=r"pip install 'cellfuse\[png\]'"):
        made.save(tmp_path / "cell.png")


def test_png(tmp_path, packed_facts):
    try:
        import cairosvg  # noqa: F401
    except (ImportError, OSError) as error:
        pytest.skip(f"cairosvg or the cairo library is not installed: {error}")
    image = pytest.importorskip("PIL.Image")
    for name in picture.PICTURES:
        made = image.open(packed_facts.picture(name).save(tmp_path / f"{name}.png"))
        assert len(made.convert("RGB").getcolors(100000)) > 3


@pytest.mark.parametrize(
    ("make", "name", "said"),
    [
        (lambda: cf.explain(cf.GRU(2, 3)), "cells", "use one of cell, layer, stack, shapes, gates, ragged"),
        (lambda: cf.explain(cf.GRU(2, 3)), "ragged", "pack_padded_sequence"),
        (lambda: cf.explain(cf.GRUCell(2, 3)), "stack", 'use "cell" or "shapes"'),
        (lambda: cf.explain(cf.GRU(2, 3), torch.full((1, 1, 2), float("nan"))), "gates", "NaN"),
    ],
)
def test_errors_say_why_there_is_no_picture(make, name, said):
    with pytest.raises(OptionError, match=re.escape(said)):
        make().picture(name)
    with pytest.raises(OptionError, match="lang='fr'"):
        make().picture("cell", lang="fr")


def test_a_one_step_module_has_cell_and_shapes():
    for module in (torch.nn.LSTMCell(2, 3), cf.cells.CELLS["gru"].one_step(2, 3)):
        facts = cf.explain(module)
        for name in ("cell", "shapes"):
            assert faults(facts.picture(name).drawing) == []


def test_words_of_a_drawing_are_in_both_languages(packed_facts):
    for name in picture.PICTURES:
        drawing = packed_facts.picture(name).drawing
        for box in drawing.boxes:
            assert box.title or box.kind == "kpad", box.key
        for text in [t.text for t in drawing.texts]:
            if isinstance(text, Words):
                assert text.zh, text
