"""Write the guide's generated pages: the catalogue of cells and the reference of public names.

`python scripts/write_guide.py` writes both languages into docs/en and docs/zh. Everything on them is read
from the code; a test writes them again and compares.
"""

import inspect
from pathlib import Path

import cellfuse as cf
from cellfuse.explain.facts import (
    Claim,
    Count,
    Equation,
    Explanation,
    Memory,
    ModelExplanation,
    Series,
    TensorFact,
    Trace,
)
from cellfuse.explain.words import translated

DOCS = Path(__file__).parents[1] / "docs"
I, H = 10, 20
# What a cell cannot be made without.
OPTIONS = {"projected_lstm": {"proj_size": 6}, "slstm": {"num_heads": 4}}
TITLES = {
    "coupled_lstm": ("LSTM with input and forget gate coupled", "输入门与遗忘门耦合的 LSTM"),
    "gru": ("Gated recurrent unit, reset after the product", "门控循环单元，先乘矩阵后重置"),
    "gru_reset_before": ("Gated recurrent unit, reset before the product", "门控循环单元，先重置后乘矩阵"),
    "indrnn": ("Independently recurrent network", "独立循环网络"),
    "layer_norm_lstm": ("LSTM with layer normalisation", "带层归一化的 LSTM"),
    "lstm": ("Long short-term memory", "长短期记忆网络"),
    "lstm_without_forget": ("LSTM of 1997, without a forget gate", "1997 年的 LSTM，没有遗忘门"),
    "mgu": ("Minimal gated unit", "最小门控单元"),
    "mingru": ("minGRU: gates see the input only", "minGRU：门只看输入"),
    "minlstm": ("minLSTM: gates see the input only", "minLSTM：门只看输入"),
    "minimal_rnn": ("MinimalRNN", "MinimalRNN"),
    "peephole_lstm": ("LSTM with peepholes", "带窥视孔的 LSTM"),
    "projected_lstm": ("LSTM with a projected state", "状态经过投影的 LSTM"),
    "qrnn": ("Quasi-recurrent network, gates see the input only", "准循环网络，门只看输入"),
    "ran": ("Recurrent additive network", "循环加性网络"),
    "rnn": ("Simple recurrent network, tanh", "简单循环网络，tanh"),
    "rnn_relu": ("Simple recurrent network, relu", "简单循环网络，relu"),
    "slstm": ("sLSTM of xLSTM", "xLSTM 中的 sLSTM"),
    "sru": ("Simple recurrent unit, with a highway", "简单循环单元，带高速通路"),
    "ugrnn": ("Update gate RNN", "更新门 RNN"),
}
RECURRENCES = {
    "dense": ("matrix", "矩阵"),
    "diagonal": ("one weight per unit", "每个单元一个权重"),
    "blocks": ("blocks", "分块"),
}
CATALOGUE = (
    """# All cells

Written by `scripts/write_guide.py` from `cf.cells`. Each cell makes a layer with every option of `cf.LSTM`:

```python
import cellfuse as cf

layer = cf.cells.peephole_lstm.layer(10, 20, num_layers=2, bidirectional=True)
len(cf.cells.CELLS)  # -> {count}
```

In the equations a state with ′ is the new one; W x + b is the input product, R h + d the recurrent one, ⊙
multiplies number by number. Numbers of parameters are for one layer with I = 10 and H = 20. To add a cell,
see [write your own](your-cell.md).

| cell | | states | gates | R | parameters |
|---|---|---|---|---|---|
""",
    """# 全部单元

由 `scripts/write_guide.py` 根据 `cf.cells` 生成。每个单元都能得到一个层，`cf.LSTM` 的选项都能用：

```python
import cellfuse as cf

layer = cf.cells.peephole_lstm.layer(10, 20, num_layers=2, bidirectional=True)
len(cf.cells.CELLS)  # -> {count}
```

方程里带 ′ 的是新的状态；W x + b 是输入乘积，R h + d 是循环乘积，⊙ 表示逐元素相乘。

参数量按一层、I = 10、H = 20 计算。要增加单元，见[写自己的单元](your-cell.md)。

| 单元 | | 状态 | 门 | R | 参数量 |
|---|---|---|---|---|---|
""",
)
WORDS = {
    "source": ("Source", "出处"),
    "deviation": ("Different from it", "与出处的不同"),
    "parameters": ("Parameters", "参数"),
    "constant": ("constant", "常数"),
    "starts": ("starts at {}", "初始值 {}"),
}
API = (
    """# All public names

Written by `scripts/write_guide.py` from the docstrings. Everything here is in `cellfuse`, imported as `cf`.

```python
import cellfuse as cf

len(cf.__all__)  # -> {count}
```

The commands `cellfuse explain`, `cellfuse train` and `cellfuse bench` list their options with `--help`.
""",
    """# 全部公开名称

由 `scripts/write_guide.py` 根据文档字符串生成。这里的一切都在 `cellfuse` 里，以 `cf` 之名导入。

文档字符串是英文，与代码里的相同；中文的解释在前面各页。

```python
import cellfuse as cf

len(cf.__all__)  # -> {count}
```

命令 `cellfuse explain`、`cellfuse train`、`cellfuse bench` 加上 `--help` 会列出各自的选项。
""",
)
SECTIONS = (
    (("Layers", "层"), ("RNN", "GRU", "LSTM", "Layer")),
    (("One time step", "一个时间步"), ("RNNCell", "GRUCell", "LSTMCell", "OneStep")),
    (("Cells", "单元"), ("cell", "Cell", "per_unit", "per_gate", "scalar", "cells")),
    (("Models and explanations", "模型与讲解"), ("convert", "explain", "why_not")),
    (("Errors", "错误"), ("errors",)),
)
# Classes whose methods a reader calls, and what `explain` returns.
METHODS = {
    "Layer": ("forward", "step", "why_not", "initial_states", "reset_parameters"),
    "OneStep": ("forward",),
    "Cell": ("layer", "one_step"),
}
FACTS = (Explanation, ModelExplanation, Equation, TensorFact, Claim, Count, Memory, Trace, Series)


