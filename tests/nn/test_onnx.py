"""torch.onnx.export of our layers: what ONNX Runtime computes is what the layer computes."""

import io
from collections import Counter

import pytest
import torch

import cellfuse as cf
from compare import OPTIONS

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime 'cellfuse[onnx]'")
pytest.importorskip("onnxscript", reason="pip install 'cellfuse[onnx]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's own, of torch and of onnxscript


def exported(layer, *arguments):
    """(the nodes counted by kind, the file's function of tensors)"""
    program = torch.onnx.export(layer.eval(), arguments, dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue())

    def run(*tensors):
        given = {each.name: value.numpy() for each, value in zip(session.get_inputs(), tensors, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, given)]

    return Counter(node.op_type for node in program.model.graph), run


def agrees(layer, run, *tensors):
    """Whether the file's results are the layer's. Float32: 1e-6 is some 8 units in the last place of 1."""
    output, states = layer(*tensors)
    expected = [output, *(states if isinstance(states, tuple) else [states])]
    made = run(*tensors)
    return len(made) == len(expected) and all(
        torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(made, expected, strict=True)
    )


@pytest.mark.parametrize("options", [{"num_layers": 2, "bidirectional": True}, {"bias": False}])
@pytest.mark.parametrize("kind", [cf.GRU, cf.LSTM])
def test_a_layer_of_gru_and_lstm_is_one_node(kind, options):
    layer = kind(4, 5, batch_first=True, **options)
    nodes, run = exported(layer, torch.randn(3, 7, 4))
    assert nodes[kind.__name__] == layer.num_layers
    assert agrees(layer, run, torch.randn(3, 7, 4))


def test_given_states_are_inputs_of_the_file():
    layer, states = cf.GRU(4, 5), torch.randn(1, 3, 5)
    _, run = exported(layer, torch.randn(7, 3, 4), states)
    assert agrees(layer, run, torch.randn(7, 3, 4), torch.randn(1, 3, 5))


@pytest.mark.parametrize("name", ["rnn", "mgu", "projected_lstm"])
def test_other_cells_are_written_out_step_by_step(name):
    cell = cf.cells.CELLS[name]
    layer = cell.layer(4, 6, **OPTIONS.get(name, {}))
    _, run = exported(layer, torch.randn(3, 2, 4))
    assert agrees(layer, run, torch.randn(3, 2, 4))


def test_a_kernel_asked_for_by_name_is_refused_with_the_reason():
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"no kernel\. Use backend='auto'"):
        exported(cf.GRU(4, 5, backend="cpu"), torch.randn(7, 3, 4))


def test_export_for_pytorch_keeps_the_kernel():
    program = torch.export.export(cf.GRU(4, 5), (torch.randn(7, 3, 4),))
    assert any("cellfuse.forward" in str(node.target) for node in program.graph.nodes)
