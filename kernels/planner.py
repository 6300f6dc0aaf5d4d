"""Which kernel computes a product: a decision on shapes and formats alone, in plain Python.

Nothing here touches numbers or imports a framework. A `Plan` names the *method* (the arithmetic),
the *kernel* (how it is done) and the backend:

| method | y[m, n] | weights | activations |
| --- | --- | --- | --- |
| float | x in float32 times values times group scales | all | real numbers |
| integer | exact integer sums per group, then scales | integers, dINT, small tables | integers |
| planes | the same sums by AND and popcount | integers, binary, ternary | integers |
| lookup | the same sums by look-up | binary, ternary | integers |
| bitserial | the bit-serial PE's arithmetic | those of the PE, with INT8 group scales | FP16 |

Integer, planes and lookup give the same bits: y = fl32(y + fl32(fl32(I) * fl32(fl32(sx * sw) *
unit))) group by group, with exact integers I (docs/numerics.md, "Outside the PE").

`bitwright.kernels.matmul` describes the kernels a backend has.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from bitwright.quant import Format, InputError

Method = Literal["float", "integer", "planes", "lookup", "bitserial"]
Backend = Literal["numba", "torch", "torch-compiled", "jax", "cuda"]
METHODS: tuple[Method, ...] = get_args(Method)
BACKENDS: tuple[Backend, ...] = get_args(Backend)

#: Backend -> what must be importable, and what installs it.
_NEEDS: dict[str, tuple[str, str]] = {
    "numba": ("numba", "bitwright"),
    "torch": ("torch", "bitwright"),
    "torch-compiled": ("torch", "bitwright"),
    "jax": ("jax", "bitwright[jax]"),
}
#: Methods of each backend, the one to prefer first where several would do.
_METHODS: dict[str, tuple[Method, ...]] = {
    "numba": ("float", "integer", "planes", "lookup"),
    "torch": ("float", "integer", "planes", "lookup", "bitserial"),
    "torch-compiled": ("float", "integer", "planes", "lookup"),
    "jax": ("float", "integer", "planes", "lookup", "bitserial"),
    "cuda": ("float", "planes"),
}
#: From so many rows of activations on, method float turns weights into float32 panels for the
#: linear algebra library: decoding is then small beside the product.
PANEL_ROWS = 48
#: The longest group of an exact product: 2**15 * 255 * 128 is below 2**31.
LONGEST_GROUP = 1 << 15


@dataclass(frozen=True, slots=True)
class Operand:
    """What the planner knows of one operand; see `describe`."""

    format: Format | None  #: None for real numbers
    rows: int
    k: int
    group_size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How a product is computed."""

    backend: Backend
    method: Method
    kernel: str  #: "tiles-fixed-code", "panels-table", "planes", ...; what the backend runs
    m: int
    n: int
    k: int
    bits: int  #: of a weight
    act_bits: int  #: of an activation; 32 for real numbers

    def __str__(self) -> str:
        """One line, for people.

        >>> from bitwright.quant import FORMATS
        >>> w = Operand(FORMATS["bitmod4"], 4096, 4096, 128)
        >>> print(plan(Operand(None, 1, 4096, 4096), w))
        float by tiles-fixed-masked on numba: 1 x 4096 x 4096, 4-bit weights, 32-bit activations
        """
        shape = f"{self.m} x {self.k} x {self.n}"
        return (
            f"{self.method} by {self.kernel} on {self.backend}: {shape}, {self.bits}-bit weights, "
            f"{self.act_bits}-bit activations"
        )


