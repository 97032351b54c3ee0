"""The statements about slices: which part of `output` equals which part of the final states."""

from __future__ import annotations

from cellfuse.explain.facts import Claim
from cellfuse.nn import Layer


def claims_of(layer: Layer, form: str) -> list[Claim]:
    """Every statement that holds for this layer on this form of input ("batched", "unbatched", "packed").

    All are written for the layer's own axis order, so that they can be copied into a program.
    """
    made = [*_final_output(layer, form), *_order_of_states(layer, form)]
    if form == "batched":
        made.append(_batch_first(layer))
    if layer.dropout or layer.num_layers == 1:
        made += _dropout(layer, form)
    return made


def _final_output(layer: Layer, form: str) -> list[Claim]:
    """Where the final state of the last layer stands in the output."""
    cell, L, D = layer.cell, layer.num_layers, layer.num_directions
    if not cell.output_is_a_state:
        return [
            Claim(
                "output-is-no-state",
                "True",
                f"output is not a state: the cell returns a value of its own beside {_list(cell.states)}.",
                f"这里 output 不是状态：细胞除状态 {_list(cell.states, '、')} 之外另外返回一个输出。",
            )
        ]
    output, *states = cell.step.results
    state = f"{cell.states[states.index(output)]}_n"
    W = layer.proj_size or layer.hidden_size
    last, first = _at(layer, form, "T - 1"), _at(layer, form, "0")
    if form == "packed":
        forward = f"torch.equal({state}[{(L - 1) * D}], padded[lengths - 1, range(B), :{W}])"
        backward = f"torch.equal({state}[{L * D - 1}], padded[0, :, {W}:])"
    else:
        forward = f"torch.equal({state}[{(L - 1) * D}], output[{last}:{W}])"
        backward = f"torch.equal({state}[{L * D - 1}], output[{first}{W}:])"
    where = ("the last VALID step of each sequence", "每条序列最后一个有效时间步")
    where = where if form == "packed" else ("the last time step", "最后一个时间步")
    made = [
        Claim(
            "forward-last",
            forward,
            f"The forward direction ends at {where[0]}: that is where its final state stands in output.",
            f"正向在{where[1]}结束：它的最终状态就是那里的 output。",
        )
    ]
    if D == 2:
        made.append(
            Claim(
                "reverse-last",
                backward,
                "The reverse direction runs from the end to the start, so its final state stands at the "
                f"FIRST time step of output, in the second half of the features ({W}:).",
                f"反向从末尾走到开头，所以它的最终状态在 output 的第一个时间步，位于特征的后一半（{W}:）。",
            )
        )
    return made


def _order_of_states(layer: Layer, form: str) -> list[Claim]:
    L, D, states = layer.num_layers, layer.num_directions, layer.cell.states
    first = f"{states[0]}_n"
    W = layer.proj_size if layer.cell.width(states[0]) == "P" else layer.hidden_size
    batch = "" if form == "unbatched" else "B, "
    made = [
        Claim(
            "order",
            f"all(torch.equal({first}[l * D + d], {first}.view(L, D, {batch}{W})[l, d])"
            " for l in range(L) for d in range(D))",
            f"{first}[k] is layer k // {D}, direction k % {D} (0 forward, 1 reverse)."
            if D == 2
            else f"{first}[k] is layer k.",
            f"{first}[k] 是第 k // {D} 层、方向 k % {D}（0 为正向，1 为反向）。"
            if D == 2
            else f"{first}[k] 是第 k 层。",
        )
    ]
    hidden = [f"{s}_n" for s in states[1:]]
    if L > 1:
        inner = f"{first}[:{(L - 1) * D}]"
        made.append(
            Claim(
                "not-in-output",
                f"{first}[:{(L - 1) * D}].shape[0] == {(L - 1) * D}",
                f"{inner} (the inner layers) is not in output.",
                f"{inner}（内部各层）不在 output 里。",
            )
        )
    if hidden:
        made.append(
            Claim(
                "states-not-in-output",
                f"{hidden[0]}.shape[0] == L * D",
                f"{_list(hidden)}: in the same order as {first}; nothing of it is in output.",
                f"{_list(hidden, '、')}：顺序与 {first} 相同；它不出现在 output 里。",
            )
        )
    return made


def _batch_first(layer: Layer) -> Claim:
    order = "[B, T, ...]" if layer.batch_first else "[T, B, ...]"
    axis = 0 if layer.batch_first else 1
    first = f"{layer.cell.states[0]}_n"
    return Claim(
        "batch-first",
        f"input.shape[{axis}] == output.shape[{axis}] == {first}.shape[1] == B",
        f"batch_first={layer.batch_first}: input and output are {order}; the states never change places, "
        "the batch is their middle axis.",
        f"batch_first={layer.batch_first}：input 和 output 是 {order}；状态不受影响，批量总在中间那一维。",
    )


def _dropout(layer: Layer, form: str) -> list[Claim]:
    del form
    if layer.num_layers == 1 and layer.dropout:
        return [
            Claim(
                "dropout-idle",
                "L == 1",
                "dropout acts between layers; with one layer there is no place for it and it does nothing.",
                "dropout 只作用在层与层之间；只有一层时没有位置，所以不起作用。",
            )
        ]
    if layer.dropout:
        return [
            Claim(
                "dropout-between",
                "L > 1",
                f"In training, dropout zeroes {layer.dropout:g} of every layer's output but the last.",
                f"训练时 dropout 把每个内部层输出的 {layer.dropout:g} 置零；最后一层之后没有。",
            )
        ]
    return []


def _at(layer: Layer, form: str, t: str) -> str:
    """The index of one time step in output, up to the features."""
    if form == "unbatched":
        return f"{t}, "
    return f":, {t}, " if layer.batch_first else f"{t}, :, "


def _list(names: tuple[str, ...] | list[str], separator: str = ", ") -> str:
    return separator.join(names)