def cell_facts(name):
    """A layer of this cell and what `explain` says of it."""
    layer = cf.cells.CELLS[name].layer(I, H, **OPTIONS.get(name, {}))
    return layer, cf.explain(layer)


def catalogue(lang):
    """The page of all cells."""
    place = ("en", "zh").index(lang)
    words = {key: pair[place] for key, pair in WORDS.items()}
    made = [CATALOGUE[place].replace("{count}", str(len(cf.cells.CELLS))).rstrip("\n")]
    for name, cell in sorted(cf.cells.CELLS.items()):
        layer, _ = cell_facts(name)
        count = sum(p.numel() for p in layer.parameters())
        row = (f"`{name}`", TITLES[name][place], " ".join(cell.states), " ".join(cell.gates))
        made.append("| " + " | ".join((*row, RECURRENCES[cell.recurrence][place], f"{count:,}")) + " |")
    for name, cell in sorted(cf.cells.CELLS.items()):
        _, facts = cell_facts(name)
        options = "".join(f", {key}={value}" for key, value in OPTIONS.get(name, {}).items())
        call = f"`cf.cells.{name}.layer({I}, {H}{options})`"
        made += [f"\n## {name}\n", f"{TITLES[name][place]}{('. ', '。')[place]}{call}\n"]
        lines = [f"{e.left} = {e.right}" for e in facts.equations]
        width = max((len(line) for line in lines if len(line) < 60), default=0)
        meanings = [getattr(e, lang) for e in facts.equations]
        pairs = zip(lines, meanings, strict=True)
        made += ["```text", *(f"{line:<{width}}   {said}".rstrip() for line, said in pairs), "```\n"]
        made.append(f"![{TITLES[name][place]}](pictures/cells/{name}.svg)\n")
        colon = (": ", "：")[place]
        made.append(f"* {words['source']}{colon}{cell.source}")
        if cell.deviation:
            made.append(f"* {words['deviation']}{colon}{translated(cell.deviation)[place]}")
        tensors = [fact for fact in facts.tensors if fact.role in ("parameter", "constant")]
        listed = []
        for fact in tensors:
            text = f"`{fact.name} [{', '.join(fact.letters)}]`"
            if fact.rows:
                text += f" ({' '.join(fact.rows)})"
            listed.append(text + (f" ({words['constant']})" if fact.role == "constant" else ""))
        made.append(f"* {words['parameters']}{colon}{(', ', '、')[place].join(listed)}")
        for key, value in cell.initial.items():
            made.append(f"* `{key}`{colon}{words['starts'].format(f'`{value}`')}")
    return "\n".join([*made, ""])


def parameters_of(function):
    """The parameters as they stand in the code."""
    made, is_keyword = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not is_keyword:
            made, is_keyword = [*made, "*"], True
        if parameter.name != "self":
            made.append(str(parameter).replace(f"'{parameter.annotation}'", str(parameter.annotation)))
    return made


def entry(heading, value):
    """One name: how it is called, and its docstring."""
    lines = [f"\n### {heading}\n", "```text"]
    if inspect.isroutine(value) or inspect.isclass(value):
        name, parameters = heading.rpartition(".")[2], parameters_of(value)
        call = f"{name}({', '.join(parameters)})"
        if len(call) > 100:
            call = f"{name}(\n    " + ",\n    ".join(parameters) + ",\n)"
        lines += [call, ""]
    return "\n".join([*lines, inspect.cleandoc(value.__doc__), "```"])


def api(lang):
    """The page of all public names."""
    place = ("en", "zh").index(lang)
    listed = [name for _, names in SECTIONS for name in names]
    assert sorted(listed) == sorted(cf.__all__), set(listed) ^ set(cf.__all__)
    made = [API[place].replace("{count}", str(len(cf.__all__))).rstrip("\n")]
    for title, names in SECTIONS:
        made.append(f"\n## {title[place]}")
        for name in names:
            value = getattr(cf, name)
            made.append(entry(f"cf.{name}", value))
            made += [entry(f"cf.{name}.{m}", getattr(value, m)) for m in METHODS.get(name, ())]
            if name == "cells":
                made.append(entry("cf.cells.find", value.find))
            if name == "explain":
                made += [entry(kind.__name__, kind) for kind in FACTS]
                methods = ("text", "picture", "save", "to_dict", "tensor", "claim", "count")
                made += [entry(f"Explanation.{m}", getattr(Explanation, m)) for m in methods]
    return "\n".join([*made, ""])


PAGES = {"catalogue": catalogue, "api": api}

if __name__ == "__main__":
    for name, page in PAGES.items():
        for lang in ("en", "zh"):
            (DOCS / lang / f"{name}.md").write_text(page(lang), encoding="utf-8")