def plan(
    x: Operand,
    w: Operand,
    backend: str | None = None,
    method: str | None = None,
    missing: Callable[[str], str | None] | None = None,
) -> Plan:
    """Choose backend, method and kernel.

    Args:
        x: Activations.
        w: Weights.
        backend: One of `BACKENDS`; None takes numba, or torch for what numba does not have.
        method: One of `METHODS`; None takes "integer" if it takes the operands, else "float".
        missing: Says why a backend cannot run here, None if it can; by default looks whether its
            framework is installed.

    Raises:
        InputError: An unknown name, shapes that do not fit, a backend that is not installed, or
            operands that the method does not take.
    """
    missing = missing or why_missing
    if method is not None and method not in METHODS:
        raise InputError(f"method {method!r} is not known; there are {', '.join(METHODS)}")
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is not known; there are {', '.join(BACKENDS)}")
    if w.format is None:
        raise InputError("weights are not quantised; quantize(w, ...) gives a QuantizedTensor")
    if x.k != w.k:
        raise InputError(f"x has k = {x.k}; it must be [m, k] with k = {w.k} of the weights")
    chosen: Method = method or ("float" if _exact(x, w) is not None else "integer")
    if backend is None:
        backend = "torch" if chosen == "bitserial" else "numba"
    if chosen not in _METHODS[backend]:
        able = [name for name in BACKENDS if chosen in _METHODS[name]]
        raise InputError(
            f"backend {backend} has no method {chosen}; it has {', '.join(_METHODS[backend])}, and "
            f"{chosen} runs on {', '.join(able)}"
        )
    reason = missing(backend)
    if reason is not None:
        raise InputError(f"backend {backend} cannot run: {reason}")
    refusal = _REFUSALS[chosen](x, w)
    if refusal is not None:
        raise InputError(f"method {chosen}: {refusal}")
    return Plan(
        backend=backend,  # type: ignore[arg-type]
        method=chosen,
        kernel=_kernel(backend, chosen, x, w),
        m=x.rows,
        n=w.rows,
        k=w.k,
        bits=w.format.bits,
        act_bits=32 if x.format is None else x.format.bits,
    )


def why_missing(backend: str) -> str | None:
    """Why a backend cannot run here; None if it can.

    Asks for modules without importing them; CUDA is asked for a device.
    """
    if backend == "cuda":
        from .cuda.device import no_device_reason

        return no_device_reason()
    module, package = _NEEDS[backend]
    if importlib.util.find_spec(module) is not None:
        return None
    return f"{module} is not installed; pip install '{package}'"


# ------------------------------------------------------------------ what methods take


def is_integer(format: Format | None) -> bool:
    """Whether activations of a format are integers that a byte holds."""
    return format is not None and format.kind in ("int-sym", "int-asym")


def levels_in_byte(format: Format) -> bool:
    """Whether weights of a format have integer values, in some unit, that fit the exact kernels.

    >>> from bitwright.quant import FORMATS
    >>> names = ("int4-sym", "dint8-asym", "fp8-e5m2", "nf4")
    >>> [levels_in_byte(FORMATS[name]) for name in names]
    [True, True, False, False]
    """
    return format.kind != "levels" or _largest_in_units(format) < 1 << 10


def _largest_in_units(format: Format) -> float:
    """Largest magnitude of a table's values in the power of two that they are multiples of.

    Infinity: there is none above 2**-16.
    """
    tables = [format.code_values(selector) for selector in range(format.choices)]
    values = [value for table in tables for value in table]
    unit = 1.0
    while any(value % unit for value in values):
        if unit <= 2.0**-16:
            return float("inf")
        unit /= 2
    return max(map(abs, values)) / unit


def _exact(x: Operand, w: Operand) -> str | None:
    """Why the exact methods do not take the operands; None if they do."""
    assert w.format is not None
    if not is_integer(x.format):
        got = "real numbers" if x.format is None else x.format.name
        return (
            f"activations are {got}; give quantised ones, such as activations='a8', or use method "
            "float"
        )
    if not levels_in_byte(w.format):
        return f"weight format {w.format.name} spans too many binary places; use method float"
    if min(w.group_size, w.k) > LONGEST_GROUP:
        return (
            f"groups of {min(w.group_size, w.k)} columns could overflow 32 bits; use groups of at "
            f"most {LONGEST_GROUP}"
        )
    if x.group_size < x.k and x.group_size != w.group_size:
        return (
            f"activations have groups of {x.group_size}, weights of {w.group_size}; give "
            "activations the same groups, or one per row"
        )
    return None


