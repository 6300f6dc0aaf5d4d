"""The matrix products of an ONNX graph.

Read are MatMul, Gemm, MatMulInteger and QLinearMatMul nodes with known sizes. What multiplies
weights (initialisers, and what the graph computes from constants alone) counts as block weights, a
product of two activations as one with the key/value cache; leading dimensions that both operands
have repeat the product. Vector operations are not read: which nodes make up a norm or a softmax
differs from exporter to exporter, so the workload has none.
"""

from collections.abc import Collection, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from bitwright.quant import InputError

from .models import Gemm, Workload

#: Where the two operands of a product stand among the inputs of its node.
_OPERANDS = {"MatMul": (0, 1), "Gemm": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}
#: Nodes that multiply matrices in a way that is not read.
_REFUSED = {
    *("Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "DeformConv", "Einsum"),
    *("Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention", "LinearAttention"),
    *("RNN", "LSTM", "GRU", "FusedMatMul", "FusedGemm", "MatMulNBits", "MatMulFpQ4", "QGemm"),
}

_Shape = tuple[int | str | None, ...]  #: sizes: known, named, or neither


def read_onnx(
    path: str | Path, dims: Mapping[str, int] | None = None, *, skip: Collection[str] = ()
) -> Workload:
    """The matrix products of an ONNX file, in the order of its nodes. Weights are not loaded.

    Args:
        path: The file.
        dims: Sizes of named dimensions that the file leaves open, as {"seq": 256}.
        skip: Types of nodes whose products are left out, as {"Conv"}.

    Raises:
        InputError: The package onnx is missing; a file that is no ONNX model; a name in `dims` that
            the file does not have; a product whose size stays open (node and dimension are named),
            or a node that multiplies in a way that is not read.
    """
    path = Path(path)
    graph = _load(path, dict(dims or {}))
    shapes = _shapes(graph)
    constants = _constants(graph)
    gemms: list[Gemm] = []
    skipped: dict[str, int] = {}
    for node in graph.node:
        _refuse_inner_products(path, node)
        if node.op_type in skip:
            skipped[node.op_type] = skipped.get(node.op_type, 0) + 1
        elif node.op_type in _REFUSED:
            raise InputError(
                f"{path}: node {_name(node)!r} is of type {node.op_type}, whose products are not "
                f"read (understood: {', '.join(_OPERANDS)}); export it as those, or leave it out "
                f"with skip={{{node.op_type!r}}}"
            )
        elif node.op_type in _OPERANDS:
            try:
                gemms.extend(_products(path, node, shapes, constants))
            except InputError as error:
                problem = str(error).removeprefix(f"{path}: ")
                raise InputError(f"{path}: {problem}") from None
    if not gemms:
        raise InputError(f"{path}: no products; expected nodes of type {', '.join(_OPERANDS)}")
    left_out = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
    source = f"graph of {path.name}" + (f" without {left_out}" if left_out else "")
    return Workload(path.stem, "rows", None, None, tuple(gemms), source)


def _load(path: Path, dims: dict[str, int]) -> Any:
    """The graph with the shapes that can be inferred."""
    try:
        import onnx
    except ImportError:
        raise InputError(
            f"{path}: reading ONNX needs the package onnx; pip install bitwright[onnx]"
        ) from None
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    for name, size in dims.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"dims: {name} is {size!r}, expected a whole number >= 1")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise InputError(f"{path}: not a readable ONNX file ({error})") from None
    if not model.graph.node:
        raise InputError(f"{path}: not an ONNX model, or one without nodes")
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    _set_dims(path, model.graph, dims)
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        line = " ".join(str(error).split())
        raise InputError(f"{path}: its shapes cannot be inferred ({line})") from None
    return model.graph


def _set_dims(path: Path, graph: Any, dims: dict[str, int]) -> None:
    named = set()
    # Stored shapes of inner values may be named after other dimensions; inference makes them anew.
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.WhichOneof("value") == "dim_param":
                named.add(dim.dim_param)
                if dim.dim_param in dims:
                    dim.dim_value = dims[dim.dim_param]
    unknown = sorted(set(dims) - named)
    if unknown:
        raise InputError(
            f"{path}: dims names {unknown[0]!r}; the open dimensions of the file are "
            f"{', '.join(sorted(named)) or 'none'}"
        )


