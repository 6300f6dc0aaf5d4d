"""The vector unit: cycles, operations and bytes of everything in a model that is no matrix product.

Throughput: `lanes` elements side by side, one operation per lane and cycle, where an operation is a
multiply-add, a comparison or one access of a lane's table. Every element of a function takes the
same number of operations, and `FUNCTIONS` gives it with the reason. Nothing overlaps: neither the
array's work nor, inside the unit, one row's reduction with the next row's elements.

A function that reduces (softmax, norms) begins each row on lane 0, so that a row's last beat may be
partly empty; the others take their rows as one stream:

    reducing:  cycles = sum over the rows of
               operations * ceil(length / lanes) + reductions * depth + row_cycles
    streaming: cycles = operations * ceil(rows * length / lanes)

per repetition, with depth = ceil(log2(lanes)), the adder tree over the lanes. Operations are
counted from the textbook definitions below, for a unit of ours; they are not measured on anybody's
hardware. Softmax, sigmoid and the normal distribution use a table with linear interpolation (one
access, one multiply-add). A reciprocal or reciprocal root, once per row, is a table entry and two
Newton steps of two or three dependent operations.

Memory: a function works on results of a product on their way out, or on inputs of the next on their
way in, whose traffic is that product's. What it reads besides crosses DRAM once and is counted
here: a second operand of 16 bits per element (residual stream, gate, embedding row) and the gains
of a norm, once per repetition. The angles of a rotary embedding are held on chip.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from bitwright.quant import InputError
from bitwright.sim import pick

from .models import LARGEST_COUNT, VectorOp

_RECIPROCAL = 1 + 2 * 2  # table; twice x = x * (2 - d * x)
_ROOT = 1 + 2 * 3  # table; twice x = x * (1.5 - 0.5 * d * x * x)
_WORD_BYTES = 2  # FP16


@dataclass(frozen=True, slots=True)
class Function:
    """What one function costs on a vector unit."""

    operations: int  #: per element, each one lane for one cycle
    reason: str
    reductions: int = 0  #: of a row over all lanes; 0: a streaming function
    row_cycles: int = 0  #: scalar work per row, after the reductions
    operands: int = 0  #: further words read from DRAM per element
    parameters: int = 0  #: words read from DRAM per element of a row, once for all rows


#: The functions by name; `reason` lists the operations of an element, then those of a row.
FUNCTIONS: dict[str, Function] = {
    "rmsnorm": Function(
        3,
        "square and sum, times the reciprocal root, times the gain; row: mean and epsilon, root",
        reductions=1,
        row_cycles=1 + _ROOT,
        parameters=1,
    ),
    "layernorm": Function(
        4,
        "sum, square and sum, (x - mean) / deviation as one multiply-add, gain and bias as one; "
        "row: two means, variance, root, offset",
        reductions=2,
        row_cycles=4 + _ROOT,
        parameters=2,
    ),
    "softmax": Function(
        6,
        "maximum, scale and subtract, exponential (table, interpolation), sum, times the "
        "reciprocal; row: reciprocal",
        reductions=2,
        row_cycles=_RECIPROCAL,
    ),
    "quantise": Function(
        3,
        "largest magnitude, times the reciprocal scale, round and clamp; row: scale, reciprocal",
        reductions=1,
        row_cycles=1 + _RECIPROCAL,
    ),
    "argmax": Function(1, "compare, keeping the index", reductions=1),
    "rotary": Function(2, "times the cosine, plus the partner times the sine"),
    "silu": Function(3, "sigmoid (table, interpolation), times x"),
    "silu_gate": Function(
        4, "sigmoid (table, interpolation), times x, times the other half", operands=1
    ),
    "gelu": Function(3, "normal distribution (table, interpolation), times x"),
    "relu": Function(1, "maximum with 0"),
    "squared_relu": Function(2, "maximum with 0, square"),
    "add": Function(1, "sum of two operands", operands=1),
    "multiply": Function(1, "product of two operands", operands=1),
    "scale": Function(1, "times a value of the row"),
    "accumulate": Function(1, "sum of two results on their way out"),
    "mix": Function(1, "adds a scale times its expert's weight"),
    "gather": Function(1, "copies the element that an index names"),
    "butterfly": Function(1, "sum or difference of a pair; or a sign"),
    "embed": Function(1, "copies the row of a table", operands=1),
}


@dataclass(frozen=True, slots=True)
class VectorUnit:
    """A row of lanes, each with a multiply-adder and a table."""

    lanes: int = 64  #: elements side by side

    def __post_init__(self) -> None:
        if self.lanes < 1:
            raise InputError(f"lanes is {self.lanes}; a vector unit has at least 1")

    @property
    def depth(self) -> int:
        """Levels of the tree that reduces all lanes to one value."""
        return (self.lanes - 1).bit_length()


def cycles(op: VectorOp, unit: VectorUnit) -> int:
    """Cycles of all repetitions.

    >>> cycles(VectorOp("norm", "rmsnorm", rows=2, length=100), VectorUnit(64))
    40

    Two rows of 3 * ceil(100 / 64) + 6 (tree of 64 lanes) + 8.

    Raises:
        InputError: A function that is not in `FUNCTIONS`.
    """
    function = find_function(op)
    if not function.reductions:
        elements = op.elements // op.count
        return op.count * function.operations * -(-elements // unit.lanes)
    per_row = function.reductions * unit.depth + function.row_cycles
    if op.causal:
        # Rows of 1 to `length` elements: `lanes` lengths take as many beats each.
        whole, rest = divmod(op.length, unit.lanes)
        beats = unit.lanes * (whole * (whole + 1) // 2) + rest * (whole + 1)
        beats *= op.rows // op.length
    else:
        beats = op.rows * -(-op.length // unit.lanes)
    return op.count * (function.operations * beats + op.rows * per_row)


def vector_cycles(ops: Iterable[VectorOp], unit: VectorUnit) -> Int64[np.ndarray, " ops"]:
    """`cycles` of each operation, by numpy; the same integers.

    Raises:
        InputError: A function that is not in `FUNCTIONS`, or more cycles than 64-bit counters
            surely hold.
    """
    ops = tuple(ops)
    functions = [find_function(op) for op in ops]
    operations, reductions, row_cycles = (
        np.array([getattr(function, field) for function in functions], np.int64)
        for field in ("operations", "reductions", "row_cycles")
    )
    rows, length, count = (
        np.array([getattr(op, field) for op in ops], np.int64)
        for field in ("rows", "length", "count")
    )
    causal = np.array([op.causal for op in ops], bool)
    # A row has at most `length` beats plus its reductions, so this bounds every product below.
    most = count.astype(float) * rows * (length * operations + reductions * unit.depth + row_cycles)
    if (most > LARGEST_COUNT // 2).any():
        op = ops[int(most.argmax())]
        raise InputError(
            f"{op.name}: {op.count} x {op.rows} rows of {op.length} elements may take more than "
            "2**61 cycles, too many for the cycle counters"
        )
    whole, rest = np.divmod(length, unit.lanes)
    beats = np.where(
        causal,
        (unit.lanes * (whole * (whole + 1) // 2) + rest * (whole + 1)) * (rows // length),
        rows * (whole + (rest > 0)),
    )
    elements = np.where(causal, rows * (length + 1) // 2, rows * length)
    reducing = operations * beats + rows * (reductions * unit.depth + row_cycles)
    streaming = operations * -(-elements // unit.lanes)
    return count * np.where(reductions > 0, reducing, streaming)


def operations(op: VectorOp) -> int:
    """Lane operations of all repetitions, the scalar work of the rows left out.

    Raises:
        InputError: A function that is not in `FUNCTIONS`.
    """
    return find_function(op).operations * op.elements


def dram_bytes(op: VectorOp) -> int:
    """Bytes that all repetitions read from DRAM besides the results and inputs of the products.

    Raises:
        InputError: A function that is not in `FUNCTIONS`.
    """
    function = find_function(op)
    words = function.operands * op.elements + function.parameters * op.length * op.count
    return _WORD_BYTES * words


def find_function(op: VectorOp) -> Function:
    """What an operation's function costs.

    Raises:
        InputError: A function that is not in `FUNCTIONS`; the nearest names are told.
    """
    return pick(FUNCTIONS, op.function, f"function of {op.name}")
