"""Every claim is true on real tensors over a grid of layers, and false where a tensor is wrong."""

import re

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

import cellfuse as cf
from cellfuse.explain.by_hand import ByHand
from cellfuse.explain.claims import claims_of
from cellfuse.explain.evaluate import in_training, names_of, result_of, run, stand_in
from cellfuse.explain.subject import subject_of
from cellfuse.explain.tensors import tensors_of
from compare import OPTIONS
from explain.cases import FORMS, GRID, B, H, I, T, leaky, made, options, read_out


def check(layer, input, hx=None):
    facts = cf.explain(layer, input, hx)
    assert facts.was_given_input
    wrong = [claim.code for claim in facts.claims if claim.holds is not True]
    assert wrong == [], layer
    return facts


NN = {
    "RNN": lambda **options: torch.nn.RNN(I, H, **options),
    "GRU": lambda **options: torch.nn.GRU(I, H, **options),
    "LSTM": lambda **options: torch.nn.LSTM(I, H, **options),
    "projected LSTM": lambda **options: torch.nn.LSTM(I, H, proj_size=2, **options),
}
OURS = {
    "RNN": lambda **options: cf.RNN(I, H, **options),
    "GRU": lambda **options: cf.GRU(I, H, **options),
    "LSTM": lambda **options: cf.LSTM(I, H, **options),
    "projected LSTM": lambda **options: cf.LSTM(I, H, proj_size=2, **options),
}


@pytest.mark.parametrize("kind", NN)
@pytest.mark.parametrize("table", [NN, OURS], ids=["torch", "cellfuse"])
def test_all_claims_hold_on_the_grid(table, kind):
    for form, L, D, bias in GRID:
        layer = table[kind](**options(form, L, D, bias))
        check(layer, made(layer, form))


@pytest.mark.parametrize("cell", [*cf.cells.CELLS.values(), leaky, read_out], ids=lambda cell: cell.name)
def test_all_claims_hold_for_every_cell(cell):
    for form, L, D, bias in GRID[::5]:
        layer = cell.layer(I, H, **options(form, L, D, bias), **OPTIONS.get(cell.name, {}))
        check(layer, made(layer, form))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["gru", "lstm", "projected_lstm", "leaky"])
def test_all_claims_hold_with_initial_states(form, name):
    cell = leaky if name == "leaky" else cf.cells.find(name)
    layer = cell.layer(I, H, **options(form, 2, 2, True), **OPTIONS.get(name, {}))
    widths = [2 if cell.width(state) == "P" else H for state in cell.states]
    batch = () if form == "unbatched" else (B,)
    hx = tuple(torch.randn(4, *batch, width, dtype=torch.float64) for width in widths)
    facts = check(layer, made(layer, form), hx if len(hx) > 1 else hx[0])
    assert facts.claim("given").code.startswith("hx")
    assert facts.options["has_hx"]


@pytest.mark.parametrize("D", [1, 2])
def test_all_claims_hold_on_one_step_and_one_sequence(D):
    for length, batch in ((1, 3), (1, 1), (4, 1)):
        layer = cf.LSTM(I, H, num_layers=2, bidirectional=D == 2, dtype=torch.float64)
        check(layer, made(layer, "batched", batch, length))
        check(layer, made(layer, "unbatched", length=length))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_claims_hold_in_lower_precision(dtype):
    for layer in (torch.nn.GRU(6, 16, 2, bidirectional=True), cf.cells.mgu.layer(6, 16, 2)):
        check(layer.to(dtype), torch.randn(12, 4, 6).to(dtype))


def test_all_claims_hold_with_dropout():
    for form in FORMS:
        layer = cf.GRU(I, H, **options(form, 2, 2, True), dropout=0.5)
        assert check(layer, made(layer, form)).claim("dropout")
    with pytest.warns(UserWarning, match="dropout"):
        layer = torch.nn.GRU(I, H, dropout=0.5, dtype=torch.float64)
    assert "in_training(layer)" in check(layer, made(layer, "batched")).claim("dropout").code


@pytest.mark.parametrize("bias", [True, False])
def test_all_claims_hold_for_modules_of_one_step(bias):
    some = {"bias": bias, "dtype": torch.float64}
    modules = [
        torch.nn.RNNCell(I, H, **some),
        torch.nn.GRUCell(I, H, **some),
        torch.nn.LSTMCell(I, H, **some),
    ]
    modules += [cf.RNNCell(I, H, **some), cf.GRUCell(I, H, **some), cf.LSTMCell(I, H, **some)]
    modules += [
        cell.one_step(I, H, **some, **OPTIONS.get(cell.name, {}))
        for cell in (*cf.cells.CELLS.values(), leaky, read_out)
    ]
    for module in modules:
        for shape in ((B, I), (I,)):
            x = torch.randn(shape, dtype=torch.float64)
            check(module, x)
            _, states = result_of(module, x, None)
            check(module, x, tuple(states) if len(states) > 1 else states[0])


# Wrong tensors: each turns what a claim reads into something else.


