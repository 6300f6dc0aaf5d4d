"""PyRTL generator of the baseline, the FP16 multiply-accumulate PE, after docs/numerics.md.

Two blocks, multiply and accumulate, each with its registers: 61 flip-flops with a binary32
accumulator, 32 with a binary16 one. A baseline flatters nobody if it is as small as its numbers
allow, so:

- only one result is rounded in each stage, and the binary32 variant never rounds a product;
- a product is normalised no further than the adder needs: one leading zero may stay, and
  subnormal operands are taken care of behind the multiplier, in steps of two places;
- the binary32 accumulator keeps seven exponent bits (see `ACC_BIAS`) and no hidden bit;
- `y` is the accumulator itself, and there are no registers for a finished result;
- a cycle without operands adds zero, so that no register has an enable;
- control is left to the array that the PE stands in, whose PEs start and end their dot products
  together; `fp16_mac` adds it to one PE and is the design that is verified.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pyrtl import Block, Const, Input, Output, Register, WireVector, concat, select

from bitwright.rtl import (
    ACTIVATION_CORNERS,
    Stream,
    Trace,
    TraceRecorder,
    random_activations,
    random_lengths,
)
from bitwright.sim import fp16

from . import fp16_bins
from .decoders import Decoder
from .design import TensorCase
from .floating import (
    Float,
    add,
    decode_fp16,
    fp16_decoder,
    normalise,
    rounding_bit,
    saturate_fp16,
    shift_right_jam,
)
from .logic import any_bit, cleared, design, register, to_verilog

Fp16Config = fp16.Fp16Config

#: The binary32 accumulator stores its exponent field minus this, in seven bits: 2**-63 .. 2**64,
#: so that bit 6 of the field is the complement of bit 7. Sums are multiples of 2**-48 and below
#: 2**65 in dot products of up to 2**33 products.
ACC_BIAS = 64


# ------------------------------------------------------------------ logic of the blocks


def significand_product(act: WireVector, weight: WireVector) -> tuple[Float, Float, WireVector]:
    """The operands, decoded, and the 22-bit product of their significands."""
    a, w = decode_fp16(act), decode_fp16(weight)
    return a, w, a.significand * w.significand


def multiply_exact(act: WireVector, weight: WireVector) -> Float:
    """act * weight: sign, 7-bit exponent as in the accumulator, 22-bit significand; combinational.

    The significand has at most one leading zero, or the product is a multiple of 2**-48 below
    2**-28: no bit of an accumulator is below its lowest. The exponent of 0 is 0.
    """
    a, w, product = significand_product(act, weight)
    # Leading zeros of a subnormal operand: 8, 4, 2 places, leaving up to one.
    places = []
    for distance in (8, 4, 2):
        move = ~any_bit(product[22 - distance :])
        product = select(move, concat(product[:-distance], Const(0, distance)), product)
        places.append(move)
    # Product bit 21 weighs 2**(E_a + E_w - 29 - places).
    exponent = (a.exponent + w.exponent + Const(127 - 29 - ACC_BIAS, 7))[:7]
    exponent = concat((exponent[1:] - concat(*places))[:6], exponent[0])
    present = any_bit(product)
    return Float(a.sign ^ w.sign, exponent & present.sign_extended(7), product)


def accumulate_fp32(
    sign: WireVector, exponent: WireVector, fraction: WireVector, product: Float, clear: WireVector
) -> tuple[WireVector, WireVector, WireVector]:
    """fl32(acc + product): sign, 7-bit exponent (0 for +0) and 23-bit fraction; combinational.

    Args:
        sign: Of the accumulator.
        exponent: Its binary32 exponent field minus ACC_BIAS, 0 for the number 0.
        fraction: 23 bits.
        product: From `multiply_exact`.
        clear: Take the accumulator as 0.
    """
    # The smallest sum, 2**-48, has exponent 15.
    empty = clear | ~any_bit(exponent[3:])
    acc = Float(sign, exponent, concat(Const(1, 1), fraction))
    addend = product._replace(significand=concat(product.significand, Const(0, 2)))
    raw = add(acc, addend, empty, guard=4)
    value, places = normalise(raw.significand, raw.inverted)
    present = value[-1]
    exponent = (raw.exponent + 1 - places)[:7]
    packed = (concat(exponent, value[-24:-1]) + rounding_bit(value, 24))[:30]
    return raw.sign & present, packed[23:] & present.sign_extended(7), packed[:23]


def multiply_fp16(act: WireVector, weight: WireVector) -> WireVector:
    """fl16(act * weight), 16 bits, saturating; combinational."""
    a, w, product = significand_product(act, weight)
    # The product is product * 2**(E_sum - 50). With r places it becomes an FP16 significand of
    # exponent E_sum - 25 + r: r must be at least `excess`, to fit 11 bits, and 26 - E_sum.
    e_sum = a.exponent + w.exponent
    excess = leading_one(product[11:])
    above = (e_sum.zero_extended(8) + excess - 26)[:8]  # exponent - 1, negative for subnormals
    low = above[-1]
    places = select(low, (Const(26, 6) - e_sum)[:5], excess.zero_extended(5))
    value = shift_right_jam(concat(product, Const(0, 2)), places, 13)
    # The hidden bit adds 1 to the exponent field, and so does a carry out of the fraction.
    above = above[:6] & (value[12] & ~low).sign_extended(6)  # no hidden bit: subnormal or zero
    packed = concat(above, Const(0, 10)) + value[2:] + rounding_bit(value, 11)
    return concat(a.sign ^ w.sign, saturate_fp16(packed[10:16], packed[:10]))


def accumulate_fp16(acc: WireVector, product: WireVector, clear: WireVector) -> WireVector:
    """fl16(acc + product), 16 bits, saturating; combinational."""
    raw = add(decode_fp16(acc), decode_fp16(product), clear, guard=3)
    # A significand of the smallest exponent, 1, stays subnormal.
    value, above = normalise(raw.significand, raw.inverted, limit=raw.exponent)
    above = above & value[-1].sign_extended(5)
    packed = concat(above, Const(0, 10)) + value[-11:] + rounding_bit(value, 11)
    present = any_bit(value[-11:]) | raw.inverted
    return concat(raw.sign & present, saturate_fp16(packed[10:15], packed[:10]))


def leading_one(value: WireVector) -> WireVector:
    """The position of the highest one, counted from 1; 0 if there is none."""
    bits = []
    above: WireVector = Const(0, 1)
    for bit in reversed(list(value)):
        bits.append(bit & ~above)
        above = above | bit
    bits.reverse()
    return concat(
        *(
            any_bit(concat(*(bit for i, bit in enumerate(bits) if i + 1 >> weight & 1)))
            for weight in reversed(range(len(bits).bit_length()))
        )
    )


# ------------------------------------------------------------------ blocks with their registers


def multiply_stage(config: Fp16Config, act: WireVector, weight: WireVector) -> Float | WireVector:
    """The product and its registers, 30 bits or 16; latency 1, one product a cycle."""
    if config.acc == "fp16":
        return register(multiply_fp16(act, weight), "rounded_product")
    product = multiply_exact(act, weight)
    return Float(*(register(wire, f"product_{name}") for name, wire in product._asdict().items()))


def accumulate_stage(
    config: Fp16Config, product: Float | WireVector, clear: WireVector
) -> WireVector:
    """The accumulator; returns y, 32 bits (binary32) or 16 (binary16).

    A product taken in cycle t is in y in t + 1. With `clear` it starts a new sum from +0. Sums of
    more than 2**33 products can overflow in binary32; binary16 saturates.
    """
    if isinstance(product, WireVector):
        acc = Register(16, "acc")
        acc.next <<= accumulate_fp16(acc, product, clear)
        return acc
    sign, exponent, fraction = Register(1, "acc_sign"), Register(7, "acc_e"), Register(23, "acc")
    state = (sign, exponent, fraction)
    for reg, value in zip(state, accumulate_fp32(*state, product, clear), strict=True):
        reg.next <<= value
    present = ~exponent[6] & any_bit(exponent[3:6])  # exponent field bit 6
    return concat(sign, exponent[6], present, exponent[:6], fraction)


# ------------------------------------------------------------------ designs


def fp16_pe(config: Fp16Config = Fp16Config()) -> Block:  # noqa: B008 - frozen
    """One PE of an array; no reset, control comes from the array.

    Ports: act, weight 16, FP16, finite (an operand of 0 adds nothing); clear 1, high when the
    product in the register is the first of its dot product; out: y 32 (binary32) or 16 (binary16).
    A pair shown in cycle t is in y in t + 2; one pair a cycle.
    """
    with design() as block:
        product = multiply_stage(config, Input(16, "act"), Input(16, "weight"))
        _output("y", accumulate_stage(config, product, Input(1, "clear")))
    return block


def fp16_mac(config: Fp16Config = Fp16Config()) -> Block:  # noqa: B008 - frozen
    """The PE and its control; ports and timing as in docs/numerics.md.

    Latency 2 from the last pair of a dot product to y_valid; one pair a cycle, always ready.
    """
    with design() as block:
        rst, valid, last = (Input(1, name) for name in ("rst", "valid", "last"))
        taken = valid & ~rst
        act = cleared(Input(16, "act"), ~taken)
        product = multiply_stage(config, act, Input(16, "weight"))
        second_valid, second_last = register(taken, "second"), register(taken & last, "second_last")
        running = Register(1, "running")
        running.next <<= cleared(select(second_valid, ~second_last, running), rst)
        _output("y", accumulate_stage(config, product, ~running))
        _output("y_valid", register(cleared(second_last, rst), "done"))
    return block


def blocks(config: Fp16Config = Fp16Config()) -> dict[str, str]:  # noqa: B008 - frozen
    """Verilog of each block as a module of its own, with the registers at its outputs.

    `total` is the flat PE.
    """
    designs = {
        "multiply": _multiply_block(config),
        "accumulate": _accumulate_block(config),
        "total": fp16_pe(config),
    }
    return {
        name: to_verilog(block, f"{config.name}_{'pe' if name == 'total' else name}")
        for name, block in designs.items()
    }


SHARED = ()  #: blocks that the PEs of a column share


# ------------------------------------------------------------------ ports


def _output(name: str, wire: WireVector) -> None:
    out = Output(len(wire), name)
    out <<= wire


def _multiply_block(config: Fp16Config) -> Block:
    with design() as block:
        product = multiply_stage(config, Input(16, "act"), Input(16, "weight"))
        _output("p", product if isinstance(product, WireVector) else concat(*product))
    return block


def _accumulate_block(config: Fp16Config) -> Block:
    with design() as block:
        product = (
            Input(16, "product")
            if config.acc == "fp16"
            else Float(Input(1, "sign"), Input(7, "exponent"), Input(22, "significand"))
        )
        _output("y", accumulate_stage(config, product, Input(1, "clear")))
    return block


# ------------------------------------------------------------------ vectors

_MODE = "fp16"
_ONE = 0x3C00

#: First products of a dot product: what the accumulator holds when a corner pair meets it. Values
#: that binary16 holds, small and large, and sums that fill 24 bits.
_STARTS: tuple[tuple[tuple[int, int], ...], ...] = (
    (),
    ((0x0000, 0x8000),),
    ((0x0001, 0x0001),),
    ((0x8001, 0x0001),),
    ((0x0001, _ONE),),
    ((0x83FF, _ONE),),
    ((0x0400, 0x0400),),
    ((0x8400, _ONE),),
    ((0x07FF, _ONE),),
    ((_ONE, _ONE),),
    ((0xBC01, _ONE),),
    ((0x3BFF, _ONE),),
    ((0x3FFF, 0x3FFF),),
    ((0x7BFF, _ONE),),
    ((0xFBFF, _ONE),),
    ((0x7BFF, 0x7BFF),),
    ((0xFBFF, 0x7BFF),),
    ((_ONE, _ONE), (0x1000, 0x0C00)),
    ((0xBC00, _ONE), (0x1000, 0x0C00)),
    ((0x3FFF, 0x3FFF), (0x1001, 0x0C01)),
    ((0x7BFF, _ONE), (0x3555, 0x3555)),
    ((_ONE, 0x0001), (0x8001, 0x0001)),
)


#: Products that a single low bit keeps from being a tie when they are rounded to FP16.
_LOW_BITS = ((0x06B0, 0x2443), (0x24D0, 0x0085))


@dataclass(frozen=True)
class Fp16Design:
    """`fp16_mac` and its vectors (`Design`)."""

    config: Fp16Config = Fp16Config()  # noqa: RUF009 - frozen

    has_ready: ClassVar[bool] = False
    macs: ClassVar[float] = 1
    shared: ClassVar[tuple[str, ...]] = SHARED
    modes: ClassVar[tuple[str, ...]] = (_MODE,)
    step_ports: ClassVar[Mapping[str, int]] = {"act": 16, "weight": 16, "last": 1}
    setup_ports: ClassVar[Mapping[str, int]] = {}
    registers: ClassVar[Mapping[str, Sequence[str]]] = {
        "multiply": (*(f"product_{name}" for name in Float._fields), "rounded_product"),
        "accumulate": ("acc", "acc_sign", "acc_e", "y"),
    }

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def top(self) -> str:
        return f"{self.config.name}_mac"

    def block(self) -> Block:
        return fp16_mac(self.config)

    def verilog(self) -> str:
        return to_verilog(self.block(), self.top)

    def blocks(self) -> dict[str, str]:
        return blocks(self.config)

    def bins(self, mode: str) -> Sequence[str]:
        return fp16_bins.bins(self.config)

    def reference(self) -> "_Mac":
        return _Mac(self.config)

    def overflow(self, mode: str) -> Stream | None:
        """None: binary32 does not overflow, and the corners make binary16 saturate."""
        return None

    def decoders(self) -> list[Decoder]:
        return [fp16_decoder(f"{self.top}_operand")]

    def corners(self, mode: str, compact: bool = False) -> Stream:
        """All pairs of the FP16 corners on top of every start, cancellations, distances and ties.

        `compact`: every pair with one of the starts, in turn.
        """
        corners = [int(bits) for bits in ACTIVATION_CORNERS]
        dots: list[Sequence[tuple[int, int]]] = []
        for i, pair in enumerate((a, w) for a in corners for w in corners):
            starts = [_STARTS[i % len(_STARTS)]] if compact else _STARTS
            dots += [(*start, pair) for start in starts]
            # The same again, its opposite, and its opposite but for one place.
            a, w = pair
            again = [(a, w), (a ^ 0x8000, w), (a ^ 0x8000, w ^ 1 if w & 0x7FFF != 0x7BFF else w)]
            dots += [(pair, other) for other in (again[i % 3 :][:1] if compact else again)]
        bits = 24 if self.config.acc == "fp32" else 11
        dots += [*_ties(bits), *_meetings(bits), *([pair] for pair in _LOW_BITS)]
        # Whoever takes only the first ones gets some of each.
        order = np.random.default_rng(0).permutation(len(dots))
        return _stream([dots[i] for i in order])

    def random(self, mode: str, dots: int, rng: np.random.Generator) -> Stream:
        """Dot products of 1 to 40 pairs, most of them short.

        Both operands as `random_activations` draws them. In a third of the dot products every
        second pair is the opposite of the one before, or nearly so.
        """
        lengths = random_lengths(rng, dots, 40)
        dot = np.repeat(np.arange(dots), lengths)
        along = np.arange(len(dot)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        act = random_activations(rng, dot, along, 1)[:, 0]
        weight = random_activations(rng, dot, along, 1)[:, 0]
        flat = (rng.random(dots) < 0.4)[dot]  # weights as layers have them
        narrow = rng.integers(0, 2, len(dot)) << 15 | rng.integers(0x2000, 0x3400, len(dot))
        weight = np.where(flat, narrow, weight).astype(np.uint16)
        opposite = np.flatnonzero((rng.random(dots) < 1 / 3)[dot] & (along % 2 == 1))
        act[opposite] = act[opposite - 1] ^ 0x8000
        change = rng.integers(0, 8, len(opposite)) * (rng.random(len(opposite)) < 0.5)
        weight[opposite] = np.minimum(weight[opposite - 1] & 0x7FFF ^ change, 0x7BFF) | (
            weight[opposite - 1] & 0x8000
        )
        return _ports(fp16.PairArrays(act, weight, np.append(dot[1:] != dot[:-1], True)))

    def tensor(self, mode: str, x: np.ndarray, w: np.ndarray) -> TensorCase:
        """Rows of a layer, its weights rounded to FP16."""
        act = np.asarray(x).astype(np.float16).view(np.uint16)
        weight = fp16.weight_bits(w)
        arrays = [fp16.dot_products(row, weight) for row in act]
        whole = fp16.PairArrays(*(np.concatenate(field) for field in zip(*arrays, strict=True)))
        y = fp16.Fp16PE(self.config).gemm(x, w).reshape(-1)
        return TensorCase(_ports(whole), y, self._values)

    def _values(self, y: np.ndarray) -> np.ndarray:
        """The numbers that bits of `y` stand for, float32."""
        if self.config.acc == "fp32":
            return y.view(np.float32)
        return y.astype(np.uint16).view(np.float16).astype(np.float32)

    def traces(self, mode: str, rng: np.random.Generator) -> list[Trace]:
        """Operands and `last` that change while `valid` is low, and long waits."""
        recorder = TraceRecorder(self.reference())
        for row in self.random(mode, 100, rng).rows():
            recorder.step(row)
            if rng.random() < 0.5:
                count = int(rng.integers(1, 6))
                noise = self.random(mode, count, rng).rows()[:count]
                recorder.setup([{**values, "last": i % 2} for i, values in enumerate(noise)])
        return [recorder.trace("noise")]

    def model(self, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
        ports = stream.ports
        arrays = fp16.PairArrays(ports["act"], ports["weight"], ports["last"].astype(bool))
        return fp16.run_model(arrays, self.config)

    def kernel(self, function: Callable[..., np.ndarray], stream: Stream) -> np.ndarray:
        act, weight = (
            stream.ports[port].view(np.float16).astype(np.float32) for port in ("act", "weight")
        )
        if self.config.acc == "fp16":
            return function(act, weight, stream.ends)
        return function(act * weight, stream.ends)


class _Mac:
    """`Fp16Mac` behind the port names."""

    def __init__(self, config: Fp16Config) -> None:
        self._mac = fp16.Fp16Mac(config)

    def reset(self) -> None:
        self._mac.reset()

    def setup(self, values: Mapping[str, int]) -> None:
        """Nothing to set up: a cycle in which `valid` is low."""

    def tick(self, step: Mapping[str, int] | None) -> tuple[bool, int | None]:
        return True, self._mac.tick(None if step is None else fp16.Pair(**step))

    def covered(self) -> Iterator[str]:
        return fp16_bins.covered(self._mac)


def _stream(dots: Sequence[Sequence[tuple[int, int]]]) -> Stream:
    pairs = np.array([pair for dot in dots for pair in dot], np.uint16)
    last = np.zeros(len(pairs), bool)
    last[np.cumsum([len(dot) for dot in dots]) - 1] = True
    return _ports(fp16.PairArrays(pairs[:, 0], pairs[:, 1], last))


def _ports(arrays: fp16.PairArrays) -> Stream:
    ports = {"act": arrays.act, "weight": arrays.weight, "last": arrays.last.astype(np.uint8)}
    return Stream(_MODE, [], ports, arrays.last)


def _ties(bits: int) -> Iterator[list[tuple[int, int]]]:
    """Sums in the middle of two numbers of a `bits`-bit significand, and beside it.

    The accumulator is 2**e, or one place more; what is added are quarters of that place.
    """
    for e, odd in itertools.product(range(-24, 31), (0, 1)):
        places = [e, e - bits + 1, e - bits - 1] if odd else [e, e - bits - 1]
        if places[-1] < -38:
            continue
        *before, (act, weight) = (_power(place) for place in places)
        for quarters, sign in itertools.product((1, 2, 3, 5, 6, 7), (0, 0x8000)):
            factor = int(np.float16(quarters).view(np.uint16)) - _ONE  # of a normal power of two
            dot = [*before, (act ^ sign, weight + factor)]
            yield dot
            yield [(a ^ 0x8000, w) for a, w in dot]


def _meetings(bits: int) -> Iterator[list[tuple[int, int]]]:
    """Two operands at every distance, in both orders, and sums that cancel by every number of bits.

    `bits` is the length of the accumulator's significand.
    """
    one = _power(0)
    minus_one = (one[0] ^ 0x8000, one[1])
    for distance in range(bits + 3):
        act, weight = _power(-distance)
        for sign in (0, 0x8000):
            for low in ((act ^ sign, weight), (act ^ sign, weight + 0x155)):
                yield [one, low]
                yield [low, one]
    for places in range(1, bits):
        yield [one, _power(-places), minus_one]
    # 1 - 2**-bits, whose last place is half of that of 1
    below_one = [(0x3BFF, _ONE), (0x3BFF, 0x1000), (0x3A00, 0x0004)]  # 1 - 2**-11, 2**-11, 2**-22
    yield [*(below_one if bits == 24 else below_one[:1]), minus_one]


def _power(exponent: int) -> tuple[int, int]:
    """Powers of two whose product is 2**exponent, -38 .. 30; the second is normal."""
    second = max(exponent // 2, -14)
    first, second = (int(np.float16(2.0**e).view(np.uint16)) for e in (exponent - second, second))
    return first, second
