"""The blocks of the bit-serial PE, each against its definition in docs/numerics.md."""

import random
import re

import numpy as np
import pyrtl
import pytest
from pyrtl import Input, Output

from bitwright.rtl import ACTIVATION_CORNERS, pe, verification
from bitwright.sim import bitmod

generator, pieces = pe.bitmod, pe.logic

SPECIAL_WORDS = [word for word in range(64) if (word & 31).bit_count() <= 2]


def signed(value, bits):
    return value - (value >> bits - 1 << bits)


class Combinational:
    """A block's function of integers: `widths` of its inputs, `build` from wires to wires."""

    def __init__(self, widths, build):
        with pieces.design() as self.block:
            wires = [Input(bits, name) for name, bits in widths.items()]
            self.names = list(widths)
            results = build(*wires)
            self.outputs = [f"out{i}" for i in range(len(results))]
            for name, wire in zip(self.outputs, results, strict=True):
                out = Output(len(wire), name)
                out <<= wire
        self.widths = list(widths.values())
        self.simulation = pyrtl.FastSimulation(tracer=None, block=self.block)

    def __call__(self, *values):
        masked = (v & (1 << bits) - 1 for v, bits in zip(values, self.widths, strict=True))
        self.simulation.step(dict(zip(self.names, masked, strict=True)))
        return [self.simulation.inspect(name) for name in self.outputs]


# ------------------------------------------------------------------ shared pieces