def states_of(names):
    return {n: v for n, v in names.items() if n.endswith(("_n", "_1"))}


def changed_states(change):
    return lambda names, subject: {n: change(v) for n, v in states_of(names).items()}


def changed_output(change):
    def plant(names, subject):
        key = "padded" if "padded" in names else "output"
        return {key: change(names[key], subject)} if key in names and names[key] is not None else {}

    return plant


def time_of(subject):
    return 1 if subject.batch_first and subject.form == "batched" else 0


def other_layer(names, subject):
    layer = names["layer"]
    weights = {
        name: torch.nn.Parameter(value * 0.5 + 0.01, requires_grad=False)
        for name, value in layer._parameters.items()
    }
    made = stand_in(layer, _parameters=weights)
    if "_flat_weights" in layer.__dict__:
        made.__dict__["_flat_weights"] = [getattr(made, n) for n in layer._flat_weights_names]
    return {"layer": made}


def rolled_rows(names, subject):
    layer = names["layer"]
    weights = {name: value.roll(subject.sizes["H"] or 1, 0) for name, value in layer._parameters.items()}
    made = stand_in(layer, _parameters=weights)
    return {"by_hand": ByHand(subject, made, names["input"], names["hx"])}


def equal_everywhere(names, subject):
    """States that are the output at every place."""
    ones = {n: torch.ones(v.shape[0], *((B,) * (v.dim() - 2)), 1) for n, v in states_of(names).items()}
    key = "padded" if "padded" in names else "output"
    width = subject.sizes[subject.width]
    ones = {n: one.expand(*one.shape[:-1], width) for n, one in ones.items()}
    return ones | {key: torch.ones_like(names[key], dtype=torch.float32)}


def deaf(names, subject):
    """A layer that gives the same output for any cut of the input."""
    layer, output = names["layer"], names["output"]
    cut = subject.sizes["T"] - 1
    part = output[:, :cut] if time_of(subject) else output[:cut]
    return {"layer": lambda *args: (part, layer(*args)[1])}


def blind_to_padding(names, subject):
    """A layer that computes the padding of packed sequences, too."""
    layer, first = names["layer"], subject.batch_first

    def call(input, *hx):
        if isinstance(input, PackedSequence):
            input = pad_packed_sequence(input, batch_first=first)[0]
        return layer(input, *hx)

    return {"layer": call}


PLANTS = {
    "states of another layer": changed_states(lambda v: v.roll(1, 0)),
    "states of another sequence": changed_states(lambda v: v.flip(1) if v.dim() == 3 else v + 1),
    "states with axes swapped": changed_states(lambda v: v.transpose(0, -1)),
    "states too wide": changed_states(lambda v: torch.cat([v, v], -1)),
    "other states": changed_states(lambda v: v + 0.1),
    "output from back to front": changed_output(lambda v, s: v.flip(time_of(s))),
    "halves of output changed over": changed_output(lambda v, s: v.roll(s.sizes[s.width], -1)),
    "output with axes swapped": changed_output(lambda v, s: v.transpose(0, 1)),
    "output of other numbers": changed_output(lambda v, s: v + 0.1),
    "another layer": other_layer,
    "rows in another order": rolled_rows,
    "equal everywhere": equal_everywhere,
    "a deaf layer": deaf,
    "a layer that is blind to padding": blind_to_padding,
    "a layer in training": lambda names, subject: {"layer": in_training(names["layer"])},
    "options that do nothing": lambda *_: {
        "merged": lambda layer: layer,
        "with_dropout": lambda layer: layer,
        "of_cell": lambda name, layer: layer,
    },
    "other lengths": lambda names, subject: {"lengths": names["lengths"].roll(1)},
    "weights of other shapes": lambda names, subject: {"layer": torch.nn.LSTM(2, 7, 2)},
    "hx of other shapes": lambda names, subject: {"hx": torch.zeros(2, 2, 2)},
    "another input": lambda names, subject: {"input": names["input"] * 2},
    "output of other lengths": lambda names, subject: {"output": names["padded"]},
}


def planted(layer, input, hx=None):
    """(claim, plant, value) for every claim and every wrong tensor that the claim can be run on."""
    output, states = result_of(layer, input, hx)
    subject = subject_of(layer, input, hx is not None)
    names = names_of(layer, subject, input, hx, (output, states))
    for claim in claims_of(subject, tensors_of(layer, subject, input, hx, output, states)):
        assert run(claim, names), claim.code
        for name, plant in PLANTS.items():
            try:
                value = run(claim, names | plant(names, subject))
            except (IndexError, RuntimeError, TypeError, KeyError, ValueError, AttributeError):
                continue
            yield claim, name, value


def without_gradients(layer):
    return stand_in(layer.requires_grad_(False))


