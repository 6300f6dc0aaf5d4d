"""Conservation of bytes between levels."""

from dataclasses import replace

import numpy as np
import pytest

from bitwright.quant import InputError
from bitwright.sim import TRAFFIC_OPERANDS, Traffic


def rows(weights=0, inputs=0, outputs=0, cache=0):
    return np.array([weights, inputs, outputs, cache], dtype=np.int64)


# Weights of 100 bytes are used by 3 tiles, 40 bytes of inputs by 2; 12 bytes come out.
GOOD = Traffic(
    dram_read=rows(100, 40),
    fill_write=rows(100, 40),
    buffer_read=rows(300, 80),
    array_in=rows(300, 80),
    array_out=rows(outputs=12),
    result_write=rows(outputs=12),
    result_read=rows(outputs=12),
    dram_write=rows(outputs=12),
)


def test_what_goes_in_comes_out():
    GOOD.check()
    assert GOOD.dram_bytes == 152
    assert GOOD.levels()["buffer_read"] == dict(weights=300, inputs=80, outputs=0, cache=0)
    assert list(GOOD.levels()) == [
        *("dram_read", "fill_write", "buffer_read", "array_in"),
        *("array_out", "result_write", "result_read", "dram_write"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"fill_write": rows(99, 40)},
            r"weights: 100 bytes read from DRAM \(dram_read\), 99 written to the buffers",
        ),
        (
            {"array_in": rows(300, 81)},
            r"inputs: 80 bytes read from the buffers \(buffer_read\), 81 taken by the array",
        ),
        (
            {"array_out": rows(outputs=13)},
            r"outputs: 13 bytes put out by the array \(array_out\), 12 written to the buffers",
        ),
        (
            {"dram_write": rows(cache=12)},
            r"outputs: 12 bytes read from the buffers \(result_read\), 0 written to DRAM",
        ),
        (
            {"buffer_read": rows(99, 80), "array_in": rows(99, 80)},
            r"weights: 100 bytes written to the buffers \(fill_write\), only 99 ever read",
        ),
    ],
)
def test_a_byte_that_is_lost_is_found(change, message):
    with pytest.raises(ValueError, match=message):
        replace(GOOD, **change).check()


def test_products_side_by_side():
    def twice(count):
        return np.stack([count, 2 * count], axis=1)

    both = Traffic(**{name: twice(getattr(GOOD, name)) for name in GOOD.levels()})
    both.check()
    assert both.levels()["dram_read"]["inputs"] == 120
    lost = both.array_in.copy()
    lost[TRAFFIC_OPERANDS.index("inputs"), 1] -= 1
    with pytest.raises(ValueError, match=r"inputs of product \[1\]: 160 bytes .* 159 taken"):
        replace(both, array_in=lost).check()


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (rows(-1), "dram_write is -1; at least 0 bytes"),
        (np.zeros(4), r"dram_write is float64 \[4\]; int64 \[4, ...\], one row each for weights"),
        (np.zeros(3, np.int64), r"dram_write is int64 \[3\]; int64 \[4, ...\]"),
    ],
)
def test_bad_counts(count, message):
    with pytest.raises(InputError, match=message):
        replace(GOOD, dram_write=count)
