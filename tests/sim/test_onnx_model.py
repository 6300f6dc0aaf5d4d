"""Products of ONNX graphs made for the purpose."""

import sys
from pathlib import Path

import numpy as np
import pytest

from bitwright.quant import InputError
from bitwright.sim import Gemm, read_onnx

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

FLOAT, INT8, INT32, UINT8 = (
    TensorProto.FLOAT,
    TensorProto.INT8,
    TensorProto.INT32,
    TensorProto.UINT8,
)


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def weights(name, *shape, dtype=np.float32):
    return numpy_helper.from_array(np.zeros(shape, dtype), name)


def saved(folder: Path, nodes, inputs, outputs, initialisers=(), **options) -> Path:
    graph = helper.make_graph(nodes, "test", inputs, outputs, list(initialisers), **options)
    path = folder / "model.onnx"
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("other", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


def one(folder: Path, left, right, *, constant=(), op="MatMul", **attributes) -> Path:
    """A graph of one node; `constant` names the operands that are weights."""
    operands = {"a": left, "b": right}
    return saved(
        folder,
        [helper.make_node(op, ["a", "b"], ["y"], name="node", **attributes)],
        [value(name, shape) for name, shape in operands.items() if name not in constant],
        [value("y", None)],
        [weights(name, *shape) for name, shape in operands.items() if name in constant],
    )


@pytest.mark.parametrize(
    ("left", "right", "constant", "expected"),
    [
        ((5, 8), (8, 12), "b", (5, 12, 8, 1, "block")),
        ((2, 5, 8), (8, 12), "b", (10, 12, 8, 1, "block")),  # all rows meet the same weights
        ((5, 8), (8, 12), "", (5, 12, 8, 1, "cache")),
        ((2, 4, 5, 8), (2, 4, 8, 7), "", (5, 7, 8, 8, "cache")),  # one product per head
        ((2, 4, 5, 8), (4, 8, 7), "", (5, 7, 8, 8, "cache")),
        ((3, 5, 8), (3, 8, 7), "b", (5, 7, 8, 3, "block")),  # three experts
        ((5, 8), (3, 8, 7), "b", (5, 7, 8, 3, "block")),
        ((2, 3, 5, 8), (3, 8, 7), "b", (10, 7, 8, 3, "block")),
        ((2, 1, 5, 8), (1, 3, 8, 7), "b", (10, 7, 8, 3, "block")),
        ((12, 8), (8, 5), "a", (5, 12, 8, 1, "block")),  # weights on the left
        ((12, 8), (2, 8, 5), "a", (10, 12, 8, 1, "block")),
        ((8,), (8, 12), "b", (1, 12, 8, 1, "block")),
        ((5, 8), (8,), "b", (5, 1, 8, 1, "block")),
    ],
)
def test_a_matmul_gives_its_product(tmp_path, left, right, constant, expected):
    m, n, k, count, kind = expected
    workload = read_onnx(one(tmp_path, left, right, constant=constant))
    assert workload.gemms == (Gemm("node", m, n, k, count, kind),)
    assert (workload.name, workload.phase, workload.tokens) == ("model", "rows", None)
    assert workload.source == "graph of model.onnx"
    # The multiplications of numpy's matmul, counted from its result.
    assert workload.macs == np.matmul(np.zeros(left), np.zeros(right)).size * k


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_a_gemm_may_transpose_its_operands(tmp_path, trans_a, trans_b):
    left, right = [(5, 8), (8, 5)][trans_a], [(8, 12), (12, 8)][trans_b]
    path = one(tmp_path, left, right, constant="b", op="Gemm", transA=trans_a, transB=trans_b)
    assert read_onnx(path).gemms == (Gemm("node", 5, 12, 8),)


def test_integer_products(tmp_path):
    scales = [weights(name) for name in ("as", "bs", "ys")]
    zeros = [weights(name, dtype=np.uint8) for name in ("az", "bz", "yz")]
    quantised = ["a", "as", "az", "w", "bs", "bz", "ys", "yz"]
    path = saved(
        tmp_path,
        [
            helper.make_node("MatMulInteger", ["a", "w"], ["i"], name="integer"),
            helper.make_node("QLinearMatMul", quantised, ["q"], name="quantised"),
        ],
        [value("a", (5, 8), UINT8)],
        [value("i", None, INT32), value("q", None, UINT8)],
        [weights("w", 8, 12, dtype=np.uint8), *scales, *zeros],
    )
    assert read_onnx(path).gemms == (Gemm("integer", 5, 12, 8), Gemm("quantised", 5, 12, 8))


def test_weights_may_pass_through_other_nodes(tmp_path):
    path = saved(
        tmp_path,
        [
            helper.make_node("Constant", [], ["s"], value=weights("s")),
            helper.make_node("DequantizeLinear", ["w", "s"], ["float"]),
            helper.make_node("Transpose", ["float"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "turned"], ["y"]),
            helper.make_node("MatMul", ["turned", "float"], ["folded"]),
            helper.make_node("Add", ["x", "x"], ["twice"]),
            helper.make_node("Transpose", ["twice"], ["key"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "key"], ["scores"]),
        ],
        [value("x", (5, 8))],
        [value("y", None), value("scores", None), value("folded", None)],
        [weights("w", 12, 8, dtype=np.int8)],
    )
    # A product of two constants is none at run time; a node without a name has that of its result.
    assert read_onnx(path).gemms == (
        Gemm("y", 5, 12, 8),
        Gemm("scores", 5, 5, 8, kind="cache"),
    )


def attention(folder: Path) -> Path:
    """Two heads of width 4 over `seq` positions, split by Reshape as exporters do it."""
    split = numpy_helper.from_array(np.array([0, -1, 2, 4]), "split")
    nodes = [helper.make_node("MatMul", ["x", "wq"], ["q"], name="q_proj")]
    nodes += [helper.make_node("MatMul", ["x", "wk"], ["k"], name="k_proj")]
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1])):
        nodes += [
            helper.make_node("Reshape", [name, "split"], [f"{name}s"]),
            helper.make_node("Transpose", [f"{name}s"], [f"{name}t"], perm=perm),
        ]
    nodes += [helper.make_node("MatMul", ["qt", "kt"], ["y"], name="scores")]
    return saved(
        folder,
        nodes,
        [value("x", ("batch", "seq", 8))],
        [value("y", None)],
        [weights("wq", 8, 8), weights("wk", 8, 8), split],
    )