def _float(x: Operand, w: Operand) -> str | None:
    return None


def _planes(x: Operand, w: Operand) -> str | None:
    assert w.format is not None
    if w.format.kind not in ("int-sym", "int-asym") and w.format.name not in ("binary", "ternary"):
        return f"weight format {w.format.name} is no integer; use method integer"
    return _exact(x, w)


def _lookup(x: Operand, w: Operand) -> str | None:
    assert w.format is not None
    if w.format.name not in ("binary", "ternary"):
        return f"weight format {w.format.name} is neither binary nor ternary; use method integer"
    return _exact(x, w)


def _bitserial(x: Operand, w: Operand) -> str | None:
    if x.format is not None:
        return f"activations are {x.format.name}; the bit-serial PE takes FP16"
    return None


_REFUSALS: dict[str, Callable[[Operand, Operand], str | None]] = {
    "float": _float,
    "integer": _exact,
    "planes": _planes,
    "lookup": _lookup,
    "bitserial": _bitserial,
}


# ------------------------------------------------------------------ kernels


def _kernel(backend: str, method: str, x: Operand, w: Operand) -> str:
    assert w.format is not None
    if backend != "numba":
        return method
    if method == "float":
        decode = float_decode(w.format, min(w.group_size, w.k))
        if decode is None:
            return "dense"
        panels = x.rows >= PANEL_ROWS and not (decode.startswith("fixed") and _matrix_tiles())
        return f"{'panels' if panels else 'tiles'}-{decode}"
    if method == "integer":
        decode = integer_decode(w.format)
        return "wide" if decode is None else f"tiles-{decode}"
    return method


def _matrix_tiles() -> bool:
    """Whether the processor multiplies tiles of bytes: then no float panels are needed."""
    from .cpu import simd

    return simd.TILES


def float_decode(format: Format, group_size: int) -> str | None:
    """How the processor's kernels decode a format for real activations; None if they do not.

    "fixed-..." is `cpu/fixed_point.py`, which takes what the exact kernels take; the others are
    `cpu/floating.py`.

    >>> from bitwright.quant import FORMATS
    >>> names = ("ternary", "bitmod4", "int8-sym", "nf4", "fp8-e4m3", "ant4")
    >>> [float_decode(FORMATS[name], 128) for name in names]
    ['fixed-code', 'fixed-masked', 'fixed-code', 'table', 'gather', None]
    """
    exact = integer_decode(format)
    if exact is not None and group_size <= LONGEST_GROUP:
        return f"fixed-{exact}"
    if format.kind in ("olive", "int-sym", "int-asym") or format.alternatives:
        return None
    # One special value for all groups is a level like the others.
    special = format.kind == "dint-asym" or len(format.special_values) > 1
    return "table" if format.bits <= 4 and not special else "gather"


def integer_decode(format: Format) -> str | None:
    """How `cpu/integer.py` decodes a format; None if it does not.

    >>> from bitwright.quant import FORMATS
    >>> names = ("int8-asym", "dint4-sym", "dint4-asym", "dint5-sym", "ternary")
    >>> [integer_decode(FORMATS[name]) for name in names]
    ['code', 'table', 'masked', None, 'code']
    """
    if format.kind in ("int-sym", "int-asym") or format.name == "ternary":
        return "code"  # codes of ternary weights are those of 2-bit integers
    if format.kind == "olive" or format.alternatives or format.bits > 4:
        return None
    # Numbers lie in unsigned bytes around the largest magnitude.
    if format.kind == "levels" and _largest_in_units(format) > 127:
        return None
    return "masked" if format.kind == "dint-asym" or format.special_values else "table"
