"""Explanation -> text of at most 80 columns, in English or Chinese. A Chinese character is 2 columns."""

from __future__ import annotations

import unicodedata

from cellfuse.explain.facts import Claim, Explanation

WIDTH = 80

# Every fixed word of the text, by language.
WORDS = {
    "en": {
        "sizes": "sizes", "T": "time steps", "B": "sequences in the batch", "I": "features of the input",
        "H": "hidden units", "P": "projected units", "L": "layers", "D": "directions",
        "step": "one time step of the cell (x: input now, {states}: states from the step before)",
        "new": "a prime marks the new value: {first}′ becomes {first} at the next step",
        "map": "the layer", "tensor": "tensor", "shape": "shape", "meaning": "what it is",
        "claims": "output and states, on {what}", "yours": "your input", "random": "random numbers",
        "true": "checked: equal", "false": "checked: NOT TRUE", "counts": "counts for T={T}, B={B}",
        "source": "from", "deviation": "differs",
        "weights": "parameters", "more": "… the same for layers {a} to {b}",
        "biases": "b is the bias of the input product, d the bias of the recurrent product.",
        "input": "x at every t", "out": "output at every t",
        "joined": "both directions joined, {w} features, feed both directions above",
        "below": "the output of the layer below feeds the layer above, step by step",
    },
    "zh": {
        "sizes": "尺寸", "T": "时间步数", "B": "批量中的序列数", "I": "输入特征数",
        "H": "隐藏单元数", "P": "投影后的单元数", "L": "层数", "D": "方向数",
        "step": "细胞的一个时间步（x：当前输入；{states}：上一时间步的状态）",
        "new": "带撇号的是新值：{first}′ 到下一个时间步就成为 {first}",
        "map": "整个网络层", "tensor": "张量", "shape": "形状", "meaning": "含义",
        "claims": "output 与状态的关系（用{what}检验）", "yours": "你的输入", "random": "随机数",
        "true": "已检验：相等", "false": "已检验：不成立", "counts": "计数（T={T}，B={B}）",
        "source": "出处", "deviation": "不同之处", "weights": "参数", "more": "…… 第 {a} 到第 {b} 层相同",
        "biases": "b 是输入乘积的偏置，d 是循环乘积的偏置。",
        "input": "每个 t 的 x", "out": "每个 t 的 output",
        "joined": "两个方向拼接成 {w} 个特征，送入上一层的两个方向",
        "below": "下层的输出逐个时间步送入上层",
    },
}  # fmt: skip