PLANTED = [
    (lambda **o: torch.nn.LSTM(I, H, dropout=0.5, **o), 3, 2, False),
    (lambda **o: cf.GRU(I, H, **o), 2, 1, False),
    (lambda **o: cf.GRU(I, H, **o), 2, 1, True),
    (lambda **o: torch.nn.LSTM(I, H, proj_size=2, **o), 2, 2, True),
    (lambda **o: leaky.layer(I, H, **o), 2, 2, False),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("which", range(len(PLANTED)))
def test_every_claim_fails_on_some_wrong_tensor(form, which):
    make, L, D, has_hx = PLANTED[which]
    layer = without_gradients(make(**options(form, L, D, True)))
    input, hx = made(layer, form), None
    if has_hx:
        _, states = result_of(layer, input, None)
        hx = tuple(states) if len(states) > 1 else states[0]
    failed, seen = set(), set()
    for claim, _, value in planted(layer, input, hx):
        seen.add(claim.key)
        if not value:
            failed.add(claim.key)
    assert seen - failed == set()


def test_every_claim_about_one_step_fails_on_some_wrong_tensor():
    for module in (torch.nn.LSTMCell(I, H), leaky.one_step(I, H), cf.GRUCell(I, H)):
        layer = without_gradients(module.double())
        results = list(planted(layer, torch.randn(B, I, dtype=torch.float64)))
        seen = {claim.key for claim, _, _ in results}
        assert {claim.key for claim, _, value in results if not value} == seen


WRONG = {
    "forward-last": {"output from back to front", "halves of output changed over", "states of another layer"},
    "reverse-last": {"output from back to front", "halves of output changed over", "states of another layer"},
    "order": {"states of another layer", "states of another sequence", "rows in another order"},
    "same-order": {"states of another layer", "states of another sequence"},
    "output-parts": {"output from back to front", "halves of output changed over"},
    "gate-rows": {"rows in another order"},
    "states-shape": {"states with axes swapped"},
}


@pytest.mark.parametrize("form", FORMS)
def test_claims_about_slices_fail_on_the_wrong_slice(form):
    layer = without_gradients(torch.nn.LSTM(I, H, **options(form, 2, 2, True)))
    failed = {(claim.key, plant) for claim, plant, value in planted(layer, made(layer, form)) if not value}
    for key, plants in WRONG.items():
        assert {(key, plant) for plant in plants} <= failed, key


@pytest.mark.parametrize(
    ("key", "right", "wrong"),
    [
        ("forward-last", "h_n[2]", "h_n[3]"),
        ("forward-last", "output[-1, :, :6]", "output[0, :, :6]"),
        ("reverse-last", "output[0, :, 6:]", "output[-1, :, 6:]"),
        ("reverse-last", "h_n[3]", "h_n[1]"),
        ("order", "k // 2, k % 2", "k % 2, k // 2"),
        ("gate-rows", 'ih="i f g o"', 'ih="i o f g"'),
        ("gate-rows", 'hh="i f g o"', 'hh="f i g o"'),
    ],
)
def test_a_claim_with_a_wrong_slice_is_false(key, right, wrong):
    layer = without_gradients(torch.nn.LSTM(I, H, **options("batched", 2, 2, True)))
    input = made(layer, "batched")
    subject = subject_of(layer, input, False)
    names = names_of(layer, subject, input, None, result_of(layer, input, None))
    code = cf.explain(layer, input).claim(key).code
    assert eval(code, names)
    assert right in code
    assert not eval(code.replace(right, wrong), names)


def test_claims_that_hold_by_chance_only_are_marked():
    layer = cf.LSTM(I, H, num_layers=2)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    facts = cf.explain(layer, (T, B, I), lang="en")
    false = [claim for claim in facts.claims if not claim.holds]
    assert {claim.key for claim in false} == {"inner-states", "other-states", "dropout"}
    assert all(claim.is_generic for claim in false)
    assert re.search(r"False +# equal here by chance", facts.text())


def with_large_weights(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(8)
    return layer


def test_rounding_that_grows_is_no_mistake():
    layer, input = with_large_weights(torch.nn.LSTM(20, 64, 2, bidirectional=True)), torch.randn(300, 8, 20)
    subject = subject_of(layer, input, False)
    names = names_of(layer, subject, input, None, result_of(layer, input, None))
    claims = cf.explain(layer, input).claims
    assert not all(run(claim, names) for claim in claims)
    assert all(claim.holds for claim in claims)
    assert layer.weight_ih_l0.dtype == torch.float32


def test_rounding_that_outgrows_double_precision_is_told():
    layer = with_large_weights(torch.nn.GRU(20, 64, 2, bidirectional=True))
    facts = cf.explain(layer, torch.randn(300, 8, 20), lang="en")
    false = {claim.key for claim in facts.claims if not claim.holds}
    assert false
    assert false <= {"output-parts", "order", "order-view", "gate-rows"}
    assert "False  # large weights make rounding grow from step to step" in facts.text()


def test_nothing_is_claimed_of_not_a_number():
    layer = cf.GRU(I, H)
    facts = cf.explain(layer, torch.full((T, B, I), float("nan")), lang="en")
    assert {claim.holds for claim in facts.claims} == {None}
    assert "not run: the output has NaN" in facts.text()