@pytest.mark.parametrize("is_signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("zeros", [0, 2])
def test_shift_right_jam_is_rounding_to_odd(is_signed, zeros):
    width = 6
    unit = Combinational(
        {"x": width, "n": 4},
        lambda x, n: [pieces.shift_right_jam(x, n, signed=is_signed, zeros=zeros)],
    )
    for x in range(0, 1 << width, 1 << zeros):
        value = signed(x, width) if is_signed else x
        for n in range(16):
            assert unit(x, n) == [bitmod.jam(value, n) & (1 << width) - 1], (x, n)


def test_normalised_moves_the_leading_one_to_the_top():
    unit = Combinational({"x": 7}, lambda x: pieces.normalised(x))
    for x in range(1, 128):
        value, places = unit(x)
        assert (value, value >> places) == (x << 7 - x.bit_length(), x)


# ------------------------------------------------------------------ encoder


@pytest.fixture(scope="module")
def encoder():
    """sign, shift, live of all four terms of a weight."""

    def build(code, zero, special, integer, fp3):
        return [
            wire
            for t in range(4)
            for wire in generator.encode_weight(
                code, zero, special, integer, fp3, pyrtl.Const(t, 2)
            )
        ]

    widths = {"code": 8, "zero": 8, "special": 6, "integer": 1, "fp3": 1}
    unit = Combinational(widths, build)

    def terms(mode, *values):
        out = unit(*values, int(mode == bitmod.INT), int(mode == bitmod.FP3))
        step = 2 if mode == bitmod.INT else 1
        return [bitmod.Term(*out[3 * t : 3 * t + 3], step * t) for t in range(4)]

    return terms


def test_integer_terms_of_every_code_add_up_to_code_minus_zero(encoder):
    for zero in (0, 1, 2, 3, 7, 8, 15, 31, 63, 64, 100, 127, 128, 255):
        for code in range(256):
            terms = encoder(bitmod.INT, code, zero, 0x2A)
            assert sum(t.value for t in terms) == signed(code - zero & 0xFF, 8)
            wanted = bitmod.encode_terms(bitmod.INT, 4, code, zero, 0)
            assert [t.value for t in terms] == [t.value for t in wanted]


@pytest.mark.parametrize("mode", [bitmod.FP4, bitmod.FP3], ids=["fp4", "fp3"])
def test_float_terms_of_every_code_and_special_value_add_up(encoder, mode):
    bits = 4 if mode == bitmod.FP4 else 3
    magnitudes = (0, 1, 2, 3, 4, 6, 8, 12) if mode == bitmod.FP4 else (0, 2, 4, 8)
    for special in SPECIAL_WORDS:
        for code in range(1 << bits):
            sign, index = code >> bits - 1, code & (1 << bits - 1) - 1
            value = magnitudes[index]
            if (sign, index) == (1, 0):
                sign, value = special >> 5, special & 31
            lower, upper = encoder(mode, code, 0, special)[:2]
            assert lower.value + upper.value == (-1) ** sign * value
            wanted = bitmod.encode_terms(mode, 2, code, 0, special)
            assert [lower.value, upper.value] == [t.value for t in wanted]


# ------------------------------------------------------------------ arithmetic


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_align_and_multiply(lanes):
    config = bitmod.BitmodConfig(lanes)
    widths = {f"act{i}": 16 for i in range(lanes)} | {
        f"{name}{i}": bits
        for i in range(lanes)
        for name, bits in (("sign", 1), ("shift", 2), ("live", 1))
    }

    def build(*wires):
        terms = [
            generator.TermWires(*wires[lanes + 3 * i : lanes + 3 * i + 3]) for i in range(lanes)
        ]
        aligned, e_max = generator.align(wires[:lanes], terms)
        return [generator.multiply(aligned, config.sum_bits), e_max]

    unit = Combinational(widths, build)
    rng = random.Random(lanes)
    corners = ACTIVATION_CORNERS.tolist()
    for _ in range(1500):
        act = [
            rng.choice(corners) if rng.random() < 0.5 else rng.randrange(0x7C00)
            for _ in range(lanes)
        ]
        terms = [
            bitmod.Term(rng.getrandbits(1), rng.randrange(4), int(rng.random() < 0.8), 0)
            for _ in range(lanes)
        ]
        total, e_max = bitmod.align_and_sum(act, terms)
        out = unit(*act, *(v for t in terms for v in t[:3]))
        assert (signed(out[0], config.sum_bits), out[1]) == (total, e_max), (act, terms)


def accumulate_cases():
    """S, e_max, bsig, A, e_A: limits, near powers of two, ties; and the events that they reach."""
    rng = random.Random(5)
    edges = [0, 1, 2, 3, 0x3FFF, 0x4000, 0x7FFE, 0x7FFF]
    edges += [-x for x in edges] + [-0x8000]
    sums = [0, 1, 5, 16376, 32752, 32767, 32768, 49151, 65504, 65532]
    sums += [-x for x in sums]
    for a in edges:
        for s in sums:
            for bsig in (0, 1, 2, 4, 6):
                for e_max, e_a in (
                    (20, 20),
                    (20, 23),
                    (23, 20),
                    (33, 1),
                    (1, 40),
                    (30, 7),
                    (7, 30),
                ):
                    yield s, e_max, bsig, a, e_a
    for bsig in (0, 1, 2, 4, 6):  # sums that round up to 32768 at every shift
        for r in range(1, bsig + 3):
            v = (0xFFFF << r) >> 1
            a = v & (1 << bsig) - 1 | 0x7000 >> 1 << 1
            a -= (a - v) % (1 << bsig)
            if abs((v - a) >> bsig) <= 65532:
                yield (v - a) >> bsig, 20, bsig, a, 20
    for _ in range(4000):
        yield (
            rng.randint(-65532, 65532) >> rng.randrange(16),
            rng.randrange(34),
            rng.choice((0, 1, 2, 4, 6)),
            rng.randint(-32768, 32767) >> rng.randrange(15),
            rng.randrange(60),
        )


def test_accumulate():
    widths = {"s": 17, "e_max": 6, "bsig": 3, "a": 16, "e_a": 6}
    unit = Combinational(widths, generator.accumulate)
    shifts, overflows = set(), 0
    for s, e_max, bsig, a, e_a in accumulate_cases():
        wanted = bitmod.accumulate(s << bsig, e_max, a, e_a)
        out = unit(s, e_max, bsig, a, e_a)
        assert (signed(out[0], 16), out[1]) == wanted, (s, e_max, bsig, a, e_a)
        shifts.add(wanted[1] - max(e_max, e_a))
        if e_max == e_a:
            v = (s << bsig) + a
            r = wanted[1] - e_a - 1
            overflows += wanted[0] == 1 << 14 and r > 0 and v >> r == 0x7FFF
    assert shifts == set(range(9))
    assert overflows > 0  # rounding reached 32768


def test_float32_add():
    widths = {"acc": 32, "d": 24, "e": 6}
    unit = Combinational(widths, lambda acc, d, e: [pieces.float32_add(acc, d, e)])
    rng = random.Random(6)
    values = [0, 0x3F800000, 0xBF800000, 0x4B7FFFFF, 0x31800000, 0x5D000001, 0xDD7FFFFF]
    cases = [
        (acc, d, e)
        for acc in values
        for d in (0, 1, -1, 3, 0x7FFFFF, -0x7FFFFF, 0x400000, -0x400000)
        for e in (0, 1, 27, 28, 29, 51, 52, 53, 63)
    ]
    for _ in range(6000):
        acc = rng.choice([0, (rng.getrandbits(1) << 31) | rng.randrange(99 << 23, 190 << 23)])
        d, e = rng.randint(-0x7FFFFF, 0x7FFFFF) >> rng.randrange(23), rng.randrange(64)
        if acc and rng.random() < 0.5:  # near cancellation, and ties
            exponent = acc >> 23 & 255
            magnitude = (acc & 0x7FFFFF | 0x800000) >> rng.randrange(1, 4)
            e = min(max(exponent - 122 + rng.randrange(-2, 3), 0), 63)
            d = (magnitude if acc >> 31 else -magnitude) + rng.randrange(-1, 2)
            d = min(max(d, -0x7FFFFF), 0x7FFFFF)
        cases.append((acc, d, e))
    for acc, d, e in cases:
        assert unit(acc, d, e) == [bitmod.float32_add(acc, d, e)], (hex(acc), d, e)


def test_scale_unit_multiplies_exactly_in_eight_cycles():
    with pieces.design() as block:
        names = generator.Control._fields
        control = generator.Control(*(Input(3 if n == "bsig" else 1, n) for n in names))
        d, e = generator.scale_unit(Input(16, "a"), Input(6, "e_a"), control)
        for name, wire in (("d", d), ("e", e)):
            out = Output(len(wire), name)
            out <<= wire
    simulation = pyrtl.FastSimulation(tracer=None, block=block)
    rest = {"bsig": 0, "clear": 0}
    rng = random.Random(7)
    groups = [
        (rng.choice([-32768, 32767, -1, 0, rng.randint(-32768, 32767)]), s) for s in range(256)
    ]
    before = None
    for a, scale in groups:  # back to back: a load in the last of the eight cycles
        for cycle in range(8):
            bit = before is not None and before[1] >> cycle & 1
            load = cycle == 7
            simulation.step(
                {
                    **rest,
                    "a": a & 0xFFFF if load else rng.getrandbits(16),
                    "e_a": 33,
                    "load": load,
                    "first": cycle == 0,
                    "scale_bit": bit,
                }
            )
            if cycle == 0 and before is not None and before[2] is not None:
                assert signed(simulation.inspect("d"), 24) == before[2]
        before = (a, scale, None if before is None else before[0] * before[1])


# ------------------------------------------------------------------ designs


@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_other_widths_agree_with_the_reference_in_every_cycle(lanes):
    design = generator.BitmodDesign(bitmod.BitmodConfig(lanes))
    simulation = verification.PyrtlSimulation(design)
    rng = np.random.default_rng(lanes)
    for mode in ("int5", "fp4"):
        trace = verification.recorded(design, design.random(mode, 60, rng))
        assert trace.dots == 60
        assert simulation.mismatches(trace) == 0


def test_blocks_are_modules_named_after_their_width():
    texts = generator.blocks()
    assert list(texts) == [
        "encoder", "align", "multiply", "accumulate", "scale", "column", "total",
    ]  # fmt: skip
    names = [re.search(r"module (\w+)\(", text)[1] for text in texts.values()]
    assert names[-1] == "bitmod_pe_l4"
    assert len(set(names)) == len(names)
    assert all(name.startswith("bitmod_") and name.endswith("_l4") for name in names)


def test_text_is_the_same_every_time():
    first = generator.BitmodDesign().verilog()
    pyrtl.Const(0, 1) + pyrtl.Const(1, 1)  # PyRTL's counters move on
    assert generator.BitmodDesign().verilog() == first


def test_ports_are_no_keywords_of_systemverilog():
    keywords = {"final", "bit", "int", "byte", "new", "this", "do", "type", "var", "ref", "local"}
    for text in (*generator.blocks().values(), generator.BitmodDesign().verilog()):
        assert not keywords & set(re.findall(r"(?:input|output)[^;]*?(\w+)[;,)]", text))
