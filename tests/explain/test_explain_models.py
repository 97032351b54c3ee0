"""What can be explained: layers, modules of one step, models; what is refused; nothing is changed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import cellfuse as cf
from cellfuse.errors import InputError, OptionError
from cellfuse.explain import Explanation, ModelExplanation


class Tagger(nn.Module):
    """Layers of several kinds, called in several ways; its forward takes two arguments."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.encoder = nn.LSTM(8, 6, 2, bidirectional=True, batch_first=True, dropout=0.3)
        self.mixer = cf.cells.mgu.layer(12, 5)
        self.cell = nn.GRUCell(5, 5)
        self.head = nn.Linear(5, 3)
        self.register_parameter("scale", nn.Parameter(torch.ones(())))

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.embed(tokens), lengths, batch_first=True, enforce_sorted=False)
        output, (h_n, _) = self.encoder(packed)
        data, _ = nn.utils.rnn.pad_packed_sequence(output)
        y, h = self.mixer(data, h_n[:1, :, :5].contiguous())
        return self.scale * self.head(self.cell(y[0], hx=h[0]))


def all_hold(facts):
    return all(claim.holds for claim in facts.claims)


def test_every_recurrent_layer_of_a_model_is_found():
    model = Tagger()
    facts = cf.explain(model)
    assert isinstance(facts, ModelExplanation)
    assert [name for name, _ in facts.layers] == ["encoder", "mixer", "cell"]
    assert [(other.name, other.parameters) for other in facts.others] == [
        ("", 1),
        ("embed", 400),
        ("head", 18),
    ]
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    for name, layer in facts.layers:
        own = sum(p.numel() for p in model.get_submodule(name).parameters())
        assert layer.count("count parameters") == own
        assert all_hold(layer)
        assert not layer.was_given_input
        assert layer.sizes["T"] == (1 if layer.kind == "step" else 5)
    text = facts.text("en")
    assert text.startswith("Tagger\n\n## encoder\n\nLSTM(8, 6, num_layers=2, batch_first=True, dropout=0.3")
    assert "  head  Linear(in_features=5, out_features=3, bias=True)  18 parameters" in text
    assert "(itself)  Tagger  1 parameters" in text
    assert "（自身）" in facts.text("zh")


def test_the_layers_of_a_model_are_explained_on_what_reaches_them():
    model, tokens = Tagger(), torch.randint(50, (4, 7))
    facts = cf.explain(model, (tokens, torch.tensor([3, 7, 1, 5])))
    encoder, mixer, cell = (layer for _, layer in facts.layers)
    assert all(layer.was_given_input and all_hold(layer) for layer in (encoder, mixer, cell))
    assert (encoder.form, encoder.lengths) == ("packed", (3, 7, 1, 5))
    assert (mixer.form, mixer.sizes["T"], mixer.options["has_hx"]) == ("batched", 7, True)
    assert (cell.kind, cell.sizes["B"], cell.options["has_hx"]) == ("step", 4, True)


def test_a_layer_that_is_called_twice_is_explained_once():
    shared = nn.GRU(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Sequential(nn.Tanh(), shared)})
    assert [name for name, _ in cf.explain(model).layers] == ["a"]


def test_a_model_with_one_argument_takes_it_as_it_is():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(3, 4)

        def forward(self, x):
            return self.rnn(x)[0][-1]

    facts = cf.explain(Last(), torch.randn(6, 2, 3))
    assert facts.layers[0][1].sizes["T"] == 6


def test_parametrised_layers_are_explained():
    layer = parametrizations.weight_norm(nn.LSTM(3, 4, 2), "weight_hh_l0")
    facts = cf.explain(layer, torch.randn(5, 2, 3))
    assert isinstance(facts, Explanation)
    assert all_hold(facts)
    facts = cf.explain(nn.Sequential(layer))
    assert [name for name, _ in facts.layers] == ["0"]
    assert facts.others == ()


def test_a_class_of_its_own_is_explained_unless_it_has_its_own_forward():
    class Named(nn.LSTM):
        pass

    class Other(nn.LSTM):
        def forward(self, input, hx=None):
            return input

    assert all_hold(cf.explain(Named(3, 4), torch.randn(5, 2, 3)))
    with pytest.raises(InputError, match="Other holds no recurrent layer"):
        cf.explain(Other(3, 4))
    assert [other.title for other in cf.explain(nn.Sequential(nn.GRU(3, 3), Other(3, 4))).others] == [
        "Other(3, 4)"
    ]


def test_converted_layers_are_explained():
    model = cf.convert(nn.Sequential(nn.LSTM(3, 4, bidirectional=True)), report=None)
    assert all_hold(cf.explain(model).layers[0][1])


