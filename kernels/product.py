"""The product of activations with a quantised tensor, by whatever kernel suits."""

import weakref
from dataclasses import replace
from typing import Any

import numpy as np

from bitwright.quant import (
    ActivationRecipe,
    InputError,
    OffsetTensor,
    PermutedTensor,
    QuantizedTensor,
    parse_activation,
)
from bitwright.quant import quantize_activations as quantised

from .any_precision import AnyPrecisionTensor, PackedAnyPrecision
from .planner import Operand, Plan, plan

#: Packed weights by id of the tensor, then backend, method and layout; they go with their tensor.
_packed: dict[int, dict[tuple[str, str, str], Any]] = {}
Weights = QuantizedTensor | OffsetTensor | PermutedTensor | AnyPrecisionTensor


def matmul(
    x: Any,
    w: Weights,
    backend: str | None = None,
    *,
    method: str | None = None,
    activations: str | ActivationRecipe | None = None,
    bits: int | None = None,
) -> np.ndarray:
    """y[m, n] = x[m, k] @ w[n, k].T.

    Weights are packed for the kernel on first use and kept as long as the tensor lives; a tensor's
    arrays must not be written to afterwards.

    Args:
        x: Activations [m, k] or [k]: real numbers that numpy converts (float16, float32, integers;
            arrays in any memory order are copied), or a QuantizedTensor with tokens as rows.
        w: Weights; also as `import_tensors` gives them (with offsets, or with columns in another
            order), or at any precision.
        backend: "numba" (the processor; threads as numba's), "torch", "torch-compiled", "jax",
            "cuda"; None chooses.
        method: "float", "integer", "planes", "lookup" or "bitserial" (kernels/planner.py says what
            each takes); None takes "integer" where that takes the operands, and "float" elsewhere.
        activations: Quantise x first: a name such as "a8" or "a4-asym-g64", or a recipe without
            static ranges.
        bits: The width to read an AnyPrecisionTensor at; only for one.

    Returns:
        float32 [m, n], or [n] for x of shape [k]. Methods integer, planes and lookup are exact up
        to the float32 operations of the scales, and equal in every bit whatever the backend;
        bitserial is the PE's result. Method float errs by at most `reference.float_bound` whatever
        the order of sums. Two exceptions: numba takes activations in fixed point where weights
        stand for integers, and keeps `fixed_point.error_bound`; CUDA rounds them to FP16 first.

    Raises:
        InputError: Shapes, types, names or formats that do not go together; NaN or Inf in x where
            it is quantised (names token and channel); a backend that cannot run here.

    >>> from bitwright.quant import quantize
    >>> w = quantize(np.array([[1.0, -2.0, 3.0, 7.0]]), "int4-sym", group_size=4)
    >>> matmul(np.array([[1.0, 1.0, 1.0, 1.0]]), w)
    array([[9.]], dtype=float32)
    >>> matmul(np.array([127, 0, 0, -127]), w, activations="a8").tolist()  # 127 * 1 - 127 * 7
    [-762.0]
    """
    if not isinstance(w, Weights):
        raise InputError(f"w is a {type(w).__name__}; quantize(w, ...) gives a QuantizedTensor")
    acts, single = _activations(x, w.k, activations)
    y = _product(acts, w, backend, method, bits)
    return y[0] if single else y


def _product(
    acts: Any, w: Weights, backend: str | None, method: str | None, bits: int | None
) -> np.ndarray:
    if isinstance(w, AnyPrecisionTensor):
        return _any_precision(acts, w, backend, method, bits)
    if bits is not None:
        raise InputError(f"bits (={bits}) is for an AnyPrecisionTensor; leave it out")
    if isinstance(w, PermutedTensor):
        ordered = _columns(acts, w.columns)
        return _product(ordered, w.tensor, backend, method, None)
    if isinstance(w, OffsetTensor):
        size = w.tensor.group_size
        values = acts.dequantize() if isinstance(acts, QuantizedTensor) else acts
        sums = np.add.reduceat(values, np.arange(0, w.k, size), axis=1)
        return _product(acts, w.tensor, backend, method, None) + sums @ w.offsets.T
    chosen = plan_for(acts, w, backend, method)
    if isinstance(acts, QuantizedTensor) and chosen.method == "float":
        acts = acts.dequantize()
    return np.ascontiguousarray(packed(w, chosen)(acts))


