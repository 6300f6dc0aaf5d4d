"""The accelerator's closed form beside the engine's model, which the RTL follows cycle by cycle."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.quant import FORMATS
from bitwright.sim import (
    PES,
    Accelerator,
    ArrayConfig,
    Gemm,
    Operand,
    array,
    array_cycles,
    gemm_cycles,
    run_array,
)

#: What the engine adds to a product on an empty array: two cycles from an operand buffer's port to
#: the first beat, one through the result buffer.
BUFFERS = 3
#: PEs without a scale unit hand their sums over through a register that the accelerator's pipeline
#: depth, the PE's own, does not have.
HAND_OVER = 1


def _shape(gemm, operand, lanes):
    group = min(operand.group_size or gemm.k, gemm.k)
    rest = gemm.k % group or group
    return array.jobs.TileShape(
        -(-gemm.k // group), -(-group // lanes), -(-rest // lanes), terms=operand.step_cycles
    )


def _both(gemm, rows, cols, operand, *, lanes, latency, scale, pipeline):
    """Cycles by the accelerator's closed form, by the engine's, and by the engine step by step."""
    accelerator = Accelerator(
        rows=rows, cols=cols, lanes=lanes, tile_edge=64, rows_per_accumulator=rows,
        scale_cycles=scale, pipeline_cycles=pipeline, weight_lane_bits=64,
        activation_lane_bits=64, weight_buffer_kib=1024, activation_buffer_kib=1024,
    )  # fmt: skip
    config = ArrayConfig(rows, cols, latency, scale, per_group=scale == 0)
    tiles = -(-gemm.m // rows), -(-gemm.n // cols)
    plan = array.jobs.plan_jobs(config, *tiles, _shape(gemm, operand, lanes), "stream")
    (job,) = plan.jobs
    closed = array_cycles(config, job)
    assert closed.exact
    counted = gemm_cycles(gemm, accelerator, operand)
    return counted, closed.cycles, run_array(config, plan.jobs).cycles


sizes = st.tuples(*[st.integers(1, 12)] * 2, st.integers(1, 60))


@settings(max_examples=150, deadline=None)
@given(sizes, st.integers(1, 8), st.integers(1, 6), st.integers(1, 40))
def test_the_bit_serial_array_takes_what_its_engine_takes(size, rows, cols, group):
    gemm = Gemm("x", *size)
    for name in ("int8-sym", "int6-sym", "bitmod4", "int2-sym"):
        fmt = FORMATS[name]
        operand = Operand(PES["bitmod"].step_cycles(fmt), fmt, group, "int8")
        counted, closed, stepped = _both(
            gemm, rows, cols, operand, lanes=4, latency=11, scale=8, pipeline=12
        )
        assert counted + BUFFERS == closed == stepped


@settings(max_examples=150, deadline=None)
@given(sizes, st.integers(1, 8), st.integers(1, 6), st.integers(1, 40))
def test_an_integer_array_takes_what_its_engine_takes(size, rows, cols, group):
    operand = Operand(1, FORMATS["dint4-sym"], group)
    counted, closed, stepped = _both(
        Gemm("x", *size), rows, cols, operand, lanes=1, latency=2, scale=0, pipeline=2
    )
    assert counted + BUFFERS + HAND_OVER == closed == stepped


@pytest.mark.slow
def test_a_layer_of_a_language_model_step_by_step():
    """256 tokens x 1024 channels x 4096 inputs on 32 x 32 PEs: millions of stepped cycles."""
    operand = Operand(2, FORMATS["bitmod4"], 128, "int8")
    counted, closed, stepped = _both(
        Gemm("x", 256, 1024, 4096), 32, 32, operand, lanes=4, latency=11, scale=8, pipeline=12
    )
    assert counted + BUFFERS == closed == stepped
    # 8 x 32 tiles of 1024 steps of 2 cycles; pipeline, drain and buffers.
    assert stepped == 8 * 32 * 1024 * 2 + 12 + 31 + 3