def test_nothing_is_changed():
    model = Tagger().train()
    fired = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: fired.append(1))
    before, attributes = copy.deepcopy(model.state_dict()), [dict(m.__dict__) for m in model.modules()]
    random = torch.random.get_rng_state()
    cf.explain(model)
    cf.explain(model.encoder, torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert not fired
    assert [dict(m.__dict__) for m in model.modules()] == attributes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_without_numbers_are_explained():
    with torch.device("meta"):
        layers = [nn.LSTM(3, 4, 2), cf.cells.mgu.layer(3, 4)]
    for layer in layers:
        assert all_hold(cf.explain(layer))
        assert next(layer.parameters()).is_meta


def test_a_shape_stands_for_random_input():
    facts = cf.explain(cf.GRU(3, 4, batch_first=True), (2, 7, 3))
    assert (facts.sizes["B"], facts.sizes["T"], facts.form) == (2, 7, "batched")
    assert not facts.was_given_input
    assert cf.explain(cf.GRU(3, 4), [7, 3]).form == "unbatched"
    assert cf.explain(nn.LSTMCell(3, 4), (3,)).form == "unbatched"
    assert cf.explain(nn.LSTM(3, 4), seq_len=9, batch=2).sizes["T"] == 9


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: cf.explain(nn.Linear(3, 4)), InputError, "Linear holds no recurrent layer. explain takes"),
        (lambda: cf.explain(cf.cells.lstm), InputError, r"write explain\(lstm.layer\(input_size, hidden"),
        (lambda: cf.explain("lstm"), InputError, "explain takes cellfuse's layers.* got str"),
        (lambda: cf.explain(nn.GRU(3, 4), lang="fr"), OptionError, "lang='fr'; use one of en, zh"),
        (lambda: cf.explain(nn.GRU(3, 4), seq_len=0), OptionError, "seq_len must be .* at least 1, got 0"),
        (lambda: cf.explain(nn.GRU(3, 4), batch=2.0), OptionError, "batch must be .*got 2.0"),
        (lambda: cf.explain(nn.GRU(3, 4), (5, 2, 9)), InputError, r"input=\(5, 2, 9\).*\[T, B, I\].*I=3"),
        (lambda: cf.explain(nn.GRU(3, 4), "x"), InputError, "give a tensor, a PackedSequence or a shape"),
        (lambda: cf.explain(nn.GRUCell(3, 4), (5, 2, 3)), InputError, r"\[B, I\] or \[I\] with I=3"),
        (lambda: cf.explain(cf.GRU(3, 4), torch.zeros(0, 2, 3)), InputError, "nothing to show"),
        (lambda: cf.explain(nn.Sequential(nn.GRU(3, 4)), None, 1), InputError, "hx belongs to a layer"),
    ],
)
def test_errors_say_what_to_write(call, error, told):
    with pytest.raises(error, match=told):
        call()


def test_the_language_is_that_of_the_locale(monkeypatch):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    facts = cf.explain(nn.GRU(3, 4))
    assert facts.lang == "zh"
    assert "时间步" in str(facts)
    monkeypatch.setenv("LC_ALL", "C")
    assert "time steps" in str(cf.explain(nn.GRU(3, 4)))
    assert "时间步" in str(cf.explain(nn.GRU(3, 4), lang="zh"))


def test_the_wiring_of_two_layers_and_directions():
    facts = cf.explain(nn.GRU(3, 4, 2, bidirectional=True))
    arrows = set(facts.wiring)
    assert {("in/0", "c/0/0"), ("in/0", "c/0/1"), ("c/0/1", "c/1/0"), ("c/1/1", "h/3")} <= arrows
    assert {source for source, target in arrows if target == "out"} == {"c/1/0", "c/1/1"}


def test_pictures_of_the_layers_in_a_model(tmp_path):
    one = cf.explain(torch.nn.Sequential(torch.nn.GRU(3, 4), torch.nn.Identity()))
    assert one.picture("cell").svg == one.layer("0").picture("cell").svg
    assert one.save(tmp_path / "a.txt").read_text(encoding="utf-8").startswith("GRU(3, 4)")
    two = cf.explain(torch.nn.ModuleDict({"up": torch.nn.GRU(3, 4), "down": torch.nn.LSTM(3, 4)}))
    assert two.layer("down").cell == "lstm"
    with pytest.raises(OptionError, match="'up', 'down'; give one's name"):
        two.picture("cell")
    with pytest.raises(OptionError, match="layer 'left'"):
        two.layer("left")


@pytest.mark.parametrize("first", [False, True])
def test_lengths_pack_padded_input(first):
    layer, x = nn.GRU(3, 4, batch_first=first), torch.randn(3, 5, 3) if first else torch.randn(5, 3, 3)
    packed = pack_padded_sequence(x, [2, 5, 3], batch_first=first, enforce_sorted=False)
    assert cf.explain(layer, x, lengths=torch.tensor([2, 5, 3])) == cf.explain(layer, packed)
    assert cf.explain(layer, lengths=[2, 5, 3]).lengths == (2, 5, 3)


@pytest.mark.parametrize(
    ("module", "input", "lengths", "told"),
    [
        (nn.GRU(3, 4), torch.randn(5, 3, 3), [2, 5], r"lengths=\[2, 5\] with input \[5, 3, 3\]"),
        (nn.GRU(3, 4), torch.randn(5, 3, 3), [2, 6, 1], "from 1 to T"),
        (nn.GRU(3, 4), torch.randn(5, 3, 3), [2, 0, 1], "from 1 to T"),
        (nn.GRU(3, 4), torch.randn(5, 3), [5], "three axes"),
        (nn.GRU(3, 4), (5, 1, 3), [5], "with input tuple"),
        (nn.GRU(3, 4), None, [], "lengths="),
        (nn.GRUCell(3, 4), None, [5], "one-step"),
        (nn.Sequential(nn.GRU(3, 4)), None, [5], "not to a model"),
    ],
)
def test_lengths_that_do_not_fit(module, input, lengths, told):
    with pytest.raises(InputError, match=told):
        cf.explain(module, input, lengths=lengths)
