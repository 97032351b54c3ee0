"""The text: golden files, width, both languages complete, the answers a beginner looks for."""

import io
import itertools
import os
import re
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cellfuse as cf
from cellfuse.explain import counts, words
from cellfuse.explain.picture import PICTURES, why_not
from cellfuse.explain.progress import Progress
from cellfuse.explain.step import gate_meanings
from cellfuse.explain.text import columns, wrap
from compare import OPTIONS
from explain.cases import GRID, B, H, I, leaky, made, options, read_out

GOLDEN = Path(__file__).parents[1] / "golden"
ISSUE = "lstm --input-size 10 --hidden-size 20 --num-layers 2 --bidirectional --seq-len 5 --batch 3"


@pytest.mark.parametrize("lang", words.LANGUAGES)
def test_the_command_of_the_issue_prints_the_golden_file(lang):
    command = [sys.executable, "-m", "cellfuse", "explain", *ISSUE.split(), "--lang", lang]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONPATH": ":".join(sys.path)}
    told = subprocess.run(command, check=True, capture_output=True, env=environment).stdout.decode()
    told = re.sub(r"\n  (Memory in training|训练占用的内存)(.|\n)*", "\n", told)  # another on each processor
    file = GOLDEN / f"explain_{lang}.txt"
    if os.environ.get("CELLFUSE_UPDATE_GOLDEN"):
        file.write_text(told, encoding="utf-8")
    assert told == file.read_text(encoding="utf-8")