def _shapes(graph: Any) -> dict[str, _Shape]:
    shapes: dict[str, _Shape] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(
                dim.dim_value if dim.WhichOneof("value") == "dim_value" else dim.dim_param or None
                for dim in tensor.shape.dim
            )
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    return shapes


def _constants(graph: Any) -> set[str]:
    """Names of values that do not depend on the inputs of the graph."""
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:  # every node stands behind those it needs
        inputs = [name for name in node.input if name]
        if node.op_type == "Constant" or (inputs and constants.issuperset(inputs)):
            constants.update(node.output)
    return constants


def _products(
    path: Path, node: Any, shapes: Mapping[str, _Shape], constants: set[str]
) -> Iterator[Gemm]:
    name = _name(node)
    operands = [node.input[place] for place in _OPERANDS[node.op_type]]
    if constants.issuperset(operands):
        return  # worked out once, before the first input
    left, right = (_sizes(path, node, operand, shapes) for operand in operands)
    if node.op_type == "Gemm":
        flags = {attribute.name: attribute.i for attribute in node.attribute}
        left = left[::-1] if flags.get("transA") else left
        right = right[::-1] if flags.get("transB") else right
    # A vector is a row on the left and a column on the right.
    left = (1, *left) if len(left) == 1 else left
    right = (*right, 1) if len(right) == 1 else right
    if not left or not right or left[-1] != right[-2]:
        raise InputError(f"{path}: node {name!r} multiplies {left} by {right}")
    (m, k), n = left[-2:], right[-1]
    batch, weights = left[:-2], right[:-2]
    if operands[0] in constants:
        # Weights on the left: the same product with both sides transposed.
        m, n, batch, weights = n, m, weights, batch
    elif operands[1] not in constants:
        yield Gemm(name, m, n, k, prod(_broadcast(path, name, batch, weights)), "cache")
        return
    # Rows that meet the same weights make one product.
    count = prod(weights)
    yield Gemm(name, m * prod(_broadcast(path, name, batch, weights)) // max(count, 1), n, k, count)


def _broadcast(path: Path, name: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(map(len, shapes))
    sizes = []
    for dims in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        wide = set(dims) - {1}
        if len(wide) > 1:
            raise InputError(f"{path}: node {name!r} repeats over {shapes[0]} and {shapes[1]}")
        sizes.append(wide.pop() if wide else 1)
    return tuple(sizes)


def _sizes(path: Path, node: Any, operand: str, shapes: Mapping[str, _Shape]) -> tuple[int, ...]:
    where = f"{path}: node {_name(node)!r} ({node.op_type}): input {operand!r}"
    if operand not in shapes:
        raise InputError(
            f"{where} has no known shape; save the model with inferred shapes "
            "(onnx.shape_inference) or export it with fixed sizes"
        )
    sizes = []
    for place, size in enumerate(shapes[operand]):
        if isinstance(size, str):
            raise InputError(
                f"{where} has the open dimension {size!r}; give its size with "
                f"dims={{{size!r}: 256}}"
            )
        if size is None:
            raise InputError(
                f"{where} has no size in dimension {place}; export the model with fixed sizes"
            )
        sizes.append(size)
    return tuple(sizes)


def _refuse_inner_products(path: Path, node: Any) -> None:
    """Products inside a branch or loop run an unknown number of times."""
    for graph in _subgraphs(node):
        for inner in graph.node:
            if inner.op_type in _OPERANDS or inner.op_type in _REFUSED:
                raise InputError(
                    f"{path}: node {_name(inner)!r} ({inner.op_type}) stands inside node "
                    f"{_name(node)!r} ({node.op_type}); export the model without branches and loops"
                )


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield graph
            for inner in graph.node:
                yield from _subgraphs(inner)


def _name(node: Any) -> str:
    return str(node.name or (node.output[0] if node.output else node.op_type))