def test_open_dimensions_are_given_by_name(tmp_path):
    workload = read_onnx(attention(tmp_path), {"batch": 3, "seq": 16})
    assert workload.gemms == (
        Gemm("q_proj", 48, 8, 8),
        Gemm("k_proj", 48, 8, 8),
        Gemm("scores", 16, 16, 4, 6, "cache"),
    )


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (
            {"batch": 1},
            r"model.onnx: node 'q_proj' \(MatMul\): input 'x' has the open dimension 'seq'; "
            r"give its size with dims=\{'seq': 256\}",
        ),
        ({}, r"open dimension 'batch'; give its size with dims=\{'batch': 256\}"),
        ({"sequence": 4}, "dims names 'sequence'; the open dimensions of the file are batch, seq"),
        ({"batch": 0, "seq": 4}, "dims: batch is 0, expected a whole number >= 1"),
        ({"batch": "1"}, "dims: batch is '1', expected a whole number >= 1"),
    ],
)
def test_dimensions_that_stay_open_are_refused(tmp_path, dims, message):
    with pytest.raises(InputError, match=message):
        read_onnx(attention(tmp_path), dims)


def test_a_nameless_dimension_is_refused(tmp_path):
    path = one(tmp_path, (None, 8), (8, 12), constant="b")
    with pytest.raises(
        InputError, match=r"'node' \(MatMul\): input 'a' has no size in dimension 0"
    ):
        read_onnx(path)


def test_an_input_without_a_shape_is_refused(tmp_path):
    path = one(tmp_path, None, (8, 12), constant="b")
    with pytest.raises(InputError, match=r"\(MatMul\): input 'a' has no known shape"):
        read_onnx(path)