def columns(text: str) -> int:
    """Width on a terminal: wide East Asian characters take two columns."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def pad(text: str, width: int) -> str:
    """Filled with blanks to `width` columns."""
    return text + " " * max(0, width - columns(text))


def wrap(text: str, first: str = "", rest: str | None = None) -> list[str]:
    """Lines of at most WIDTH columns; Chinese may break anywhere, English between words."""
    rest = " " * columns(first) if rest is None else rest
    lines, line = [], first
    tokens: list[str] = []
    for character in text:
        wide = unicodedata.east_asian_width(character) in "WF"
        if not tokens or wide or character == " " or tokens[-1][-1:] == " " or columns(tokens[-1][-1]) == 2:
            tokens.append(character)
        else:
            tokens[-1] += character
    for token in tokens:
        # Closing punctuation stays with what it closes.
        if columns(line) + columns(token) > WIDTH - 2 and token.strip() and token not in "，。；：、）":
            lines.append(line.rstrip())
            line = rest
            token = token.lstrip()
        line += token
    return [*lines, line.rstrip()]


def text_of(facts: Explanation, lang: str) -> str:
    """The whole text."""
    words = WORDS[lang]
    sections = [
        [facts.title, *_sizes(facts, words)],
        _step(facts, words),
        _map(facts, words),
        _tensors(facts, lang),
        _claims(facts, lang),
        _counts(facts, lang),
    ]
    return "\n\n".join("\n".join(section) for section in sections)


def _sizes(facts: Explanation, words: dict[str, str]) -> list[str]:
    parts = [f"{k}={v} {words[k]}" for k, v in facts.sizes.items() if v or k != "P"]
    separator = ", " if words is WORDS["en"] else "，"
    return wrap(separator.join(parts), "  ", "  ")


def _step(facts: Explanation, words: dict[str, str]) -> list[str]:
    states = ", ".join(facts.states)
    meanings = dict(facts.gates)
    lines = [words["step"].format(states=states)]
    for left, right in facts.equations:
        meaning = f"   [{meanings[left]}]" if left in meanings and words is WORDS["en"] else ""
        text = f"{right}{meaning if columns(f'  {left} = {right}{meaning}') <= WIDTH - 2 else ''}"
        lines += wrap(text, f"  {left} = ", "      ")
    lines += wrap(words["new"].format(first=facts.states[0]), "  ", "  ")
    if facts.options.get("bias") and any("d_" in right for _, right in facts.equations):
        lines += wrap(words["biases"], "  ", "  ")
    lines += wrap(f"{words['source']}: {facts.source}", "  ", "    ")
    if facts.deviation:
        lines += wrap(f"{words['deviation']}: {facts.deviation}", "  ", "    ")
    return lines


def _map(facts: Explanation, words: dict[str, str]) -> list[str]:
    """Layers from top to bottom; each direction is a lane over time."""
    L, D, T = (facts.sizes[k] for k in "LDT")
    W = facts.sizes["P"] or facts.sizes["H"]
    steps = ["0", *(["1"] if T > 2 else []), *(["…"] if T > 3 else []), *([str(T - 1)] if T > 1 else [])]
    state = f"{facts.states[0]}_n"
    lines = [words["map"], f"  {words['out']}  [{D * W}]"]
    shown = range(L - 1, -1, -1) if L <= 4 else [L - 1, 1, 0]
    for layer in shown:
        for direction in range(D - 1, -1, -1):
            k = layer * D + direction
            boxes = [("…" if s == "…" else f"[t={s}]") for s in steps]
            if direction == 0:
                lane = " → ".join(boxes) + f" → {state}[{k}]"
            else:
                lane = f"{state}[{k}] ← " + " ← ".join(boxes)
            lines.append(f"    {layer} {'→←'[direction]}  {lane}")
        if layer and D == 2:
            lines += wrap(words["joined"].format(w=2 * W), "      ↑ ", "        ")
        elif layer:
            lines += wrap(words["below"], "      ↑ ", "        ")
        if L > 4 and layer == L - 1:
            lines.append("      " + words["more"].format(a=2, b=L - 2))
    return [*lines, f"  {words['input']}  [{facts.sizes['I']}]"]


def _tensors(facts: Explanation, lang: str) -> list[str]:
    words = WORDS[lang]
    lines = [f"{pad(words['tensor'], 24)}{pad(words['shape'], 16)}{words['meaning']}"]
    for fact in facts.tensors:
        shape = str(list(fact.shape))
        letters = f"[{', '.join(fact.letters)}] " if not fact.letters[0].isdigit() else ""
        meaning = letters + (fact.en if lang == "en" else fact.zh)
        lines += wrap(meaning, pad(fact.name, 24) + pad(shape, 16), " " * 40)
    return lines


def _claims(facts: Explanation, lang: str) -> list[str]:
    words = WORDS[lang]
    what = words["yours" if facts.was_given_input else "random"]
    lines = [words["claims"].format(what=what)]
    for claim in facts.claims:
        lines += wrap(claim.en if lang == "en" else claim.zh, "  - ", "    ")
        if "torch.equal(" in claim.code and claim.key != "order":
            lines.append(f"      {_readable(claim)}   {words['true' if claim.holds else 'false']}")
    return lines


def _readable(claim: Claim) -> str:
    """torch.equal(a, b) as a == b."""
    inside = claim.code.removeprefix("torch.equal(").removesuffix(")")
    left, _, right = inside.partition(", ")
    return f"{left} == {right}"


def _counts(facts: Explanation, lang: str) -> list[str]:
    lines = [WORDS[lang]["counts"].format(**facts.sizes)]
    for count in facts.counts:
        name = count.en if lang == "en" else count.zh
        formula = f"   = {count.formula}" if count.formula else ""
        lines.append(f"  {count.value:>14,}  {name}{formula}")
    return lines
