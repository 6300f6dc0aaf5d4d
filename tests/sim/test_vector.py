"""The vector unit, by hand and by twin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.quant import InputError
from bitwright.sim import SHAPES, VectorOp, VectorUnit, decode, prefill, vector

FUNCTIONS = vector.FUNCTIONS
cycles, operations, vector_cycles = vector.cycles, vector.operations, vector.vector_cycles

#: Cases worked by hand: operation, lanes, cycles, lane operations, bytes from DRAM.
BY_HAND = [
    # Two rows of 3 operations on ceil(100 / 64) = 2 beats, 6 tree levels, mean 1 and root 7; the
    # gain is 100 words.
    (VectorOp("n", "rmsnorm", 2, 100), 64, 2 * (3 * 2 + 6 + 8), 600, 200),
    (VectorOp("n", "rmsnorm", 2, 100, 5), 64, 5 * 40, 3000, 1000),
    # 4 * 2 beats, two reductions of 6 levels, 4 scalar steps and the root; gain and bias.
    (VectorOp("n", "layernorm", 1, 128), 64, 8 + 12 + 11, 512, 512),
    # One lane: 10 beats of 6, no tree, reciprocal 1 + 2 * 2.
    (VectorOp("s", "softmax", 1, 10), 1, 60 + 5, 60, 0),
    # Rows of 1, 2 and 3 elements on 2 lanes: 1 + 1 + 2 beats, each row 2 * 1 + 5 besides.
    (VectorOp("s", "softmax", 3, 3, causal=True), 2, 6 * 4 + 3 * 7, 36, 0),
    # The same with 4 heads side by side at every position, and twice.
    (VectorOp("s", "softmax", 12, 3, 2, causal=True), 2, 2 * 4 * 45, 288, 0),
    # Streams: 2 * 65 = 130 elements on 64 lanes are 3 beats, not 2 * 2.
    (VectorOp("a", "add", 2, 65), 64, 3, 130, 260),
    (VectorOp("a", "add", 2, 65, 7), 64, 21, 910, 1820),
    (VectorOp("g", "silu_gate", 1, 64), 64, 4, 256, 128),
    (VectorOp("g", "gelu", 1, 65), 64, 6, 195, 0),
    (VectorOp("r", "relu", 1, 64), 64, 1, 64, 0),
    (VectorOp("r", "squared_relu", 1, 64), 64, 2, 128, 0),
    (VectorOp("r", "rotary", 3, 64), 64, 6, 384, 0),
    (VectorOp("q", "quantise", 1, 64), 64, 3 + 6 + 6, 192, 0),
    (VectorOp("e", "embed", 2, 64), 64, 2, 128, 256),
    (VectorOp("c", "argmax", 1, 1000), 64, 16 + 6, 1000, 0),
]


@pytest.mark.parametrize(
    ("op", "lanes", "expected", "lane_operations", "loaded"),
    BY_HAND,
    ids=[f"{case[0].function}-{case[0].rows}x{case[0].length}" for case in BY_HAND],
)
def test_operations_worked_by_hand(op, lanes, expected, lane_operations, loaded):
    assert cycles(op, VectorUnit(lanes)) == expected
    assert operations(op) == lane_operations
    assert vector.dram_bytes(op) == loaded


def stepped(op: VectorOp, unit: VectorUnit) -> int:
    """Counts beat by beat, element by element."""
    function = FUNCTIONS[op.function]
    lengths = [
        row // (op.rows // op.length) + 1 if op.causal else op.length for row in range(op.rows)
    ]
    if not function.reductions:
        lengths = [sum(lengths)]
    total = 0
    for length in lengths:
        left = length
        while left > 0:
            total += function.operations
            left -= unit.lanes
        width, levels = unit.lanes, 0
        while width > 1:
            width, levels = (width + 1) // 2, levels + 1
        if function.reductions:
            total += function.reductions * levels + function.row_cycles
    return op.count * total


@st.composite
def vector_ops(draw):
    length, causal = draw(st.integers(1, 40)), draw(st.booleans())
    rows = draw(st.integers(1, 6)) * (length if causal else 1)
    function = draw(st.sampled_from(sorted(FUNCTIONS)))
    return VectorOp("x", function, rows, length, draw(st.integers(1, 5)), causal)


@given(st.lists(vector_ops(), max_size=5), st.integers(1, 50))
def test_scalar_array_and_stepped_counts_are_equal(ops, lanes):
    unit = VectorUnit(lanes)
    counted = [cycles(op, unit) for op in ops]
    assert counted == [stepped(op, unit) for op in ops]
    assert vector_cycles(ops, unit).tolist() == counted
    # No element and no lane goes uncounted, and more lanes never need more beats.
    for op, each in zip(ops, counted, strict=True):
        assert each * lanes >= operations(op)
        if not FUNCTIONS[op.function].reductions:
            assert cycles(op, VectorUnit(lanes + 1)) <= each


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("lanes", [1, 48, 64])
def test_twins_agree_on_the_library(name, lanes):
    for workload in (prefill(SHAPES[name], 300, batch=2), decode(SHAPES[name], 300)):
        ops, unit = workload.vector, VectorUnit(lanes)
        assert vector_cycles(ops, unit).tolist() == [cycles(op, unit) for op in ops]


def test_causal_rows_are_shorter_than_square_ones():
    square = VectorOp("s", "softmax", 256, 256)
    causal = VectorOp("s", "softmax", 256, 256, causal=True)
    assert (square.elements, causal.elements) == (65536, 32896)
    unit = VectorUnit(64)
    # Beats: 64 rows each of 1, 2, 3 and 4, instead of 256 of 4.
    assert cycles(square, unit) - cycles(causal, unit) == 6 * (256 * 4 - 64 * (1 + 2 + 3 + 4))


def test_every_function_states_its_reason():
    for function in FUNCTIONS.values():
        assert function.operations >= 1 and function.reason
        assert ("row:" in function.reason) == bool(function.row_cycles)
        assert not function.row_cycles or function.reductions


def test_no_operations_take_no_cycles():
    assert vector_cycles((), VectorUnit()).tolist() == []


def test_wrong_arguments_are_refused():
    with pytest.raises(InputError, match="lanes is 0; a vector unit has at least 1"):
        VectorUnit(0)
    unknown = VectorOp("ffn.activation", "silu_gates", 1, 1)
    for count in (cycles, lambda op, unit: vector_cycles([op], unit)):
        with pytest.raises(
            InputError,
            match="unknown function of ffn.activation 'silu_gates'; did you mean silu_gate",
        ):
            count(unknown, VectorUnit())
    with pytest.raises(InputError, match="x: length is 0; at least 1"):
        VectorOp("x", "add", 1, 0)
    with pytest.raises(InputError, match="x: 5 causal rows are no multiple of their 3 positions"):
        VectorOp("x", "softmax", 5, 3, causal=True)
    with pytest.raises(InputError, match=r"x: rows \* length \* count = .* exceeds 2\*\*63 - 1"):
        VectorOp("x", "add", 2**32, 2**31)


def test_cycles_beyond_the_counters_are_refused():
    op = VectorOp("big", "softmax", 2**59, 1)  # 2**59 rows of 6 + 12 + 5 cycles
    assert cycles(op, VectorUnit()) == 2**59 * 23
    with pytest.raises(
        InputError, match=r"big: 1 x 576460752303423488 rows of 1 elements .*2\*\*61"
    ):
        vector_cycles([op], VectorUnit())
    small = VectorOp("small", "add", 2**59, 1)
    assert vector_cycles([small], VectorUnit()).dtype == np.int64
    assert vector_cycles([small], VectorUnit()).tolist() == [2**53]