def _columns(acts: Any, columns: np.ndarray) -> Any:
    """Activations with their columns in another order; a group per row moves with them."""
    if not isinstance(acts, QuantizedTensor):
        return np.ascontiguousarray(acts[:, columns])
    if acts.groups > 1:
        raise InputError(
            f"activations have groups of {acts.group_size}, and the weights' columns are in "
            "another order; give activations one group per row"
        )
    return replace(acts, codes=np.ascontiguousarray(acts.codes[:, columns]))


def _any_precision(
    acts: Any, w: AnyPrecisionTensor, backend: str | None, method: str | None, bits: int | None
) -> np.ndarray:
    if bits is None:
        raise InputError(f"bits is missing; say at which width to read, one of {w.widths}")
    if backend not in (None, "numba") or method not in (None, "float"):
        raise InputError(
            f"backend {backend}, method {method}: any-precision weights run on numba with method "
            "float"
        )
    values = acts.dequantize() if isinstance(acts, QuantizedTensor) else acts
    kernels = _kernels_of(w)
    name = ("numba", "float", "any-precision")
    if name not in kernels:
        kernels[name] = PackedAnyPrecision(w)
    return kernels[name].product(values, bits)


def plan_for(
    x: Any, w: QuantizedTensor, backend: str | None = None, method: str | None = None
) -> Plan:
    """What `matmul` would do; arguments as there, x quantised or real numbers [m, k]."""
    return plan(describe(x), describe(w), backend, method)


def describe(t: Any) -> Operand:
    """What the planner needs to know of an operand: a QuantizedTensor, or numbers [m, k]."""
    if isinstance(t, QuantizedTensor):
        return Operand(t.format, t.n, t.k, t.group_size)
    return Operand(None, t.shape[0], t.shape[1], t.shape[1])


def packed(w: QuantizedTensor, chosen: Plan) -> Any:
    """The weights as a callable for the planned kernel; made once per tensor and layout."""
    layout = chosen.kernel.partition("-")[2]  # tiles and panels of a decoding share theirs
    kernels, name = _kernels_of(w), (chosen.backend, chosen.method, layout)
    if name not in kernels:
        kernels[name] = _pack(w, chosen)
    return kernels[name]


def _kernels_of(w: Any) -> dict[tuple[str, str, str], Any]:
    key = id(w)
    if key not in _packed:
        _packed[key] = {}
        weakref.finalize(w, _packed.pop, key, None)
    return _packed[key]


def _pack(w: QuantizedTensor, chosen: Plan) -> Any:
    if chosen.backend == "numba":
        from .cpu import packing

        return packing.pack(w, chosen.method, chosen.kernel)
    if chosen.backend == "jax":
        from . import jax_backend

        return jax_backend.pack(w, chosen.method)
    if chosen.backend == "cuda":
        from .cuda import backend

        return backend.pack(w, chosen.method)
    from . import torch_backend

    return torch_backend.pack(w, chosen.method, compiled=chosen.backend == "torch-compiled")


def _activations(x: Any, k: int, recipe: str | ActivationRecipe | None) -> tuple[Any, bool]:
    """Activations as a tensor or float32 [m, k], and whether x was one row without an axis."""
    if isinstance(x, QuantizedTensor):
        if recipe is not None:
            raise InputError("x is quantised already; leave activations out")
        if x.k != k:
            raise InputError(f"x has shape {x.shape}; it must be [m, k] with k = {k}")
        return x, False
    try:
        array = np.asarray(x)
    except ValueError:  # nested sequences of several lengths
        raise InputError(
            f"x is no matrix: its rows differ in length; give [m, k] with k = {k}"
        ) from None
    if array.dtype.kind not in "fiub":
        raise InputError(f"x has type {array.dtype}; real numbers or a QuantizedTensor are needed")
    if array.ndim not in (1, 2) or 0 in array.shape:
        raise InputError(f"x has shape {array.shape}; it must be [m, k] or [k] with k = {k}")
    single = array.ndim == 1
    rows = np.ascontiguousarray(array.reshape(1, -1) if single else array)
    if rows.shape[1] != k:
        raise InputError(f"x has shape {array.shape}; it must be [m, k] with k = {k}")
    if recipe is None:
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(rows, np.float32), single
    recipe = parse_activation(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(recipe, ActivationRecipe):
        raise InputError(f"activations is {recipe!r}; give a name such as 'a8', or a recipe")
    if recipe.static:
        raise InputError(
            f"activations {recipe.name} need the range that calibration has seen; quantise x with "
            "quantize_activations and give that"
        )
    return quantised(rows, recipe), single
