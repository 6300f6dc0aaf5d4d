"""Port conflicts of SRAM buffers: by hand, against the stepped twins, and their limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.quant import InputError
from bitwright.sim import (
    bank_busy_cycles,
    conflict_cycles,
    interleaving,
    step_conflicts,
)

counts = st.integers(0, 14)
ports = st.sampled_from(["1rw", "1r1w"])
busy = st.integers(1, 4)


@pytest.mark.parametrize(
    ("reads", "writes", "compute", "port", "busy_cycles", "ways", "stalls"),
    [
        (8, 3, 8, "1rw", 1, 1, 3),  # every cycle is a read: 3 writes come on top
        (8, 3, 8, "1r1w", 1, 1, 0),
        (4, 4, 8, "1rw", 1, 1, 0),  # every second cycle is free
        (4, 5, 8, "1rw", 1, 1, 1),
        (4, 0, 8, "1rw", 2, 1, 0),  # a bank of two clocks keeps up with a read every second one
        (8, 0, 8, "1rw", 2, 1, 8),  # but not with one every clock
        (8, 0, 8, "1rw", 2, 2, 0),  # unless words go round two groups
        (8, 8, 8, "1rw", 2, 4, 0),  # 2 reads and 2 writes of 2 clocks in each of 4 groups
        (8, 9, 8, "1rw", 2, 4, 2),  # the ninth write is the third of the first group
        (9, 2, 8, "1r1w", 1, 1, 1),
        (1, 9, 8, "1r1w", 1, 1, 1),
        (0, 5, 0, "1rw", 1, 1, 5),
        (0, 0, 7, "1rw", 3, 1, 0),
    ],
)
def test_conflicts_by_hand(reads, writes, compute, port, busy_cycles, ways, stalls):
    arguments = dict(ports=port, busy_cycles=busy_cycles, ways=ways)
    assert conflict_cycles(reads, writes, compute, **arguments) == stalls
    assert step_conflicts(reads, writes, compute, **arguments) == stalls


@settings(max_examples=500, deadline=None)
@given(counts, counts, st.integers(0, 60), ports, busy, st.integers(1, 3))
def test_the_closed_form_is_the_stepped_count(reads, writes, compute, port, b, ways):
    arguments = dict(ports=port, busy_cycles=b, ways=ways)
    assert conflict_cycles(reads, writes, compute, **arguments) == step_conflicts(
        reads, writes, compute, **arguments
    )


@settings(max_examples=500, deadline=None)
@given(counts, st.integers(1, 14), st.integers(0, 60), ports, busy, st.data())
def test_a_fill_that_comes_evenly_costs_the_same(reads, writes, compute, port, b, data):
    interval = data.draw(st.integers(0, compute // writes))
    assert conflict_cycles(reads, writes, compute, ports=port, busy_cycles=b) == step_conflicts(
        reads, writes, compute, ports=port, busy_cycles=b, fill_interval=interval
    )


def test_a_fill_that_comes_too_late_does_not():
    # The second word arrives in cycle 20 of a phase of 10: the twin is not the formula twice.
    assert step_conflicts(2, 2, 10, ports="1rw", fill_interval=20) == 11
    assert conflict_cycles(2, 2, 10, ports="1rw") == 0


@given(st.lists(st.tuples(counts, counts, st.integers(0, 60)), min_size=1, max_size=5), ports, busy)
def test_arrays_give_arrays(rows, port, b):
    reads, writes, compute = (
        np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)
    )
    stalls = conflict_cycles(reads, writes, compute, ports=port, busy_cycles=b, ways=2)
    assert stalls.dtype == np.int64
    assert stalls.tolist() == [
        conflict_cycles(*row, ports=port, busy_cycles=b, ways=2) for row in rows
    ]
    mixed = conflict_cycles(reads, 3, compute, ports=port, busy_cycles=np.full(len(rows), b))
    assert mixed.tolist() == [
        conflict_cycles(r, 3, c, ports=port, busy_cycles=b) for r, _, c in rows
    ]


def test_large_counts_are_exact():
    reads = 10**15 + 1
    assert conflict_cycles(reads, 1, reads, ports="1rw") == 1
    assert conflict_cycles(np.array([reads]), 1, reads, ports="1rw").tolist() == [1]


def test_busy_cycles_are_exact():
    assert bank_busy_cycles(0.338671, 1000) == 1
    assert bank_busy_cycles(0.3, 100) == 3  # 0.3 / 0.1 in binary is below 3 or above
    assert bank_busy_cycles(0.301, 100) == 4


def test_words_across_banks():
    assert interleaving(8, 64, 512) == (1, 1)
    assert interleaving(8, 64, 64) == (8, 1)
    assert interleaving(8, 64, 1) == (8, 1)
    assert interleaving(8, 64, 192) == (2, 1)  # three banks a word, two are left over
    assert interleaving(8, 64, 513) == (1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conflict_cycles(1, 1, 1, ports="2rw"), "ports is '2rw'; 1rw or 1r1w"),
        (lambda: conflict_cycles(-1, 1, 1, ports="1rw"), "reads is -1; at least 0"),
        (
            lambda: conflict_cycles(1, np.array([2, -3]), 1, ports="1rw"),
            "writes is -3; at least 0",
        ),
        (lambda: conflict_cycles(1, 1, -1, ports="1rw"), "compute_cycles is -1; at least 0"),
        (
            lambda: conflict_cycles(1, 1, 1, ports="1rw", busy_cycles=0),
            "busy_cycles is 0; at least 1",
        ),
        (lambda: step_conflicts(1, 1, 1, ports="1rw", ways=0), "ways is 0; at least 1"),
        (lambda: bank_busy_cycles(0.0, 1000), "cycle_ns is 0.0; a time above 0"),
        (lambda: bank_busy_cycles(1.0, float("inf")), "clock_ps is inf; a time above 0"),
        (lambda: interleaving(0, 64, 64), "banks is 0; at least 1"),
        (lambda: interleaving(8, 64, 0), "word_bits is 0; at least 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