def test_other_products_are_refused_unless_left_out(tmp_path):
    path = saved(
        tmp_path,
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="first"),
            helper.make_node("MatMul", ["c", "v"], ["y"], name="second"),
        ],
        [value("x", (1, 3, 8, 8))],
        [value("y", None)],
        [weights("w", 4, 3, 1, 1), weights("v", 8, 5)],
    )
    message = (
        r"node 'first' is of type Conv, whose products are not read \(understood: MatMul, Gemm, "
        r"MatMulInteger, QLinearMatMul\); .* skip=\{'Conv'\}"
    )
    with pytest.raises(InputError, match=message):
        read_onnx(path)
    workload = read_onnx(path, skip={"Conv"})
    assert workload.gemms == (Gemm("second", 32, 5, 8),)
    assert workload.source == "graph of model.onnx without 1 Conv"


@pytest.mark.parametrize(
    "kind",
    [
        *("Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "DeformConv", "Einsum"),
        *("Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention"),
        *("LinearAttention", "RNN", "LSTM", "GRU", "FusedMatMul", "FusedGemm", "MatMulNBits"),
        *("MatMulFpQ4", "QGemm"),
    ],
)
def test_no_product_is_passed_over(tmp_path, kind):
    node = helper.make_node(kind, ["x"], ["y"], domain="other")
    path = saved(tmp_path, [node], [value("x", (4, 4))], [value("y", None)])
    with pytest.raises(
        InputError, match=f"node 'y' is of type {kind}, whose products are not read"
    ):
        read_onnx(path)


def test_products_in_a_branch_are_refused(tmp_path):
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["inner"], name="hidden")],
        "branch",
        [],
        [value("inner", (5, 12))],
    )
    node = helper.make_node(
        "If", ["flag"], ["y"], name="maybe", then_branch=branch, else_branch=branch
    )
    inputs = [value("x", (5, 8)), value("flag", (), TensorProto.BOOL)]
    path = saved(tmp_path, [node], inputs, [value("y", None)], [weights("w", 8, 12)])
    with pytest.raises(InputError, match=r"'hidden' \(MatMul\) stands inside node 'maybe' \(If\)"):
        read_onnx(path)


def test_functions_of_a_model_are_opened(tmp_path):
    body = helper.make_node("MatMul", ["a", "b"], ["c"], name="inner")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Layer", ["a", "b"], ["c"], [body], opsets[:1])
    graph = helper.make_graph(
        [helper.make_node("Layer", ["x", "w"], ["y"], domain="own")],
        "test",
        [value("x", (5, 8))],
        [value("y", None)],
        [weights("w", 8, 12)],
    )
    model = helper.make_model(graph, functions=[function], opset_imports=opsets)
    onnx.save(model, tmp_path / "model.onnx")
    (gemm,) = read_onnx(tmp_path / "model.onnx").gemms
    assert (gemm.m, gemm.n, gemm.k, gemm.count, gemm.kind) == (5, 12, 8, 1, "block")


def test_weights_beside_the_file_are_not_needed(tmp_path):
    path = one(tmp_path, (5, 8), (8, 12), constant="b")
    onnx.save_model(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    (tmp_path / "weights.bin").unlink()
    assert read_onnx(path).gemms == (Gemm("node", 5, 12, 8),)


def test_a_wrong_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="absent.onnx: no such file"):
        read_onnx(tmp_path / "absent.onnx")
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\xff\xff\xff\xff")
    with pytest.raises(InputError, match="broken.onnx: not a readable ONNX file"):
        read_onnx(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="broken.onnx: not an ONNX model"):
        read_onnx(path)
    nothing = saved(
        tmp_path, [helper.make_node("Relu", ["x"], ["y"])], [value("x", (1,))], [value("y", None)]
    )
    with pytest.raises(InputError, match="no products; expected nodes of type MatMul, Gemm"):
        read_onnx(nothing)


def test_shapes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(
        InputError, match="model.onnx: (its shapes cannot be inferred|node 'node' multipl)"
    ):
        read_onnx(one(tmp_path, (5, 7), (8, 12), constant="b"))
    with pytest.raises(InputError, match="model.onnx: node: n is 0; at least 1"):
        read_onnx(one(tmp_path, (5, 8), (8, 0)))


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    path = one(tmp_path, (5, 8), (8, 12), constant="b")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"needs the package onnx; pip install bitwright\[onnx\]"):
        read_onnx(path)