def some_explanations():
    """Every cell, form and option at least once."""
    torch.manual_seed(0)
    for cell in (*cf.cells.CELLS.values(), leaky, read_out):
        some = OPTIONS.get(cell.name, {})
        for form, L, D, bias in GRID[::9]:
            layer = cell.layer(I, H, **options(form, L, D, bias), **some)
            yield cf.explain(layer, made(layer, form))
        yield cf.explain(cell.one_step(I, H, **some))
        yield cf.explain(cell.one_step(I, H, bias=False, **some), (I,))
    yield cf.explain(cf.LSTM(300, 512, 9, bidirectional=True, dropout=0.25), (12, 4, 300))
    yield cf.explain(cf.GRU(3, 4, 5, bidirectional=True), torch.randn(1, 3), torch.randn(10, 4))
    yield cf.explain(cf.LSTM(3, 4), torch.randn(1, 1, 3), (torch.randn(1, 1, 4), torch.randn(1, 1, 4)))
    yield cf.explain(cf.LSTM(3, 4), torch.full((1, 1, 3), float("nan")))
    layer = cf.LSTM(3, 4, 2)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    yield cf.explain(layer)
    layer = cf.GRU(20, 64, 2, bidirectional=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(8)
    yield cf.explain(layer, seq_len=300)
    with pytest.warns(UserWarning, match="dropout"):
        yield cf.explain(cf.GRU(3, 4, dropout=0.5))
    many = torch.nn.utils.rnn.pack_sequence([torch.randn(2, 3)] * 9)
    yield cf.explain(cf.RNN(3, 4), many)
    yield cf.explain(torch.nn.Sequential(torch.nn.GRU(3, 4, 2), torch.nn.Linear(4, 2)))


@pytest.fixture(scope="module")
def explanations():
    return list(some_explanations())


def test_no_line_is_wider_than_80_columns(explanations):
    for facts in explanations:
        for lang in words.LANGUAGES:
            for line in facts.text(lang).splitlines():
                assert columns(line) <= 80, line
                assert line == line.rstrip()


def test_chinese_text_holds_no_english_sentence(explanations):
    english = re.compile(r"\b(the|is|are|of|and|it|from|with|its|each|step|steps|layer)\b(?![\w(._])")
    for facts in explanations:
        for line in facts.text("zh").splitlines():
            if re.search("[一-鿿]", line) and "出处" not in line:
                calls = r"(by_hand|of_cell)\(.*?\)|(swapped|in_training|merged|with_dropout)\(layer\)"
                code_free = re.sub(calls + r"|layer\.train", "", line)
                assert not english.search(code_free), line


def test_english_text_holds_no_chinese(explanations):
    for facts in explanations:
        assert not re.search(r"[\u2e80-\u9fff\uff00-\uffef]", facts.text("en"))


def fields(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_of_every_sentence_say_the_same_values():
    for key, both in words.WORDS.items():
        assert fields(both.en) == fields(both.zh), key
        assert both.en, key
        assert both.zh, key


def draw_all(facts):
    """Every picture that there is, and the page."""
    for layer in [each for _, each in facts.layers] if hasattr(facts, "layers") else [facts]:
        for name in PICTURES:
            if not why_not(layer, name):
                layer.picture(name)
        layer._repr_html_()  # the page and the still picture


class Recorder(dict):
    """A table that knows which rows were read."""

    def __init__(self, table):
        super().__init__(table)
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)


def test_every_sentence_is_said(monkeypatch):
    table = Recorder(words.WORDS)
    monkeypatch.setattr(words, "WORDS", table)
    monkeypatch.setattr(counts, "WORDS", table)
    for facts in some_explanations():
        facts.text("en")
        draw_all(facts)
    replace(cf.explain(cf.GRU(I, H)), memory=None).text("en")
    progress(["step"] * 3 + ["statement"] * 20)
    assert set(table) - table.read == set()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def progress(told, stream=None, lang="en", seconds=1.5):
    """What is written if every call takes some seconds."""
    stream, clock = stream or io.StringIO(), itertools.count(0.0, seconds)
    watch = Progress(lang, stream, lambda: next(clock))
    for place, what in enumerate(told, 1):
        watch(what, place, len(told))
    watch.close()
    return stream.getvalue()


def test_a_long_explanation_says_how_far_it_is():
    lines = progress(["statement"] * 40).splitlines()
    assert lines[0] == "explain: statement 2 of 40 …"
    assert 4 < len(lines) < 10
    assert progress(["step"], lang="zh", seconds=3) == "explain：第 1 / 1 个时间步 …\n"
    shown = progress(["step"] * 5, Terminal())
    assert "\n" not in shown
    assert "\rexplain: time step 3 of 5 …" in shown
    assert shown.endswith(" \r")
    assert progress(["step"] * 100, seconds=0.001) == ""
    seen = []
    cf.explain(cf.GRU(I, H, 2), seq_len=5, watch=lambda *what: seen.append(what))
    assert [what for what in seen if what[0] == "step"] == [("step", n, 10) for n in range(1, 11)]
    assert ("statement", 1, len(cf.explain(cf.GRU(I, H, 2)).claims)) in seen


def test_the_published_cells_words_are_in_chinese():
    said = {meaning for cell in cf.cells.CELLS.values() for _, meaning in gate_meanings(cell)}
    said |= {cell.deviation for cell in cf.cells.CELLS.values() if cell.deviation}
    assert said == set(words.CELL_WORDS)
    for text in words.CELL_WORDS.values():
        assert re.search("[一-鿿]", text)


def test_every_gate_of_a_published_cell_has_a_meaning():
    for cell in cf.cells.CELLS.values():
        assert [gate for gate, _ in gate_meanings(cell)] == list(cell.gates), cell.name


def test_a_gate_is_called_one_even_if_it_is_no_sigmoid():
    facts = cf.explain(cf.cells.slstm.layer(I, H, num_heads=2))
    said = {equation.left: (equation.en, equation.zh) for equation in facts.equations}
    assert said["i"] == ("input gate", "输入门")
    assert said["f"] == ("forget gate", "遗忘门")
    assert {cf.explain(cf.GRU(I, H)).equations[k].en for k in (0, 1)} == {"reset gate", "update gate"}


def test_wrapping_keeps_every_word_and_the_width():
    text = "forward 正向（从左到右），说明 h_n[0]、h_n[1]。" * 9
    lines = wrap(text, "  - ")
    assert "".join(line[4:] for line in lines).replace(" ", "") == text.replace(" ", "")
    assert all(columns(line) <= 80 for line in lines)
    assert not any(line.strip()[0] in "，。、）" for line in lines)
    assert not any(line.endswith("（") for line in lines)


def said(facts, lang="en"):
    """The text in one line."""
    return re.sub(r"\s+", " ", facts.text(lang))


def test_the_text_answers_what_beginners_ask():
    text = said(cf.explain(torch.nn.LSTM(10, 20, 2, bidirectional=True), seq_len=5, batch=3))
    for answer in (
        "What goes on to the next time step is the state",
        "what leaves the cell at this time step is the output.",
        "Here h′ is both; c′ is state only.",
        "h_n[0] layer 0 forward, h_n[1] layer 0 reverse, h_n[2] layer 1 forward, h_n[3] layer 1 reverse.",
        "its last state is the second half of the features at t=0. "
        ">>> torch.equal(h_n[3], output[0, :, 20:]) True",
        "batch_first=True they would be [B, T, ...], but h_n and c_n would stay [L*D, B, H].",
        "0:20 i, 20:40 f, 40:60 g, 60:80 o.",
        "parameters 15,040",
        "multiply-adds 216,000",
        "FLOPs 457,200",
        "parameters 60,160 = 4*15040",
    ):
        assert answer in text, answer


# Question: what the text must say of it, of a bidirectional LSTM of two layers or a GRU of one.
ANSWERS = {
    "output and h_n": (
        "lstm",
        (
            "The output of the last layer (layer 1) at every time step",
            "最后一层（第 1 层）在每个时间步的输出",
        ),
        ("h_n and c_n hold the state after the last time step", "h_n 和 c_n 是最后一个时间步之后的状态"),
        ("torch.equal(h_n[2], output[-1, :, :20]) True",) * 2,
    ),
    "the reverse direction's last state": (
        "lstm",
        ("ends at t=0, so its last state is the second half of the features at t=0", "在 t=0 结束"),
        ("torch.equal(h_n[3], output[0, :, 20:]) True",) * 2,
        ("not torch.equal(h_n[3], output[-1, :, 20:]) True",) * 2,
    ),
    "order of h_n": (
        "lstm",
        (
            "h_n[k] is layer k // 2, direction k % 2 (0 forward, 1 reverse)",
            "第 k // 2 层、方向 k % 2（0 正向，1 反向）",
        ),
        ("h_n.view(L, D, ...)[layer, direction]", "h_n.view(L, D, ...)[层, 方向]"),
    ),
    "batch_first": (
        "lstm",
        (
            "they would be [B, T, ...], but h_n and c_n would stay [L*D, B, H]",
            "但 h_n 和 c_n 仍是 [L*D, B, H]",
        ),
    ),
    "the last valid step": (
        "lstm",
        (
            "the last valid one of sequence b is output[length - 1, b]",
            "最后一个有效输出是 output[length - 1, b]",
        ),
        ("h_n is the state after each sequence's own end", "h_n 是每条序列自己结束时的状态"),
        (
            "a reverse direction starts at each sequence's own last valid step and ends at t=0",
            "反向从每条序列自己的最后一个有效步开始，在 t=0 结束",
        ),
    ),
    "two biases, one sum": (
        "lstm",
        ("There are two biases because torch.nn and cuDNN keep", "有两个偏置，是因为 torch.nn 和 cuDNN"),
        ("moving d into b changes nothing", "把 d 并入 b 不改变任何结果"),
    ),
    "two biases, two sums": (
        "gru",
        ("The two biases b and d are not redundant for n", "对 n 来说两个偏置 b 和 d 并不重复"),
    ),
    "halves of output": (
        "lstm",
        ("Its first 20 features are the forward direction's", "前 20 个特征属于正向，后 20 个属于反向"),
        ("side by side, not added", "并排拼接，不是相加"),
    ),
    "two initial states": (
        "lstm",
        ("hx, a tuple (h_0, c_0) shaped like (h_n, c_n)", "hx，即元组 (h_0, c_0)，形状与 (h_n, c_n) 相同"),
    ),
    "which GRU": (
        "gru",
        ("r acts after the product: r ⊙ (R_n h + d_n)", "r 作用在乘积之后：r ⊙ (R_n h + d_n)"),
        ('not close(of_cell("gru_reset_before", layer)(input)[0], output) True',) * 2,
    ),
    "dropout": (
        "lstm",
        ("It would act between the layers, in training only", "它作用在层与层之间，只在训练时"),
    ),
    "dropout with one layer": ("gru", ("With one layer there is no such place", "只有一层时没有这样的位置")),
}


@pytest.mark.parametrize("question", ANSWERS)
def test_the_text_answers_the_ten_questions(question):
    which, *answers = ANSWERS[question]
    layer = cf.GRU(10, 20) if which == "gru" else cf.LSTM(10, 20, 2, bidirectional=True)
    facts = cf.explain(layer)
    for place, lang in enumerate(words.LANGUAGES):
        text = facts.text(lang).replace(" ... ", " ")
        text = re.sub(r"\s+", " " if lang == "en" else "", text)
        for answer in answers:
            wanted = answer[place] if lang == "en" else answer[place].replace(" ", "")
            assert wanted.replace("...", "") in text.replace("...", ""), wanted


def test_each_option_changes_the_text():
    layer = cf.GRU(I, H, 2, batch_first=True, dtype=torch.float64)
    text = said(cf.explain(layer, made(layer, "batch_first")))
    assert "batch_first=True: input and output are [B, T, ...], but not the states: h_n stay" in text
    assert "torch.equal(h_n[1], output[:, -1])" in text
    assert "below was run on your input" in text
    layer = cf.GRU(I, H, dtype=torch.float64)
    text = said(cf.explain(layer, made(layer, "packed")))
    assert "packed sequences of [2, 5, 3] time steps, S=10 steps in all" in text
    assert "torch.equal(h_n[0], padded[lengths - 1, torch.arange(3)]) True" in text
    assert "zeros after the end of each sequence" in text
    layer = cf.GRU(I, H, bidirectional=True, dtype=torch.float64)
    facts = cf.explain(layer, made(layer, "packed"))
    ways = "starts at each sequence's own last valid step and ends at t=0"
    assert f"every other ends at its own last step. The reverse direction {ways}" in said(facts)
    assert f"Reverse direction: it {ways}, so its last state" in said(facts)
    assert said(facts, "zh").replace(" ", "").count("从每条序列自己的最后一个有效步开始，在t=0结束") == 2
    layer = cf.GRU(I, H, dtype=torch.float64)
    text = said(cf.explain(layer, made(layer, "unbatched")))
    assert "one sequence without a batch axis" in text
    assert "torch.equal(h_n[0], output[-1]) True" in text
    text = said(cf.explain(cf.LSTM(I, H, bias=False, proj_size=2)))
    assert "i = σ(W_i x + R_i h)" in text
    assert "bias_" not in text
    assert "proj_size=2: h_n is 2 wide, c_n stays 6 wide. " in text
    text = said(cf.explain(leaky.layer(I, H)))
    assert "Not in output: this cell computes its output from the state" in text
    assert "zeros, but m_0 = 0.5" in text
    assert "one number, not learned" in text
    assert "y = σ(W_out x + b_out + R_out h + d_out) ⊙ h′ the output; not fed back" in text
    text = said(cf.explain(torch.nn.LSTMCell(I, H)))
    assert "returns the tuple (h_1, c_1): [B, H]. The loop over time is yours." in text
    assert "h_n" not in text
    assert "weight_ih_l0" not in text


def test_one_time_step_has_no_first_and_last():
    text = said(cf.explain(cf.GRU(I, H, bidirectional=True), seq_len=1))
    assert "Not beside the forward" not in text
    assert f"T=1 time step, B={B} sequences" in text
