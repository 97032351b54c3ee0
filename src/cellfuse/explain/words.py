"""Every sentence and word of the explanations, in English and Chinese. Names of the API stay as they are.

A table of sentences: the two languages of each stand side by side, so this file is long.
"""

from __future__ import annotations

import locale
import os
from typing import Any, NamedTuple

LANGUAGES = ("en", "zh")


class Words(NamedTuple):
    """One text in both languages."""

    en: str
    zh: str


def default_language() -> str:
    """ "zh" where the locale is Chinese, else "en"."""
    names = [os.environ.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG")]
    name = next((name for name in names if name), "") or (locale.getlocale()[0] or "")
    return "zh" if name.lower().startswith(("zh", "chinese")) else "en"


def say(key: str, **values: Any) -> Words:
    """A text with its values filled in. A value that is itself Words gives each language its own."""
    made = []
    for place, text in enumerate(WORDS[key]):
        own = {k: v[place] if isinstance(v, Words) else v for k, v in values.items()}
        made.append(text.format(**own))
    return Words(*made)


def listed(names: list[str]) -> Words:
    """a; a and b; a, b and c."""
    if len(names) == 1:
        return Words(names[0], names[0])
    head, last = names[:-1], names[-1]
    return Words(f"{', '.join(head)} and {last}", f"{'、'.join(head)} 和 {last}")


def translated(text: str) -> Words:
    """A cell's own English words in both languages, if they are known; as they are if not."""
    return Words(text, CELL_WORDS.get(text, text))


WORDS: dict[str, Words] = {
    # sizes
    "size T": Words("T={n} time steps", "T={n} 个时间步"),
    "size B": Words("B={n} sequences (the batch)", "B={n} 条序列（批量）"),
    "size B unbatched": Words("one sequence without a batch axis", "单条序列，没有批量维"),
    "size S": Words(
        "packed sequences of {lengths} time steps, S={n} steps in all",
        "打包的序列，长度为 {lengths}，共 S={n} 步",
    ),
    "size I": Words("I={n} input features", "I={n} 个输入特征"),
    "size H": Words("H={n} hidden units", "H={n} 个隐藏单元"),
    "size P": Words("P={n} units of the projected state", "P={n} 个投影后的单元"),
    "size N": Words("N={n} heads", "N={n} 个头"),
    "size L": Words("L={n} layers", "L={n} 层"),
    "size D": Words("D={n} directions (forward, reverse)", "D={n} 个方向（正向、反向）"),
    "size T one": Words("T=1 time step", "T=1 个时间步"),
    "size B one": Words("B=1 sequence (the batch)", "B=1 条序列（批量）"),
    "size L one": Words("L=1 layer", "L=1 层"),
    "size D one": Words("D=1 direction", "D=1 个方向"),
    # the cell
    "title cell": Words("The cell: one time step", "循环单元（cell）：一个时间步"),
    "gate": Words("{name} gate", "{name}门"),
    "new state": Words("new {name}", "新的{name}"),
    "new state and output": Words("new {name}; also the output", "新的{name}，也是输出"),
    "the output": Words("the output; not fed back", "输出；不传到下一步"),
    "state h": Words("hidden state h", "隐状态 h"),
    "state c": Words("cell state c", "细胞状态 c"),
    "state other": Words("state {name}", "状态 {name}"),
    "cell reads": Words(
        "x is the input at this time step. {old} come from the time step before, {new} go on to the "
        "next one. What goes on to the next time step is the state; what leaves the cell at this time "
        "step is the output.",
        "x 是当前时间步的输入。{old} 来自上一个时间步，{new} 传给下一个时间步。"
        "传给下一个时间步的叫状态（state），在当前时间步送出去的叫输出（output）。",
    ),
    "cell reads one": Words(
        "x is the input at this time step. {old} comes from the time step before, {new} goes on to the "
        "next one. What goes on to the next time step is the state; what leaves the cell at this time "
        "step is the output.",
        "x 是当前时间步的输入。{old} 来自上一个时间步，{new} 传给下一个时间步。"
        "传给下一个时间步的叫状态（state），在当前时间步送出去的叫输出（output）。",
    ),
    "both at once": Words("Here the two are the same tensor, {state}.", "这里两者是同一个张量 {state}。"),
    "one of them": Words(
        "Here {state} is both; {rest} is state only.", "这里 {state} 两者都是；{rest} 只是状态。"
    ),
    "letters": Words("{letters}. Every time step uses the same ones.", "{letters}。所有时间步共用这些参数。"),
    "letter": Words("{letter} is in {tensor}", "{letter} 在 {tensor} 里"),
    "sigmoid": Words(
        "σ gives a number from 0 (gate closed) to 1 (gate open)", "σ 的值在 0（门关闭）到 1（门打开）之间"
    ),
    "tanh": Words("tanh a number from −1 to 1", "tanh 的值在 −1 到 1 之间"),
    "times": Words("⊙ multiplies number by number", "⊙ 表示逐元素相乘"),
    "gates": Words("Gates: {gates}.", "各门：{gates}。"),
    "source": Words("Source: {text}", "出处：{text}"),
    "deviation": Words("Different from it: {text}", "与出处的不同：{text}"),
    # the layer
    "title layer": Words("The layer: the same cell at every time step", "层：每个时间步用同一个单元"),
    "map output": Words(
        "output {shape}: the last layer's at every t", "output {shape}：最后一层在每个 t 的输出"
    ),
    "map input": Words("input {shape}: x at every t", "input {shape}：每个 t 的 x"),
    "map joined": Words(
        "at every t both directions' outputs side by side, {width} features: the input of both "
        "directions above",
        "每个 t 把两个方向的输出并排拼接成 {width} 个特征，作为上面两个方向的输入",
    ),
    "map below": Words(
        "the output of the layer below at t is the input of the layer above at t",
        "下面一层在 t 的输出是上面一层在 t 的输入",
    ),
    "map more": Words("… layers {a} to {b} in the same way …", "…… 第 {a} 到第 {b} 层同样 ……"),
    "map lanes": Words("Number before the arrow: the layer.", "箭头前的数字是层号。"),
    "map ways": Words(
        "→ is the forward direction, from t=0 on; ← the reverse direction, from the last t back to t=0.",
        "→ 是正向，从 t=0 开始；← 是反向，从最后一个 t 走回 t=0。",
    ),
    "map others": Words(
        "{others} come out where {first} of the same number does.",
        "{others} 与编号相同的 {first} 在同一处得到。",
    ),
    "map other": Words(
        "{others} comes out where {first} of the same number does.",
        "{others} 与编号相同的 {first} 在同一处得到。",
    ),
    "map packed": Words(
        "t={last} is the last step of the longest sequence; every other ends at its own last step.",
        "t={last} 是最长序列的最后一步；其他序列在自己的最后一步结束。",
    ),
    "map packed reverse": Words(
        "The reverse direction starts at each sequence's own last valid step and ends at t=0.",
        "反向从每条序列自己的最后一个有效步开始，在 t=0 结束。",
    ),
    # the tensors
    "title tensors": Words("The tensors", "张量"),
    "tensor name": Words("name", "名称"),
    "tensor shape": Words("shape", "形状"),
    "tensor axes": Words("axes", "各维"),
    "tensor meaning": Words("what it holds", "内容"),
    "input": Words("what you give", "你给的输入"),
    "input packed": Words("the valid steps, packed", "打包的有效步"),
    "initial": Words("{name} before t=0", "t=0 之前的{name}"),
    "output": Words("last layer, every step", "最后一层的每一步"),
    "output step": Words("output of this step", "这一步的输出"),
    "state": Words("every layer, last step", "各层的最后一步"),
    "state step": Words("{name} after the step", "这一步后的{name}"),
    "W": Words("W: for x, by gate", "W：乘 x，按门分块"),
    "R": Words("R: recurrent products", "R：循环乘积"),
    "b": Words("b: added to W x", "b：加到 W x 上"),
    "d": Words("d: added to R h", "d：加到 R h 上"),
    "W_hr": Words("W_hr: projection H to P", "W_hr：从 H 投影到 P"),
    "own per unit": Words("one for each unit", "每个单元一个"),
    "own per gate": Words("one per gate and unit", "每个门、每个单元一个"),
    "own per cell": Words("one number", "一个数"),
    "constant": Words("{what}, not learned", "{what}，不学习"),
    "rows": Words(
        "Rows: the gates one below the other, H={n} rows each. {names}: {rows}.",
        "行：各门自上而下排列，每个门 H={n} 行。{names}：{rows}。",
    ),
    "also other layers": Words("… the same for {what}", "…… 同样还有 {what}"),
    # the claims
    "title claims": Words(
        "What is where: every line of Python below was run on {what}",
        "什么在哪里：下面每行 Python 都在{what}上运行过",
    ),
    "yours": Words("your input", "你的输入"),
    "random": Words("random numbers", "随机数"),
    "topic output": Words("What is output?", "output 是什么？"),
    "topic states": Words("What are {names}?", "{names} 是什么？"),
    "topic states one": Words("What is {names}?", "{names} 是什么？"),
    "topic ends": Words(
        "Where in output is the state after the last step?", "最后一步的状态在 output 的哪里？"
    ),
    "topic batch": Words("What about batch_first and the batch?", "batch_first 和批量维呢？"),
    "topic padding": Words("Where is the padding?", "填充在哪里？"),
    "topic before": Words("What comes before the first step?", "第一步之前是什么？"),
    "topic whole": Words("Can it run in pieces?", "能分段运行吗？"),
    "topic weights": Words("What is in the weights?", "权重里是什么？"),
    "topic options": Words("What do the options do?", "选项起什么作用？"),
    "by chance": Words(
        "equal here by chance, such as where weights are zero", "这里碰巧相等，例如权重为零时"
    ),
    "rounding": Words(
        "large weights make rounding grow from step to step, here beyond what close allows",
        "权重很大时舍入误差逐步放大，这里超出了 close 的容许范围",
    ),
    "not run": Words("not run: the output has NaN", "未运行：输出含 NaN"),
    "helpers": Words("In the code:", "代码中："),
    "helper close": Words("close(a, b): equal but for rounding", "close(a, b)：除舍入外相等"),
    "helper by_hand": Words(
        "by_hand(what, layer, direction): the equations above in a plain loop over time, with the "
        "weights of this layer and direction; what: a state's name (its value after the last step) or "
        '"output" (of all steps)',
        "by_hand(what, layer, direction)：用这一层、这个方向的权重，按上面的公式逐步循环计算；"
        'what 是状态名（取最后一步之后的值）或 "output"（所有时间步）',
    ),
    "helper swapped": Words(
        "swapped(layer): the layer with the other batch_first", "swapped(layer)：batch_first 取反的同一层"
    ),
    "helper in_training": Words(
        "in_training(layer): after layer.train()", "in_training(layer)：layer.train() 之后"
    ),
    "helper merged": Words(
        "merged(layer): a copy with every bias_hh added to bias_ih and then set to zero",
        "merged(layer)：复制一份，把每个 bias_hh 加进 bias_ih 再置零",
    ),
    "helper with_dropout": Words(
        "with_dropout(layer): the layer with dropout=0.5, after layer.train()",
        "with_dropout(layer)：dropout=0.5 的同一层，layer.train() 之后",
    ),
    "helper of_cell": Words(
        "of_cell(name, layer): a layer of that cell of cellfuse.cells with the same weights",
        "of_cell(name, layer)：cellfuse.cells 中该单元的层，权重相同",
    ),
    "helper padded": Words(
        "padded, lengths = pad_packed_sequence(output)", "padded, lengths = pad_packed_sequence(output)"
    ),
    "helper pack_padded_sequence": Words(
        "pack_padded_sequence and pad_packed_sequence: from torch.nn.utils.rnn",
        "pack_padded_sequence 和 pad_packed_sequence 来自 torch.nn.utils.rnn",
    ),
    "output-shape": Words(
        "The output of the last layer (layer {top}) at every time step: {axes}.",
        "最后一层（第 {top} 层）在每个时间步的输出：{axes}。",
    ),
    "output-shape packed": Words(
        "The output of the last layer (layer {top}) at every time step. Like the input it is packed; "
        "padded, lengths = pad_packed_sequence(output) makes it [T, B, {features}].",
        "最后一层（第 {top} 层）在每个时间步的输出。它和输入一样是打包的；"
        "padded, lengths = pad_packed_sequence(output) 把它还原成 [T, B, {features}]。",
    ),
    "output-parts two": Words(
        "Its first {W} features are the forward direction's, its last {W} the reverse direction's: side "
        "by side, not added.",
        "前 {W} 个特征属于正向，后 {W} 个属于反向：并排拼接，不是相加。",
    ),
    "output-parts one": Words(
        "It is what the equations above give, step after step.", "它就是上面的公式逐步算出的结果。"
    ),
    "states-shape": Words(
        "{names} hold the state after the last time step: {axes}, one entry for every layer and direction.",
        "{names} 是最后一个时间步之后的状态：{axes}，每层、每个方向各占一项。",
    ),
    "states-shape one": Words(
        "{names} holds the state after the last time step: {axes}, one entry for every layer and direction.",
        "{names} 是最后一个时间步之后的状态：{axes}，每层、每个方向各占一项。",
    ),
    "order": Words("{entries}.", "{entries}。"),
    "order two": Words(
        "{name}[k] is layer k // 2, direction k % 2 (0 forward, 1 reverse): {entries}.",
        "{name}[k] 是第 k // 2 层、方向 k % 2（0 正向，1 反向）：{entries}。",
    ),
    "order one": Words("{name}[k] is layer k: {entries}.", "{name}[k] 是第 k 层：{entries}。"),
    "entry": Words("{name}[{k}] layer {layer}", "{name}[{k}] 第 {layer} 层"),
    "entry forward": Words("{name}[{k}] layer {layer} forward", "{name}[{k}] 第 {layer} 层正向"),
    "entry reverse": Words("{name}[{k}] layer {layer} reverse", "{name}[{k}] 第 {layer} 层反向"),
    "order-view": Words(
        "As a table of layers and directions: {name}.view(L, D, ...)[layer, direction].",
        "按层和方向排成表：{name}.view(L, D, ...)[层, 方向]。",
    ),
    "same-order": Words("{names}: in the same order.", "{names} 的顺序相同。"),
    "inner-states": Words(
        "The inner layers' states, {names}, are not there: inner layers only feed the layer above.",
        "内层的状态 {names} 不在那里：内层只送给上面一层。",
    ),
    "other-states": Words(
        "{names} cannot be found in output: only {state} leaves the cell.",
        "{names} 在 output 里找不到：送出单元的只有 {state}。",
    ),
    "output-is-no-state": Words(
        "Not in output: this cell computes its output from the state, so {names} must be taken from "
        "the layer's second result.",
        "不在 output 里：这个单元的输出由状态另外算出，所以 {names} 只能取自层的第二个返回值。",
    ),
    "forward-last": Words(
        "Forward direction: it ends at the last time step (index -1), so its last state is the first "
        "half of the features there.",
        "正向：在最后一个时间步（下标 -1）结束，所以它的最后状态是那里的前一半特征。",
    ),
    "one-way-last": Words("At the last time step (index -1).", "在最后一个时间步（下标 -1）。"),
    "reverse-last": Words(
        "Reverse direction: it starts at the last time step and ends at t=0, so its last state is the "
        "second half of the features at t=0.",
        "反向：从最后一个时间步开始，在 t=0 结束，所以它的最后状态是 t=0 处的后一半特征。",
    ),
    "reverse-first": Words(
        "Not beside the forward direction's: there the reverse direction has made its first step only.",
        "不在正向最后状态的旁边：反向在那里才走了第一步。",
    ),
    "forward-last packed": Words(
        "Forward direction: at each sequence's own last valid step, lengths - 1, first half of the features.",
        "正向：在每条序列自己的最后一个有效步 lengths - 1，前一半特征。",
    ),
    "one-way-last packed": Words(
        "At each sequence's own last valid step, lengths - 1, not at the last step of all.",
        "在每条序列自己的最后一个有效步 lengths - 1，而不是所有序列共同的最后一步。",
    ),
    "reverse-last packed": Words(
        "Reverse direction: it starts at each sequence's own last valid step and ends at t=0, so its "
        "last state is the second half of the features at t=0.",
        "反向：从每条序列自己的最后一个有效步开始，在 t=0 结束，所以它的最后状态是 t=0 处的后一半特征。",
    ),
    "batch-first off": Words(
        "batch_first=False: input and output are [T, B, ...]. With batch_first=True they would be "
        "[B, T, ...], but {names} would stay {axes}.",
        "batch_first=False：input 和 output 是 [T, B, ...]。若 batch_first=True，它们变成 "
        "[B, T, ...]，但 {names} 仍是 {axes}。",
    ),
    "batch-first on": Words(
        "batch_first=True: input and output are [B, T, ...], but not the states: {names} stay {axes}.",
        "batch_first=True：input 和 output 是 [B, T, ...]，状态却不变：{names} 仍是 {axes}。",
    ),
    "unbatched": Words(
        "The input has no batch axis, so output and {names} have none. It is the same as a batch of one.",
        "输入没有批量维，所以 output 和 {names} 也没有。结果与只有一条序列的批量相同。",
    ),
    "packed-data": Words(
        "Nowhere in it: input.data and output.data hold the {n} valid steps only, so nothing is computed "
        "for padding. batch_first has no effect on them.",
        "哪里都没有：input.data 和 output.data 只含 {n} 个有效步，填充处什么也不计算。"
        "batch_first 对它们不起作用。",
    ),
    "packed-zeros": Words(
        "Only pad_packed_sequence puts it back: zeros after the end of each sequence.",
        "只有 pad_packed_sequence 会把它放回来：每条序列结束之后是零。",
    ),
    "packed-order": Words(
        "The sequences were sorted by length for packing; lengths, {names} and padded have them in your "
        "order again.",
        "打包时序列按长度排过序；lengths、{names} 和 padded 恢复了你原来的顺序。",
    ),
    "padding": Words(
        "The layer does not know: it computes padded steps like all others, and {name} is the state "
        "after them. Forward outputs are right up to the end: the last valid one of sequence b is {valid}. "
        "After pack_padded_sequence, {name} is the state after each sequence's own end: a reverse direction "
        "starts at each sequence's own last valid step and ends at t=0. Here the last sequence ends one "
        "step early:",
        "层并不知道：填充的步和其他步一样计算，{name} 是走完它们之后的状态。"
        "正向的输出在序列结束之前都是对的：序列 b "
        "的最后一个有效输出是 {valid}。用 pack_padded_sequence 打包后，{name} 是每条序列自己结束时的状态："
        "反向从每条序列自己的最后一个有效步开始，在 t=0 结束。这里让最后一条早一步结束：",
    ),
    "initial-one": Words(
        "hx, shaped like {names}. Left out, it is {value}.", "hx，形状与 {names} 相同。不给时是{value}。"
    ),
    "initial-many": Words(
        "hx, a tuple ({initial}) shaped like ({names}). Left out, it is {value}.",
        "hx，即元组 ({initial})，形状与 ({names}) 相同。不给时是{value}。",
    ),
    "given-one": Words("Your hx, shaped like {names}.", "你给的 hx，形状与 {names} 相同。"),
    "given-many": Words(
        "Your hx, a tuple ({initial}) shaped like ({names}).",
        "你给的 hx，即元组 ({initial})，形状与 ({names}) 相同。",
    ),
    "zeros": Words("zeros", "零"),
    "zeros but": Words("zeros, but {special}", "零，但 {special}"),
    "go-on": Words(
        "Yes. The state is all the layer remembers: give it to the next call as hx and the output goes "
        "on as if it had never stopped.",
        "能。层记住的一切都在状态里：把它作为 hx 交给下一次调用，输出就像从未中断一样继续。",
    ),
    "whole-sequence": Words(
        "No: the reverse direction needs the end first. Without the last time step the outputs before it "
        "change, too.",
        "不能：反向要先有序列的末尾。去掉最后一个时间步，前面的输出也会变。",
    ),
    "gate-rows": Words(
        "The gates' rows, one gate below the other, {H} rows each, in this order: weight_ih {ih}; "
        "weight_hh {hh}{biases}. Cut like this, the equations give {name}.",
        "各门的行自上而下排列，每个门 {H} 行，顺序为：weight_ih {ih}；weight_hh {hh}{biases}。"
        "这样切开，公式就得到 {name}。",
    ),
    "biases too": Words("; each bias as its weight", "；偏置与各自的权重相同"),
    "nothing": Words("none", "无"),
    "wider-weights": Words(
        "Layer 0 reads the {I} features of the input, every other layer the {W} of the layer below: "
        "columns of weight_ih.",
        "第 0 层读取输入的 {I} 个特征，其余各层读取下面一层的 {W} 个特征，即 weight_ih 的列数。",
    ),
    "projection-width": Words(
        "proj_size={P}: {narrow} is {P} wide, {wide} stays {H} wide.",
        "proj_size={P}：{narrow} 的宽度是 {P}，{wide} 仍是 {H}。",
    ),
    "biases one": Words(
        "There are two biases because torch.nn and cuDNN keep one beside W and one beside R. The two of each "
        "gate, b and d, meet in one sum: moving d into b changes nothing.",
        "有两个偏置，是因为 torch.nn 和 cuDNN 给 W 和 R 各配一个。每个门的 b 和 d 加在同一个和里：把 d "
        "并入 b "
        "不改变任何结果。",
    ),
    "biases apart": Words(
        "The two biases b and d are not redundant for {gates}: there they are not in the same sum (see the "
        "equations), so moving d into b changes the result.",
        "对 {gates} 来说两个偏置 b 和 d 并不重复：它们不在同一个和里（见公式），把 d 并入 b 会改变结果。",
    ),
    "variant gru": Words(
        "r acts after the product: r ⊙ (R_n h + d_n). In the other published version, "
        "cellfuse.cells.gru_reset_before, it acts before: R_n (r ⊙ h) + d_n. With the same weights the "
        "results differ.",
        "r 作用在乘积之后：r ⊙ (R_n h + d_n)。另一个发表过的版本 cellfuse.cells.gru_reset_before "
        "中它作用在乘积"
        "之前：R_n (r ⊙ h) + d_n。权重相同，结果不同。",
    ),
    "variant gru_reset_before": Words(
        "r acts before the product: R_n (r ⊙ h) + d_n. torch.nn.GRU, cuDNN and cellfuse.GRU let it act "
        "after: "
        "r ⊙ (R_n h + d_n). With the same weights the results differ.",
        "r 作用在乘积之前：R_n (r ⊙ h) + d_n。torch.nn.GRU、cuDNN 和 cellfuse.GRU 中它作用在乘积之后："
        "r ⊙ (R_n h + d_n)。权重相同，结果不同。",
    ),
    "dropout nowhere": Words(
        "dropout acts between layers, never behind the last one. With one layer there is no such place, so "
        "it would change nothing; put torch.nn.Dropout behind the layer instead.",
        "dropout 只作用在层与层之间，从不在最后一层之后。只有一层时没有这样的位置，所以不起作用；"
        "需要时在层的后面加 torch.nn.Dropout。",
    ),
    "dropout off": Words(
        "dropout is 0 here. It would act between the layers, in training only.",
        "这里 dropout 为 0。若设置，它作用在层与层之间，只在训练时。",
    ),
    "dropout-alone": Words(
        "dropout={p} does nothing: it acts between layers, and there is only one.",
        "dropout={p} 不起作用：它只作用在层与层之间，而这里只有一层。",
    ),
    "dropout-between": Words(
        "dropout={p} zeroes that share of what each layer hands to the layer above, in training only; "
        "after eval(), as here, nothing. Never the last layer's output.",
        "dropout={p} 按这个比例把每层交给上面一层的数置零，只在训练时；eval() 之后（如这里）不起作用。"
        "从不作用于最后一层的输出。",
    ),
    "step-shape one": Words(
        "One call makes one time step and returns {names}: {axes}. The loop over time is yours.",
        "调用一次计算一个时间步，返回 {names}：{axes}。时间上的循环由你来写。",
    ),
    "step-shape many": Words(
        "One call makes one time step and returns the tuple ({names}): {axes}. The loop over time is yours.",
        "调用一次计算一个时间步，返回元组 ({names})：{axes}。时间上的循环由你来写。",
    ),
    "step-shape output": Words(
        "One call makes one time step and returns (output, states), states being {names}: {axes}. The "
        "loop over time is yours.",
        "调用一次计算一个时间步，返回 (output, 状态)，状态是 {names}：{axes}。时间上的循环由你来写。",
    ),
    "step-equations": Words("They are what the equations above give.", "它们就是上面公式的结果。"),
    # the counts
    "title counts": Words("How much: for these sizes, one forward pass", "多少：按上面的尺寸，前向一遍"),
    "count parameters": Words("parameters", "参数"),
    "count W": Words("W (weight_ih)", "W（weight_ih）"),
    "count R": Words("R (weight_hh)", "R（weight_hh）"),
    "count biases": Words("biases b and d", "偏置 b 和 d"),
    "count projection": Words("W_hr (weight_hr)", "W_hr（weight_hr）"),
    "count own": Words("the cell's own", "单元自己的"),
    "count constants": Words("constants, not learned", "常数，不学习"),
    "count multiply-adds": Words("multiply-adds", "乘加"),
    "count W x": Words("W x, before the loop", "W x，循环之前"),
    "count R h": Words("R h, inside the loop", "R h，循环之内"),
    "count W_hr": Words("W_hr, inside the loop", "W_hr，循环之内"),
    "count element-wise": Words("element-wise", "逐元素运算"),
    "count FLOPs": Words("FLOPs", "浮点运算"),
    "count chain": Words("steps in a row", "须依次的步数"),
    "count chain two": Words("steps in a row", "须依次的步数"),
    "bytes": Words("bytes", "字节"),
    "bytes parameters": Words("parameters", "参数"),
    "bytes input": Words("input", "input"),
    "bytes output": Words("output", "output"),
    "bytes state": Words("last states", "最后状态"),
    "note flops": Words(
        "A multiply-add is 2 FLOPs; each of σ, tanh, ⊙, +, ... on one number is 1.",
        "一次乘加是 2 次浮点运算；σ、tanh、⊙、+ 等对一个数算 1 次。",
    ),
    "note chain one": Words(
        "In a row: a step waits for the step before it, and for the layer below at its own t only.",
        "依次：每步要等前一步，以及下面一层同一个 t 的结果。",
    ),
    "note chain two": Words(
        "In a row: a step waits for the step before it, and with two directions for all steps of the "
        "layer below.",
        "依次：每步要等前一步；双向时还要等下面一层的所有步。",
    ),
    "memory": Words(
        "Memory in training, measured here: {kept} bytes are kept for the backward pass besides parameters "
        "and input, {each} for each time step of a sequence; with output and last states {alive}. It "
        "depends on the processor and on what runs the layer.",
        "训练占用的内存（在这里实测）：除参数和输入外，为反向传播保留 {kept} 字节，每条序列每个时间步 "
        "{each} 字节；"
        "加上 output 和最后状态共 {alive} 字节。它取决于处理器和运行这一层的后端。",
    ),
    "memory large": Words(
        "Memory in training is not measured at this size; it grows with T and B, so explain a shorter "
        "sequence.",
        "这样的尺寸不实测训练占用的内存；它与 T 和 B 成正比，可以解释一条较短的序列。",
    ),
    # while it takes long
    "progress step": Words(
        "explain: time step {done} of {total} …", "explain：第 {done} / {total} 个时间步 …"
    ),
    "progress statement": Words(
        "explain: statement {done} of {total} …", "explain：检验第 {done} / {total} 个结论 …"
    ),
    # pictures
    "picture cell": Words("One time step of {cell}", "{cell} 的一个时间步"),
    "picture cell text": Words(
        "The step's equations as boxes and arrows: {equations}", "这一步的公式，画成方框和箭头：{equations}"
    ),
    "picture rows": Words("rows {rows}", "行 {rows}"),
    "picture x": Words("input at t", "t 的输入"),
    "picture before": Words("state of t−1", "t−1 的状态"),
    "picture after": Words("state to t+1", "状态，传给 t+1"),
    "picture also output": Words("and output at t", "也是 t 的输出"),
    "picture output only": Words("output at t", "t 的输出"),
    "legend spine": Words(
        "Thick: the way of a state through the step that meets no matrix.",
        "粗线：状态穿过这一步、不经过任何矩阵的路径。",
    ),
    "legend letters": Words("{letters}.", "{letters}。"),
    "legend biases one": Words(
        "b and d of a box are added: two because torch.nn and cuDNN keep two; one would do.",
        "方框里 b 和 d 相加：有两个只因 torch.nn 和 cuDNN 各留一个；一个就够。",
    ),
    "legend biases apart": Words(
        "b and d of {gates} are in different boxes: both are needed.",
        "{gates} 的 b 和 d 不在同一个方框里：两个都需要。",
    ),
    "legend deviation": Words("Not as in the paper: {text}.", "与原文不同：{text}。"),
    "legend step": Words(
        "Boxes with rows hold weights; every time step uses the same ones.",
        "标有行号的方框含权重；所有时间步共用。",
    ),
    "picture stack": Words("{title} over time", "{title} 沿时间展开"),
    "picture stack text": Words(
        "Time runs to the right, layers upwards. Input {input}, output {output}; {names} {states}.",
        "时间向右，层向上。input {input}，output {output}；{names} {states}。",
    ),
    "picture layer": Words("Layer {layer} of {title} over time", "{title} 的第 {layer} 层，沿时间展开"),
    "way 0": Words("forward", "正向"),
    "way 1": Words("reverse", "反向"),
    "box x": Words(
        "x[{t}]: the input at t={t}, [{axes}] = {shape}", "x[{t}]：t={t} 的输入，[{axes}] = {shape}"
    ),
    "box cell": Words(
        "layer {layer}, {way}, t={t}: one step of {cell}; its state is {shape}",
        "第 {layer} 层，{way}，t={t}：{cell} 的一步；状态的形状是 {shape}",
    ),
    "box join": Words(
        "layer {layer} at t={t}: both directions' outputs side by side, {shape}; both directions of the "
        "layer above read all of it",
        "第 {layer} 层在 t={t}：两个方向的输出并排拼接，{shape}；上面一层的两个方向都读取全部",
    ),
    "box out": Words(
        "output at t={t}: {shape}, of the last layer only", "t={t} 的 output：{shape}，只来自最后一层"
    ),
    "box half": Words("{way}: features {part} at t={t}", "{way}：t={t} 的特征 {part}"),
    "box final": Words(
        "{name}[{k}]: {state} of layer {layer}, {way}, after t={t}, {shape}",
        "{name}[{k}]：第 {layer} 层{way}在 t={t} 之后的{state}，{shape}",
    ),
    "box start": Words(
        "the states of layer {layer}, {way}, before its first step t={t}",
        "第 {layer} 层{way}在第一步 t={t} 之前的状态",
    ),
    "box below": Words("layer {layer}", "第 {layer} 层"),
    "box gap": Words("{n} more", "{n} 步"),
    "box gap title": Words("time steps in the same way: {n}", "同样的 {n} 个时间步"),
    "box layers": Words(
        "… {n} layers of the same shape: {first} to {last} …",
        "…… 形状相同的 {n} 层：第 {first} 到 {last} 层 ……",
    ),
    "lane": Words("layer {layer} {sign}", "第 {layer} 层 {sign}"),
    "sieve": Words("dropout {p}", "dropout {p}"),
    "legend solid": Words("Solid, →: forward direction, from t=0 on.", "实线，→：正向，从 t=0 开始。"),
    "legend dashed": Words(
        "Dashed, ←: reverse direction, from t={last} to t=0; its last state leaves at t=0.",
        "虚线，←：反向，从 t={last} 到 t=0；它的最后状态在 t=0 处离开。",
    ),
    "legend ends": Words(
        "Orange: output, the last layer at every t. Right: last states of every layer and direction.",
        "橙框：output，最后一层的每个 t。右侧：每层、每个方向的最后状态。",
    ),
    "legend dropout between": Words(
        "dropout acts between layers only, in training: not on output, not on the states.",
        "dropout 只作用在层与层之间，只在训练时：不作用于 output，也不作用于状态。",
    ),
    "legend dropout nowhere": Words(
        "dropout acts between layers: with one layer it has no place and does nothing.",
        "dropout 作用在层与层之间：只有一层时没有位置，不起作用。",
    ),
    "legend k": Words("k = layer · {D} + direction.", "k = 层号 · {D} + 方向。"),
    "picture gates": Words("{title}: values over time on {what}", "{title}：在{what}上各时间步的数值"),
    "picture gates text": Words(
        "Heat maps of the first sequence: one row for each of up to 16 units, time to the right.",
        "第一条序列的热图：每行一个单元（最多 16 个），时间向右。",
    ),
    "gates lane": Words("layer {layer}, {way}", "第 {layer} 层，{way}"),
    "gates gate": Words(
        "mean {mean} · {low} < 0.1 · {high} > 0.9", "平均 {mean} · {low} < 0.1 · {high} > 0.9"
    ),
    "gates half-life": Words("half-life of {state} {n} steps", "{state} 的半衰期 {n} 步"),
    "gates value": Words(
        "mean {mean} · colours from −{high} to {high}", "平均 {mean} · 颜色从 −{high} 到 {high}"
    ),
    "gates note": Words(
        "First sequence, up to 16 units and 100 columns (means of several steps if there are more); numbers "
        "over up to 8 sequences and 64 units.",
        "第一条序列，最多 16 个单元、100 列（步数更多时取平均）；数字取自最多 8 条序列、64 个单元。",
    ),
    "scale gate": Words("colours of gates, 0 to 1", "门的颜色，从 0 到 1"),
    "scale value": Words("colours of other values, negative to positive", "其他数值的颜色，从负到正"),
    "padded": Words("padding: nothing is computed here", "填充：这里什么也不计算"),
    "picture ragged": Words("{title}: packed sequences", "{title}：打包的序列"),
    "picture ragged text": Words(
        "A row for each sequence; {n} valid steps in all.", "每行一条序列；共 {n} 个有效步。"
    ),
    "ragged row": Words("b={b}, length {n}", "b={b}，长度 {n}"),
    "ragged step": Words("sequence {b}, t={t}: valid", "序列 {b}，t={t}：有效"),
    "ragged forward": Words(
        "→ thick frame: the forward direction's last state, at each sequence's own last valid step.",
        "→ 粗框：正向的最后状态，在每条序列自己的最后一个有效步。",
    ),
    "ragged reverse": Words(
        "← thick dashed frame: the reverse direction's last state, at t=0; it starts at the last valid step.",
        "← 粗虚线框：反向的最后状态，在 t=0；反向从最后一个有效步开始。",
    ),
    "ragged padding": Words(
        "Hatched: padding. Nothing is computed there; padded has zeros.",
        "斜线：填充。那里什么也不计算；padded 里是零。",
    ),
    "ragged more": Words("… and {n} more sequences.", "…… 还有 {n} 条序列。"),
    "picture shapes": Words("{title}: shapes", "{title}：形状"),
    "shape own": Words("batch_first={value} (yours)", "batch_first={value}（你的）"),
    "shape other": Words("batch_first={value}", "batch_first={value}"),
    "shape swapped": Words("T and B change places", "T 和 B 互换"),
    "shape same": Words("stays as it is", "不变"),
    "shape unbatched": Words(
        "One sequence without a batch axis: batch_first has no effect.",
        "单条序列，没有批量维：batch_first 不起作用。",
    ),
    "shape packed": Words(
        "Packed: one axis S of all valid steps; batch_first has no effect.",
        "打包：所有有效步排成一维 S；batch_first 不起作用。",
    ),
    "shape step": Words("One time step: no axis of time.", "一个时间步：没有时间维。"),
    "shape weights": Words("The parameters, one block of rows for each gate", "参数，每个门一块行"),
    "shape more": Words(
        "… and {n} more of the same kind, for the other layers and directions.",
        "…… 其他层和方向还有同类的 {n} 个。",
    ),
    "axis T": Words("T: time steps", "T：时间步"),
    "axis B": Words("B: sequences in the batch", "B：批量中的序列"),
    "axis I": Words("I: input features", "I：输入特征"),
    "axis S": Words("S: valid steps of all sequences", "S：所有序列的有效步"),
    "axis H": Words("H: hidden units", "H：隐藏单元"),
    "axis P": Words("P: units of the projected state", "P：投影后的单元"),
    "axis features": Words(
        "D*H or D*P: both directions' features side by side", "D*H 或 D*P：两个方向的特征并排"
    ),
    "axis stack": Words("L or L*D: one entry for every layer and direction", "L 或 L*D：每层、每个方向一项"),
    # the page
    "page theme": Words("Light / dark", "浅色 / 深色"),
    "page lead": Words(
        "{shapes}. Every statement below was run on {what}.", "{shapes}。下面每个结论都在{what}上运行过。"
    ),
    "page map": Words("The layers over time", "沿时间展开的各层"),
    "page t": Words("time step t", "时间步 t"),
    "page back": Words("◀ step", "◀ 上一步"),
    "page play": Words("Play: what waits for what", "播放：谁等谁"),
    "page next": Words("step ▶", "下一步 ▶"),
    "page keys": Words("Keys", "键盘操作"),
    "page still": Words(
        "A still picture, should the page above be missing", "若上面没有显示页面，看这张静态图"
    ),
    "page keys text": Words(
        "In the map: arrows go to the nearest box, Home and End to the ends of its row, Enter chooses the "
        "box and its time step, Space plays or stops. Esc closes, ? opens this.",
        "在图中：方向键移到最近的方框，Home 和 End 到本行两端，Enter 选中方框及其时间步，空格播放或停止。"
        "Esc 关闭，? 打开本说明。",
    ),
    "page questions": Words("Questions, answered by pointing", "问题：指给你看"),
    "page cell": Words("The cell: one time step", "循环单元（cell）：一个时间步"),
    "page equations": Words("Equations", "公式"),
    "page code": Words("The code", "代码"),
    "page lane": Words("layer and direction", "层和方向"),
    "page unit": Words("unit", "单元"),
    "page lit": Words("Lit in the picture:", "图中高亮："),
    "page shapes": Words("Shapes", "形状"),
    "page ragged": Words("Packed sequences", "打包的序列"),
    "page gates": Words("Gates and states over time", "门和状态随时间的变化"),
    "page counts": Words("How much", "多少"),
    "question output": Words("What is output, and what is {names}?", "output 是什么，{names} 又是什么？"),
    "question reverse": Words("Where is the reverse direction's last state?", "反向的最后状态在哪里？"),
    "question order": Words("In which order are the entries of {first}?", "{first} 的各项按什么顺序排列？"),
    "question batch": Words("What does batch_first change?", "batch_first 改变什么？"),
    "question padding": Words(
        "Where is the last valid step of padded sequences?", "有填充时，最后一个有效步在哪里？"
    ),
    "question biases": Words("Why are there two biases?", "为什么有两个偏置？"),
    "question halves": Words("Which half of output is which direction?", "output 的哪一半是哪个方向？"),
    "question initial": Words("What comes before the first step?", "第一步之前是什么？"),
    "question variant": Words("Which version of the equations is this?", "这是公式的哪个版本？"),
    "question dropout": Words("Where does dropout act?", "dropout 作用在哪里？"),
    "question pieces": Words("Can the sequence be run in pieces?", "序列能分段运行吗？"),
    "note one way": Words(
        "This layer has one direction: output holds it alone, and there is no second half.",
        "这一层只有一个方向：output 里只有它，没有第二个一半。",
    ),
    "note biases": Words(
        "This layer does not have two biases for every gate: see the parameters.",
        "这一层并非每个门都有两个偏置：见参数。",
    ),
    "note no padding": Words("There is no padding here.", "这里没有填充。"),
    # models
    "model others": Words("Other parts", "其他部分"),
    "model itself": Words("(itself)", "（自身）"),
    "model parameters": Words("{n} parameters", "{n} 个参数"),
    "model total": Words("{n} parameters in the whole model", "整个模型共 {n} 个参数"),
}

# What the published cells say of their gates and deviations, in Chinese. A cell of your own is quoted as
# it is. A test holds the table complete.
CELL_WORDS: dict[str, str] = {
    "input": "输入",
    "forget": "遗忘",
    "output": "输出",
    "reset": "重置",
    "update": "更新",
    "candidate": "候选值",
    "content (input part only)": "内容（只看输入）",
    "mapped input": "映射后的输入",
    "gate from the state": "由状态得到的门",
    "gate from z": "由 z 得到的门",
    "the new state before its non-linearity": "经过非线性函数之前的新状态",
    "the new state before relu": "经过 relu 之前的新状态",
    "no peepholes": "没有窥视孔连接（peephole）",
    "r multiplies R_n h + d_n, not h, as torch.nn.GRU and cuDNN do: one product a step, not two":
        "r 乘的是 R_n h + d_n 而不是 h，与 torch.nn.GRU 和 cuDNN 相同：每步一次矩阵乘法而不是两次",
    "the two shifts and the bias of the pre-activation, which only add up, are one parameter":
        "两个平移量和预激活的偏置只会相加，所以合成一个参数",
    "no peepholes and no second, non-recurrent projection, as torch.nn.LSTM(proj_size=P)":
        "没有窥视孔连接（peephole），也没有第二个非循环的投影，与 torch.nn.LSTM(proj_size=P) 相同",
    "tanh for the two squashing functions g and h, which have other ranges in the paper":
        "压缩函数 g 和 h 都用 tanh；原文中它们的值域不同",
    "the map of the input is one layer with tanh; the paper allows any network":
        "输入的映射是带 tanh 的一层；原文允许任意网络",
    "tanh where Elman has the logistic function, as torch.nn.RNN does":
        "用 tanh 代替 Elman 的 logistic 函数，与 torch.nn.RNN 相同",
    "the recurrent matrix does not start as the identity; torch.nn.RNN's start is used":
        "循环矩阵的初值不是单位矩阵，而与 torch.nn.RNN 相同",
    "m starts at minus infinity, so that the first step has i = 1 and cannot divide by zero":
        "m 从负无穷开始，这样第一步 i = 1，不会除以零",
    "what passes by": "绕过去的部分",
    "a window of one time step; a wider one is a convolution of the input before the layer":
        "窗口只有一个时间步；更宽的窗口相当于在这一层之前对输入做卷积",
    "the highway carries W_s x + b_s, so that I and H may differ; the candidate has a bias":
        "旁路上走的是 W_s x + b_s，因此 I 和 H 可以不同；候选值带偏置",
}  # fmt: skip
