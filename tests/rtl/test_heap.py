"""The bit heap: products, signs, constants, reduction."""

import itertools

import pyrtl
import pytest
from pyrtl import Input, Output

from bitwright.rtl import pe


def simulate(widths, build, values):
    """Outputs for each tuple of input values."""
    with pe.logic.design() as block:
        inputs = [Input(bits, f"i{n}") for n, bits in enumerate(widths)]
        total = build(*inputs)
        out = Output(len(total), "o")
        out <<= total
    simulation = pyrtl.FastSimulation(tracer=None, block=block)
    results = []
    for row in values:
        simulation.step({f"i{n}": value for n, value in enumerate(row)})
        results.append(simulation.inspect("o"))
    return results


def signed(value, bits):
    return value - (1 << bits) if value >> bits - 1 else value


@pytest.mark.parametrize(("a_bits", "b_bits"), [(1, 1), (1, 4), (2, 3), (4, 4), (5, 3)])
def test_every_signed_product(a_bits, b_bits):
    def build(a, b):
        total = pe.heap.BitHeap(a_bits + b_bits)
        total.product(a, b)
        return total.total()

    pairs = list(itertools.product(range(1 << a_bits), range(1 << b_bits)))
    wanted = [signed(a, a_bits) * signed(b, b_bits) % (1 << a_bits + b_bits) for a, b in pairs]
    assert simulate((a_bits, b_bits), build, pairs) == wanted


def test_every_conditional_negation_and_constant():
    def build(sign, value):
        total = pe.heap.BitHeap(6)
        total.negated_if(sign, value, 1)
        total.constant(-3)
        return total.total()

    rows = list(itertools.product(range(2), range(8)))
    assert simulate((1, 3), build, rows) == [((-v if s else v) * 2 - 3) % 64 for s, v in rows]


def test_many_addends_reduce_to_one_sum():
    def build(*values):
        total = pe.heap.BitHeap(8)
        for i, value in enumerate(values):
            (total.signed if i % 2 else total.unsigned)(value)
        return total.total()

    rows = [(i % 8, 7 - i % 8, (3 * i) % 8, 4, 5, i * i % 8, 1, 7, 0) for i in range(40)]
    wanted = [sum(signed(v, 3) if i % 2 else v for i, v in enumerate(row)) % 256 for row in rows]
    assert simulate((3,) * 9, build, rows) == wanted


def test_an_empty_heap_is_its_constant():
    def build(unused):
        total = pe.heap.BitHeap(4)
        total.constant(-1)
        return total.total()

    assert simulate((1,), build, [(0,)]) == [15]


def test_heights_follow_dadda():
    assert [pe.heap._next_height(tall) for tall in (3, 4, 5, 6, 7, 9, 10, 13, 14, 64)] == [
        2, 3, 4, 4, 6, 6, 9, 9, 13, 63,
    ]  # fmt: skip
