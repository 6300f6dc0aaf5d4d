"""PyRTL generator of the bit-serial PE and its column, after docs/numerics.md.

One function per block, named as in the contract: term encoder, align, multiply, accumulate, scale
unit, column accumulator. `bitmod_pe` composes the blocks that every PE of an array holds;
`bitmod_column` adds what the PEs of a column share and is the design that is verified.

Numbers are two's complement from the first negation on: rounding to odd and to nearest even give
the same result as on sign and magnitude, and no stage negates twice.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import pyrtl
from pyrtl import Block, Const, Input, Output, Register, WireVector, concat, select

from bitwright.quant import Format, quantize
from bitwright.rtl import (
    ACTIVATION_CORNERS,
    Stream,
    Trace,
    TraceRecorder,
    random_activations,
    random_lengths,
)
from bitwright.sim import bitmod

from . import bitmod_bins
from .decoders import Decoder, decoder
from .design import TensorCase
from .logic import (
    any_bit,
    cleared,
    design,
    float32_add,
    negated_if,
    register,
    saturate,
    shift_left,
    shift_right_jam,
    shift_right_sticky,
    to_verilog,
)

BitmodConfig = bitmod.BitmodConfig


class TermWires(NamedTuple):
    """One weight term, as a lane gets it."""

    sign: WireVector  #: 1 bit
    shift: WireVector  #: 2 bits
    live: WireVector  #: 1 bit


class AlignedLane(NamedTuple):
    """What a lane hands from align to multiply."""

    significand: WireVector  #: M, 11 bits, 0 if the lane is not live
    delta: WireVector  #: 4 bits; 15 shifts out as much as 14
    sign: WireVector  #: 1 bit, of the product


class Control(NamedTuple):
    """What a column tells its PEs in each cycle; all but `bsig` are one bit."""

    bsig: WireVector  #: 3 bits, bit significance of the term in the accumulate stage
    clear: WireVector  #: that term is the first of its group: forget the accumulator
    load: WireVector  #: it is the last of its group: hand the sum to the scale unit
    first: WireVector  #: first cycle of the scale unit
    scale_bit: WireVector  #: of this cycle, lowest first


# ------------------------------------------------------------------ logic of the blocks


def encode_weight(
    code: WireVector,
    zero: WireVector,
    special: WireVector,
    integer: WireVector,
    fp3: WireVector,
    index: WireVector,
) -> TermWires:
    """Term `index` (2 bits) of one weight; combinational.

    Args:
        code: 8 bits.
        zero: 8 bits, subtracted in integer mode.
        special: 6 bits, {sign, magnitude 5}: the selected special value register.
        integer: Integer mode, else floating point.
        fp3: 3-bit instead of 4-bit floating-point codes.
        index: Which term; a floating-point weight has two.
    """
    # Integer: radix-4 Booth digit of code - zero.
    value = concat((code - zero)[:8], Const(0, 1))
    b0, b1, b2 = (pyrtl.mux(index, *(value[2 * t + i] for t in range(4))) for i in range(3))
    one, two = b1 ^ b0, (b2 ^ b1) & ~(b1 ^ b0)  # 011 and 100 are twice the multiplicand
    booth = TermWires(b2, concat(Const(0, 1), two), one | two)

    # Floating point: magnitude {I3, I2, I1, I0, F0} in half units.
    nibble = select(fp3, concat(code[:3], Const(0, 1)), code[:4])
    minus_zero = nibble == 8
    k0, k1, k2 = nibble[0], nibble[1], nibble[2]
    # Magnitude index 0..7 stands for 0, 1, 2, 3, 4, 6, 8, 12.
    table = concat(Const(0, 1), k2 & k1, k2 & (k0 | ~k1), (k1 & ~k2) | (k2 & ~k1 & k0), k0 & ~k2)
    magnitude = select(minus_zero, special[:5], table)
    upper = highest_one(magnitude[1:])
    lower = highest_one(magnitude[:4] & ~concat(upper[:3], Const(0, 1)))
    chosen = select(index[0], upper, lower)
    floating = TermWires(
        select(minus_zero, special[5], nibble[3]),
        concat(chosen[3] | chosen[2], chosen[3] | chosen[1]),
        any_bit(chosen),
    )
    return TermWires(*(select(integer, b, f) for b, f in zip(booth, floating, strict=True)))


def highest_one(value: WireVector) -> WireVector:
    """The highest set bit alone, one-hot; 0 stays 0."""
    bits, above = [value[-1]], value[-1]
    for bit in reversed(list(value[:-1])):
        bits.append(bit & ~above)
        above = above | bit
    return concat(*bits)


def align(
    act: Sequence[WireVector], terms: Sequence[TermWires]
) -> tuple[list[AlignedLane], WireVector]:
    """Each lane's significand, distance and sign, and e_max (6 bits); combinational.

    Args:
        act: FP16, 16 bits a lane. Infinities and NaN are refused before they get here.
        terms: One term per lane; one that is not live contributes nothing.
    """
    lanes = []
    for bits, term in zip(act, terms, strict=True):
        fraction, exponent = bits[:10], bits[10:15]
        normal = any_bit(exponent)
        significand = concat(normal, fraction) & term.live.sign_extended(11)
        live = term.live & (normal | any_bit(fraction))
        e = (concat(exponent[1:], exponent[0] | ~normal) + term.shift)[:6]
        lanes.append((significand, e & live.sign_extended(6), bits[15] ^ term.sign))
    e_max = largest([e for _, e, _ in lanes])
    # A lane that is not live has significand 0, whatever its distance.
    return [AlignedLane(m, saturate((e_max - e)[:6], 4), sign) for m, e, sign in lanes], e_max


def largest(values: Sequence[WireVector]) -> WireVector:
    """The maximum of unsigned numbers, as a tree."""
    values = list(values)
    while len(values) > 1:
        a, b = values.pop(0), values.pop(0)
        values.append(select(a > b, a, b))
    return values[0]


def multiply(lanes: Sequence[AlignedLane], sum_bits: int) -> WireVector:
    """S, the exact sum of the aligned lanes, two's complement; combinational."""
    addends, carries = [], [lane.sign for lane in lanes]  # -x is ~x and a carry
    for lane in lanes:
        significand = concat(lane.significand, Const(0, 3))
        aligned = shift_right_jam(significand, lane.delta, signed=False, zeros=3)
        addends.append(concat(lane.sign, aligned ^ lane.sign.sign_extended(14)))
    while len(addends) > 1:  # each adder of the tree takes one carry in
        x, y = addends.pop(0), addends.pop(0)
        width = max(len(x), len(y)) + 1
        total = x.sign_extended(width) + y.sign_extended(width) + carries.pop(0)
        addends.append(total[:width])
    return (addends[0].sign_extended(sum_bits) + carries[0])[:sum_bits]


def accumulate(
    s: WireVector, e_max: WireVector, bsig: WireVector, a: WireVector, e_a: WireVector
) -> tuple[WireVector, WireVector]:
    """A (16 bits, two's complement) and e_A (6 bits) after one more term cycle; combinational.

    The product S << bsig and A are aligned to the larger exponent, added exactly and renormalised
    upward. e_A cannot overflow in groups of up to 2**24 weights.
    """
    width = len(s) + 6
    p, wide_a = shift_left(s, bsig, width), a.sign_extended(width)
    larger = e_max > e_a
    distance = negated_if(larger, e_a - e_max)[:6]
    moved, kept = select(larger, wide_a, p), select(larger, p, wide_a)
    # 31 places leave any operand its sign and sticky bit alone, as do 23 and more.
    moved = shift_right_jam(moved, saturate(distance, 5), signed=True)
    v = (kept.sign_extended(width + 1) + moved.sign_extended(width + 1))[: width + 1]
    places = excess_bits(v, 16)
    # Guard and sticky, below the result, decide about rounding.
    shifted, sticky = shift_right_sticky(concat(v, Const(0, 1)), places)
    guard, floor = shifted[0], shifted[1:17]
    rounded = (floor + (guard & (sticky | floor[0])))[:16]
    overflow = rounded[15] & ~floor[15]  # 32768 becomes 16384 with the next exponent
    a_next = concat(rounded[15] & ~overflow, rounded[14] | overflow, rounded[:14])
    e_next = (select(larger, e_max, e_a) + places + overflow)[:6]
    return a_next, e_next


def excess_bits(value: WireVector, bits: int) -> WireVector:
    """The smallest right shift after which the two's complement `value` fits `bits` bits."""
    extra = len(value) - bits
    top = highest_one(value[bits - 1 : -1] ^ value[-1].sign_extended(extra))
    result = []
    for weight in reversed(range(extra.bit_length())):
        ones = [top[i] for i in range(extra) if (i + 1) >> weight & 1]
        result.append(any_bit(concat(*ones)))
    return concat(*result)


# ------------------------------------------------------------------ blocks with their registers


def align_stage(
    act: Sequence[WireVector], terms: Sequence[TermWires]
) -> tuple[list[AlignedLane], WireVector]:
    """`align` and its registers: 16 bits a lane and e_max (6 bits); latency 1."""
    lanes, e_max = align(act, terms)
    held = []
    for i, lane in enumerate(lanes):
        names = (f"lane_{field}{i}" for field in AlignedLane._fields)
        held.append(AlignedLane(*(register(w, n) for w, n in zip(lane, names, strict=True))))
    return held, register(e_max, "align_e_max")


def multiply_stage(
    lanes: Sequence[AlignedLane], e_max: WireVector, sum_bits: int
) -> tuple[WireVector, WireVector]:
    """`multiply` and its registers: S (`sum_bits`) and e_max (6 bits); latency 1."""
    return (
        register(multiply(lanes, sum_bits), "lane_sum"),
        register(e_max, "multiply_e_max"),
    )


def accumulate_stage(
    s: WireVector, e_max: WireVector, control: Control
) -> tuple[WireVector, WireVector]:
    """`accumulate` and its registers A and e_A.

    Returns the values that the registers take at the end of this cycle: the scale unit gets the
    group's sum with its last term. Without a term S and e_max are 0 and the registers keep theirs.
    """
    a, e_a = Register(16, "acc"), Register(6, "acc_e")
    a_next, e_next = accumulate(
        s, e_max, control.bsig, cleared(a, control.clear), cleared(e_a, control.clear)
    )
    a.next <<= a_next
    e_a.next <<= e_next
    return a_next, e_next


def scale_unit(a: WireVector, e_a: WireVector, control: Control) -> tuple[WireVector, WireVector]:
    """Group scale, one bit a cycle, lowest first: D = A * scale, 24 bits, two's complement, exact.

    Each cycle adds A, if the bit is set, to the upper 16 bits of D and moves D right by one place:
    the lower bits are final, and the adder has 17 bits instead of 24. With `load` in cycle t the
    product is on D in cycle t + 9, for that one cycle; the exponent is that of the group from t + 1
    until the next `load`. One group in eight cycles.
    """
    own_a, own_e = Register(16, "scale_a"), Register(6, "scale_e")
    own_a.next <<= select(control.load, a, own_a)
    own_e.next <<= select(control.load, e_a, own_e)
    d = Register(24, "product")
    addend = (own_a & control.scale_bit.sign_extended(16)).sign_extended(17)
    upper = (cleared(d[8:], control.first).sign_extended(17) + addend)[:17]
    d.next <<= concat(upper, d[1:8])
    return d, own_e


def column_accumulator(
    d: WireVector, e: WireVector, valid: WireVector, final: WireVector, rst: WireVector
) -> tuple[WireVector, WireVector]:
    """Binary32 sum of the groups of a dot product: y (32 bits) and y_valid.

    A product taken in cycle t is in y in t + 1; y_valid is high for one cycle after the product
    with `final`, and the next product starts a new sum from +0.
    """
    acc, running = Register(32, "column"), Register(1, "column_running")
    done = Register(1, "column_done")
    total = float32_add(cleared(acc, ~running), d, e)
    acc.next <<= select(valid, total, acc)
    running.next <<= cleared(select(valid, ~final, running), rst)
    done.next <<= cleared(valid & final, rst)
    return acc, done


class StepWires(NamedTuple):
    """The column's step port without the activations, docs/numerics.md."""

    valid: WireVector
    code: Sequence[WireVector]
    zero: WireVector
    selector: WireVector
    mode: WireVector
    terms: WireVector
    last: WireVector
    final_group: WireVector
    scale: WireVector


class Issue(NamedTuple):
    """What the column's shared part gives out in a cycle."""

    ready: WireVector
    terms: list[TermWires]  #: for the align stage, one per lane
    control: Control
    product_valid: WireVector  #: the scale unit's D is a finished product
    product_final: WireVector  #: which ends its dot product


def term_encoder(
    step: StepWires, sv_we: WireVector, sv_addr: WireVector, sv_data: WireVector, rst: WireVector
) -> Issue:
    """Term encoder and control, shared by the PEs of a column.

    One term a cycle, combinational from the step port; `ready` is high in the last term cycle of a
    step that is not held up. Registers: the term counter, four special values, and what follows
    the terms down the stages, so that PEs have no control of their own.
    """
    special = []
    for i in range(4):
        word = Register(6, f"sv{i}")
        word.next <<= cleared(select(sv_we & (sv_addr == i), sv_data, word), rst)
        special.append(word)

    # The scale unit takes a group every eight cycles: the last term of a group waits here, so that
    # nothing behind the encoder ever has to.
    index, spacing = Register(2, "term_index"), Register(3, "spacing")
    end = index == (step.terms - 1)[:2]
    closing = end & step.last
    sent = step.valid & ~(closing & (spacing != 0))
    taken = sent & closing
    index.next <<= cleared(select(sent, select(end, Const(0, 2), (index + 1)[:2]), index), rst)
    spacing.next <<= cleared(select(taken, Const(7, 3), counted_down(spacing)), rst)

    integer, fp3 = step.mode == 0, step.mode[1]
    chosen = pyrtl.mux(step.selector, *special)
    terms = []
    for code in step.code:
        term = encode_weight(code, step.zero, chosen, integer, fp3, index)
        terms.append(term._replace(live=term.live & sent))

    def follow(wire: WireVector, name: str) -> Register:
        """The wire beside its term in the accumulate stage."""
        return register(register(wire, f"multiply_{name}"), f"accumulate_{name}")

    bsig = select(integer, concat(index, Const(0, 1)), concat(Const(0, 2), index[0]))
    term3 = register(cleared(register(sent & ~rst, "multiply_term"), rst), "accumulate_term")
    load = register(cleared(register(taken & ~rst, "multiply_last"), rst), "accumulate_last")
    running = Register(1, "group_running")
    running.next <<= cleared(select(term3, ~load, running), rst)

    left, bits, final = (
        Register(4, "scale_left"),
        Register(8, "scale_bits"),
        Register(1, "scale_final"),
    )
    left.next <<= cleared(select(load, Const(8, 4), counted_down(left)), rst)
    bits.next <<= select(load, follow(step.scale, "scale"), bits[1:].zero_extended(8))
    final.next <<= select(load, follow(step.final_group, "final"), final)

    return Issue(
        ready=sent & end,
        terms=terms,
        control=Control(follow(bsig, "bsig"), ~running, load, left[3], bits[0]),
        product_valid=register(cleared(left == 1, rst), "product_valid"),
        product_final=register(final, "product_final"),
    )


def counted_down(count: WireVector) -> WireVector:
    """`count - 1`, or 0 if it is 0."""
    return (count - any_bit(count))[: len(count)]


# ------------------------------------------------------------------ designs


def processing_element(
    config: BitmodConfig,
    act: Sequence[WireVector],
    terms: Sequence[TermWires],
    control: Control,
) -> tuple[WireVector, WireVector]:
    """Align, multiply, accumulate and scale: the scale unit's D (24 bits) and exponent (6 bits)."""
    lanes, e_max = align_stage(act, terms)
    s, e_max = multiply_stage(lanes, e_max, config.sum_bits)
    return scale_unit(*accumulate_stage(s, e_max, control), control)


def bitmod_pe(config: BitmodConfig = BitmodConfig()) -> Block:  # noqa: B008 - frozen
    """One PE of an array. Control and scale bits come from its column, so it has no reset.

    Ports: per lane act 16, sign 1, shift 2, live 1; bsig 3, clear, load, first, bit (see
    `Control`); out: d 24, e 6 (see `scale_unit`).
    """
    with design() as block:
        act = _inputs("act", 16, config.lanes)
        d, e = processing_element(config, act, _term_inputs(config), _control_inputs())
        _output("d", d)
        _output("e", e)
    return block


def bitmod_column(config: BitmodConfig = BitmodConfig()) -> Block:  # noqa: B008 - frozen
    """Encoder, one PE and column accumulator; ports and timing as in docs/numerics.md.

    One step in `terms` cycles. A dot product's y is there 12 cycles after its last term cycle if
    its groups take eight cycles or more.
    """
    with design() as block:
        rst = Input(1, "rst")
        act = _inputs("act", 16, config.lanes)
        issue = term_encoder(*_step_inputs(config), rst)
        d, e = processing_element(config, act, issue.terms, issue.control)
        _column_outputs(d, e, issue, rst)
    return block


def blocks(config: BitmodConfig = BitmodConfig()) -> dict[str, str]:  # noqa: B008 - frozen
    """Verilog of each block as a module of its own, with the registers at its outputs.

    `total` is the flat PE. `encoder` and `column` are shared by the PEs of a column (`SHARED`) and
    not part of it.
    """
    designs = {
        "encoder": _encoder_block(config),
        "align": _align_block(config),
        "multiply": _multiply_block(config),
        "accumulate": _accumulate_block(config),
        "scale": _scale_block(),
        "column": _column_block(),
        "total": bitmod_pe(config),
    }
    return {
        name: to_verilog(block, module_name("pe" if name == "total" else name, config))
        for name, block in designs.items()
    }


SHARED = ("encoder", "column")  #: blocks that the PEs of a column share


def module_name(block: str, config: BitmodConfig) -> str:
    """For example `bitmod_column_l4`."""
    return f"bitmod_{block}_l{config.lanes}"


# ------------------------------------------------------------------ ports


#: Ports of a step beside its activations and codes.
_STEP_WIDTHS = {
    "zero": 8, "selector": 2, "mode": 2, "terms": 3, "last": 1, "final_group": 1, "scale": 8,
}  # fmt: skip


def _inputs(name: str, bits: int, count: int) -> list[WireVector]:
    return [Input(bits, f"{name}{i}") for i in range(count)]


def _output(name: str, wire: WireVector) -> None:
    out = Output(len(wire), name)
    out <<= wire


def _term_inputs(config: BitmodConfig) -> list[TermWires]:
    widths = {"sign": 1, "shift": 2, "live": 1}
    return [
        TermWires(*(Input(bits, f"{name}{i}") for name, bits in widths.items()))
        for i in range(config.lanes)
    ]


def _control_inputs() -> Control:
    return Control(*(Input(3 if name == "bsig" else 1, name) for name in Control._fields))


def _step_inputs(
    config: BitmodConfig,
) -> tuple[StepWires, WireVector, WireVector, WireVector]:
    code = _inputs("code", 8, config.lanes)
    step = StepWires(Input(1, "valid"), code, *(Input(b, name) for name, b in _STEP_WIDTHS.items()))
    return step, Input(1, "sv_we"), Input(2, "sv_addr"), Input(6, "sv_data")


def _column_outputs(d: WireVector, e: WireVector, issue: Issue, rst: WireVector) -> None:
    # The scale unit may take the next group's exponent in the cycle in which D is ready.
    e = register(e, "product_e")
    y, y_valid = column_accumulator(d, e, issue.product_valid, issue.product_final, rst)
    _output("ready", issue.ready)
    _output("y_valid", y_valid)
    _output("y", y)


def _encoder_block(config: BitmodConfig) -> Block:
    with design() as block:
        issue = term_encoder(*_step_inputs(config), Input(1, "rst"))
        for i, term in enumerate(issue.terms):
            for name, wire in zip(TermWires._fields, term, strict=True):
                _output(f"{name}{i}", wire)
        for name, wire in zip(Control._fields, issue.control, strict=True):
            _output(name, wire)
        _output("ready", issue.ready)
        _output("valid_out", issue.product_valid)
        _output("final_group_out", issue.product_final)
    return block


def _align_block(config: BitmodConfig) -> Block:
    with design() as block:
        act, terms = _inputs("act", 16, config.lanes), _term_inputs(config)
        lanes, e_max = align_stage(act, terms)
        for i, lane in enumerate(lanes):
            for name, wire in zip(AlignedLane._fields, lane, strict=True):
                _output(f"{name}_out{i}", wire)
        _output("e_max", e_max)
    return block


def _multiply_block(config: BitmodConfig) -> Block:
    with design() as block:
        lanes = [
            AlignedLane(*wires)
            for wires in zip(
                _inputs("significand", 11, config.lanes),
                _inputs("delta", 4, config.lanes),
                _inputs("sign", 1, config.lanes),
                strict=True,
            )
        ]
        s, e_max = multiply_stage(lanes, Input(6, "e_in"), config.sum_bits)
        _output("s", s)
        _output("e_max", e_max)
    return block


def _accumulate_block(config: BitmodConfig) -> Block:
    with design() as block:
        s, e_max = Input(config.sum_bits, "s"), Input(6, "e_max")
        a, e_a = accumulate_stage(s, e_max, _control_inputs())
        _output("a", a)
        _output("e_a", e_a)
    return block


def _scale_block() -> Block:
    with design() as block:
        d, e = scale_unit(Input(16, "a"), Input(6, "e_a"), _control_inputs())
        _output("d", d)
        _output("e", e)
    return block


def _column_block() -> Block:
    with design() as block:
        y, y_valid = column_accumulator(
            Input(24, "d"),
            Input(6, "e"),
            Input(1, "valid"),
            Input(1, "final_group"),
            Input(1, "rst"),
        )
        _output("y", y)
        _output("y_valid", y_valid)
    return block


# ------------------------------------------------------------------ what verification drives


class _Column:
    """`BitmodColumn` behind the port names."""

    def __init__(self, config: BitmodConfig) -> None:
        self._column = bitmod.BitmodColumn(config)
        self._lanes = range(config.lanes)
        self._taken: bitmod.Step | None = None  # in the last cycle
        self._waited = False  # in the cycle before it

    def reset(self) -> None:
        self._column.reset()

    def setup(self, values: Mapping[str, int]) -> None:
        if values["sv_we"]:
            self._column.program(values["sv_addr"], values["sv_data"])

    def tick(self, step: Mapping[str, int] | None) -> tuple[bool, int | None]:
        shown = None if step is None else self._step(step)
        self._waited = self._column.waits
        ready, y = self._column.tick(shown)
        self._taken = shown if ready else None
        return ready, y

    def covered(self) -> Iterator[str]:
        return bitmod_bins.covered(self._column, self._taken, self._waited)

    def _step(self, ports: Mapping[str, int]) -> bitmod.Step:
        return bitmod.Step(
            act=tuple(ports[f"act{i}"] for i in self._lanes),
            code=tuple(ports[f"code{i}"] for i in self._lanes),
            **{name.removesuffix("_group"): ports[name] for name in _STEP_WIDTHS},
        )


@dataclass(frozen=True)
class BitmodDesign:
    """`bitmod_column` and its vectors (`Design`)."""

    config: BitmodConfig = BitmodConfig()  # noqa: RUF009 - frozen

    name: ClassVar[str] = "bitmod"
    has_ready: ClassVar[bool] = True
    macs: ClassVar[float] = 2  #: four lanes, two cycles a step for 3- and 4-bit weights
    shared: ClassVar[tuple[str, ...]] = SHARED
    modes: ClassVar[tuple[str, ...]] = tuple(bitmod.VERIFY_FORMATS)
    setup_ports: ClassVar[Mapping[str, int]] = {"sv_we": 1, "sv_addr": 2, "sv_data": 6}
    registers: ClassVar[Mapping[str, Sequence[str]]] = {
        "align": (*(f"lane_{name}" for name in AlignedLane._fields), "align_e_max"),
        "multiply": ("lane_sum", "multiply_e_max"),
        "accumulate": ("acc", "acc_e"),
        "scale": ("scale_a", "scale_e", "e", "product", "d"),
    }

    @property
    def top(self) -> str:
        return module_name("column", self.config)

    @property
    def step_ports(self) -> Mapping[str, int]:
        act = {f"act{i}": 16 for i in range(self.config.lanes)}
        code = {f"code{i}": 8 for i in range(self.config.lanes)}
        return {**act, **code, **_STEP_WIDTHS}

    def block(self) -> Block:
        return bitmod_column(self.config)

    def verilog(self) -> str:
        return to_verilog(self.block(), self.top)

    def blocks(self) -> dict[str, str]:
        return blocks(self.config)

    def bins(self, mode: str) -> Sequence[str]:
        return bitmod_bins.bins(bitmod.VERIFY_FORMATS[mode])

    def reference(self) -> _Column:
        return _Column(self.config)

    def overflow(self, mode: str) -> Stream | None:
        """None: the accumulator renormalises, and its exponent cannot overflow."""
        return None

    def decoders(self) -> list[Decoder]:
        """The term encoder: integers under every zero point, FP4 and FP3 under every register."""

        def build(
            code: WireVector, other: WireVector, index: WireVector, mode: int
        ) -> dict[str, WireVector]:
            integer, fp3 = Const(int(mode == bitmod.INT), 1), Const(int(mode == bitmod.FP3), 1)
            zero = other if mode == bitmod.INT else Const(0, 8)
            special = Const(0, 6) if mode == bitmod.INT else other
            term = encode_weight(code.zero_extended(8), zero, special, integer, fp3, index)
            # Sign and shift of a term that is not live mean nothing.
            return {
                "sign": term.sign & term.live,
                "shift": term.shift & term.live.sign_extended(2),
                "live": term.live,
            }

        def table(code: int, other: int, index: int, mode: int) -> dict[str, int] | None:
            zero, special = (other, 0) if mode == bitmod.INT else (0, other)
            # A register holds at most two powers of two.
            if mode != bitmod.INT and (index > 1 or (special & 31).bit_count() > 2):
                return None
            term = bitmod.encode_terms(mode, 4 if mode == bitmod.INT else 2, code, zero, special)
            sign, shift, live, _ = term[index]
            return {"sign": sign & live, "shift": shift * live, "live": live}

        modes = {
            "integer": (bitmod.INT, 8, 8),
            "fp4": (bitmod.FP4, 4, 6),
            "fp3": (bitmod.FP3, 3, 6),
        }
        return [
            decoder(
                f"{self.top}_{name}",
                {"code": bits, "other": width, "index": 2},
                partial(build, mode=mode),
                partial(table, mode=mode),
            )
            for name, (mode, bits, width) in modes.items()
        ]

    def corners(self, mode: str, compact: bool = False) -> Stream:
        """Every weight code, zero point and special value with every activation corner, and limits.

        A dot product is one step, or three for the limits (`_limits`). `compact`: every pair once,
        in steps of as many pairs as lanes. Else every pair alone, in turn in one of the lanes, and
        every pair in every lane beside others. Last come pairs of operands for the accumulators
        (`_meetings`).
        """
        fmt, lanes = bitmod.VERIFY_FORMATS[mode], self.config.lanes
        codes = np.arange(1 << fmt.bits)
        pairs = np.stack(np.meshgrid(codes, ACTIVATION_CORNERS.astype(np.int64)), -1).reshape(-1, 2)
        if compact:
            steps = pairs.reshape(lanes, -1, 2).swapaxes(0, 1)
        else:
            alone = np.zeros((len(pairs), lanes, 2), np.int64)
            turn = np.arange(len(pairs))
            alone[turn, turn % lanes] = pairs
            beside = np.stack([np.roll(pairs, lane * 37, axis=0) for lane in range(lanes)], axis=1)
            steps = np.concatenate([alone, beside])
        limits = self._limits(fmt, (2,) if compact else (0, 1, 2))
        ends = np.concatenate(
            [np.ones(len(steps), bool), np.tile([False, False, True], len(limits))]
        )
        steps = np.concatenate([steps, limits.reshape(-1, lanes, 2)])
        settings = np.arange(bitmod_bins.settings(fmt))
        group = np.repeat(settings, len(steps))
        steps, ends = np.tile(steps, (len(settings), 1, 1)), np.tile(ends, len(settings))
        scale = np.array([1, 255, 0x5A])[np.arange(len(group)) % 3]
        acts, last, final, factor = self._meetings()
        return self._stream(
            mode,
            np.concatenate([steps[..., 1], acts]),
            np.concatenate([steps[..., 0], np.ones_like(acts)]),
            np.concatenate([group, np.zeros_like(factor)]),
            np.concatenate([ends, last]),
            np.concatenate([ends, final]),
            np.concatenate([scale, factor]),
        )

    def _limits(self, fmt: Format, fills: Sequence[int]) -> np.ndarray:
        """Code and activation, [dot products, 3 steps, lanes, 2]: the largest sums.

        Up to two small products of the largest activation fill the accumulator; then all lanes
        have that activation and the same code. With every code and sign.
        """
        largest, small = 0x7BFF, 1 if fmt.bits > 3 or fmt.kind != "levels" else 2
        cases = []
        for code in range(1 << fmt.bits):
            for fill in fills:
                for sign in (0, 0x8000):
                    for fill_sign in (0, 0x8000) if fill else (0,):
                        dot = np.zeros((3, self.config.lanes, 2), np.int64)
                        dot[2 - fill : 2, 0] = small, fill_sign | largest
                        dot[2] = code, sign | largest
                        cases.append(dot)
        return np.array(cases)

    def _meetings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Steps whose weights are all code 1, a positive power of two in every format.

        Two numbers meet as lanes of a step, in the group accumulator as steps of a group, and in
        the column accumulator as groups: at every distance, in both orders, with equal and opposite
        signs, so that they also cancel. Then what needs more than two.

        Returns:
            Activations [steps, lanes]; whether a step ends its group; whether its group ends the
            dot product; the scale.
        """

        def number(exponent: int, fraction: int = 0, sign: int = 0) -> int:
            return sign << 15 | exponent << 10 | fraction

        groups: list[tuple[list[list[int]], bool, int]] = []  # steps, final, scale

        def dot(*parts: list[list[int]], scale: int = 1) -> None:
            groups.extend((part, i == len(parts) - 1, scale) for i, part in enumerate(parts))

        for distance, fraction, sign in itertools.product(range(30), (0, 0x3FF), (0, 1)):
            high, low = number(30, fraction), number(30 - distance, fraction, sign)
            for first, second in ((high, low), (low, high)):
                dot([[first, second]])
                dot([[first], [second]])
                dot([[first]], [[second]])
        dot([[number(30)]], [[number(7)]], [[number(6)]])  # a column tie at an odd last place
        for lanes in (2, 4):  # the accumulator's -2**15: FP3's code 1 is twice the others'
            dot([[number(15, sign=1)] * lanes])
        dot([[number(21, 0x3C0)], [number(30, 0x3FF)] * 4])  # 2**16 - 1 rounds to 2**16
        dot([[number(15)]], scale=0)

        acts = [act for steps, _, _ in groups for act in steps]
        lanes = self.config.lanes
        count = [len(steps) for steps, _, _ in groups]
        last = np.zeros(len(acts), bool)
        last[np.cumsum(count) - 1] = True
        return (
            np.array([(act + [0] * lanes)[:lanes] for act in acts]),
            last,
            np.repeat([final for _, final, _ in groups], count),
            np.repeat([scale for _, _, scale in groups], count),
        )

    def random(self, mode: str, dots: int, rng: np.random.Generator) -> Stream:
        """Dot products of one to five groups of 1 to 40 steps, most of them short.

        Activations as `random_activations` draws them. In half of the dot products the second half
        of the lanes has the codes of the first, so that opposite activations cancel.
        """
        fmt, lanes = bitmod.VERIFY_FORMATS[mode], self.config.lanes
        groups = np.minimum(rng.geometric(0.6, dots), 5)
        lengths = random_lengths(rng, int(groups.sum()), 40)
        group_dot = np.repeat(np.arange(dots), groups)
        step_group = np.repeat(np.arange(len(lengths)), lengths)
        step_dot = group_dot[step_group]
        first = np.searchsorted(step_dot, np.arange(dots))
        act = random_activations(rng, step_dot, np.arange(len(step_dot)) - first[step_dot], lanes)

        shape = (len(step_dot), lanes)
        code = rng.integers(0, 1 << fmt.bits, shape)
        edges = [0, 1, (1 << fmt.bits) - 1, 1 << fmt.bits - 1, (1 << fmt.bits - 1) - 1]
        code = np.where(rng.random(shape) < 0.15, rng.choice(edges, shape), code)
        same = (rng.random(dots) < 0.5)[step_dot][:, None] & (np.arange(lanes) >= lanes // 2)
        code = np.where(same, np.roll(code, lanes // 2, axis=1), code)

        last = np.append(step_group[1:] != step_group[:-1], True)
        final = np.append(group_dot[1:] != group_dot[:-1], True)[step_group]
        setting = rng.integers(0, bitmod_bins.settings(fmt), len(lengths))[step_group]
        scale = rng.integers(0, 256, len(lengths))
        odds = rng.random(len(lengths))
        scale = np.select([odds < 0.05, odds < 0.15, odds < 0.2], [0, 255, 1], scale)[step_group]
        return self._stream(mode, act, code, setting, last, final, scale)

    def tensor(self, mode: str, x: np.ndarray, w: np.ndarray) -> TensorCase:
        """Rows of a layer, quantised in groups of 128 with 8-bit group scales."""
        qt = quantize(w, bitmod.VERIFY_FORMATS[mode].name, group_size=128, scale_format="int8")
        x = np.asarray(x).astype(np.float16)
        arrays = [bitmod.tensor_steps(row.view(np.uint16), qt, range(qt.n)) for row in x]
        whole = bitmod.StepArrays(*(np.concatenate(field) for field in zip(*arrays, strict=True)))
        stream = self._ports(mode, whole)
        gemm = bitmod.BitmodPE(self.config).gemm(x, qt)
        scale = np.tile(bitmod.output_scale(qt), len(x))
        return TensorCase(stream, gemm.reshape(-1), lambda y: y.view(np.float32) * scale)

    def traces(self, mode: str, rng: np.random.Generator) -> list[Trace]:
        """Special values shown without a write, and others than the format's written in between."""
        noise = TraceRecorder(self.reference())
        random = self.random(mode, 30, rng)
        noise.setup(random.setup)
        for row in random.rows():
            if rng.random() < 0.3:
                address, data = int(rng.integers(4)), int(rng.integers(64))
                noise.setup([{**_program(address, data), "sv_we": 0}])
            noise.step(row)
        if bitmod.format_mode(bitmod.VERIFY_FORMATS[mode])[1] == 1:
            self._round_one_term(noise, random.rows()[-1])
        if bitmod.VERIFY_FORMATS[mode].kind != "levels":
            return [noise.trace("noise")]
        recorder = TraceRecorder(self.reference())
        words = bitmod_bins.SPECIAL_WORDS
        stream = self.random(mode, 3 * len(words), rng)
        rows, ends = stream.rows(), np.flatnonzero(stream.ends) + 1
        code = 1 << bitmod.VERIFY_FORMATS[mode].bits - 1  # minus zero: the special value
        lanes = range(self.config.lanes)
        special = {**rows[-1], "scale": 1} | {f"act{lane}": 0x3C00 for lane in lanes}  # 1.0
        special |= {f"code{lane}": code for lane in lanes}
        for i, (start, stop) in enumerate(zip([0, *ends], ends, strict=False)):
            for address in range(4):
                recorder.setup([_program(address, words[(i + 11 * address) % len(words)])])
            for row in [*rows[start:stop], {**special, "selector": i // len(words)}]:
                recorder.step(row)
        return [noise.trace("noise"), recorder.trace("special")]

    def _round_one_term(self, recorder: TraceRecorder, row: Mapping[str, int]) -> None:
        """Sums just above a group accumulator of 32752, rounded by two places up and down.

        With one term a cycle only three full lanes reach it, and the fourth brings the low bits.
        """
        lanes = range(self.config.lanes)
        ones = {**row, "scale": 1, "last": 0, **{f"code{lane}": 1 for lane in lanes}}
        for low in (0x6BFF, 0x6802):  # 1023 and 513 after alignment
            for act, last in (((0x7BFF, 0x7BFF, 0, 0), 0), ((0x7BFF, 0x7BFF, 0x7BFF, low), 1)):
                shown = {f"act{lane}": bits for lane, bits in zip(lanes, act, strict=False)}
                recorder.step({**ones, **shown, "last": last})

    def model(self, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
        fmt = bitmod.VERIFY_FORMATS[stream.mode]
        return bitmod.run_model(
            self._arrays(stream), *bitmod.format_mode(fmt), bitmod.special_registers(fmt)
        )

    def kernel(self, function: Callable[..., np.ndarray], stream: Stream) -> np.ndarray:
        """Through `bitwright.kernels.bitserial_dots`; dot products of like length run together."""
        fmt = bitmod.VERIFY_FORMATS[stream.mode]
        arrays = self._arrays(stream)
        values = _values(fmt, arrays)
        stops = np.flatnonzero(stream.ends) + 1
        starts = np.concatenate([[0], stops[:-1]])
        order = np.argsort(stops - starts, kind="stable")
        y = np.empty(len(stops), np.float32)
        for at in range(0, len(order), _KERNEL_BATCH):
            batch = order[at : at + _KERNEL_BATCH]
            length = int((stops - starts)[batch].max())
            index = starts[batch, None] + np.arange(length)
            inside = index < stops[batch, None]
            index = np.where(inside, index, 0)
            y[batch] = function(
                np.where(inside[..., None], arrays.act[index], 0),
                values[index],
                arrays.last[index] & inside,
                arrays.scale[index],
                terms=bitmod.format_mode(fmt)[1],
                half_units=fmt.kind == "levels",
            )
        return y.view(np.uint32)

    def _stream(
        self,
        mode: str,
        act: np.ndarray,
        code: np.ndarray,
        setting: np.ndarray,
        last: np.ndarray,
        final: np.ndarray,
        scale: np.ndarray,
    ) -> Stream:
        """`code` has the format's bits; `setting` is the zero point or the selector."""
        fmt = bitmod.VERIFY_FORMATS[mode]
        zero = np.zeros(len(act), np.uint8)
        asymmetric = fmt.kind == "int-asym"
        arrays = bitmod.StepArrays(
            act=act.astype(np.uint16),
            code=bitmod_bins.port_codes(fmt, code),
            zero=setting.astype(np.uint8) if asymmetric else zero,
            selector=zero if asymmetric else setting.astype(np.uint8),
            last=last,
            final=final,
            scale=scale.astype(np.uint8),
        )
        return self._ports(mode, arrays)

    def _ports(self, mode: str, arrays: bitmod.StepArrays) -> Stream:
        fmt = bitmod.VERIFY_FORMATS[mode]
        encoder_mode, terms = bitmod.format_mode(fmt)
        constant = np.ones(len(arrays.act), np.uint8)
        ports = {f"act{i}": arrays.act[:, i] for i in range(self.config.lanes)}
        ports |= {f"code{i}": arrays.code[:, i] for i in range(self.config.lanes)}
        ports |= {
            "zero": arrays.zero,
            "selector": arrays.selector,
            "mode": constant * encoder_mode,
            "terms": constant * terms,
            "last": arrays.last.astype(np.uint8),
            "final_group": arrays.final.astype(np.uint8),
            "scale": arrays.scale,
        }
        setup = [_program(i, word) for i, word in enumerate(bitmod.special_registers(fmt))]
        return Stream(mode, setup, ports, arrays.last & arrays.final)

    def _arrays(self, stream: Stream) -> bitmod.StepArrays:
        ports = stream.ports
        return bitmod.StepArrays(
            act=np.stack([ports[f"act{i}"] for i in range(self.config.lanes)], axis=1),
            code=np.stack([ports[f"code{i}"] for i in range(self.config.lanes)], axis=1),
            zero=ports["zero"],
            selector=ports["selector"],
            last=ports["last"].astype(bool),
            final=ports["final_group"].astype(bool),
            scale=ports["scale"],
        )


_KERNEL_BATCH = 8192  #: dot products that the software kernel advances together


def _program(address: int, word: int) -> dict[str, int]:
    return {"sv_we": 1, "sv_addr": address, "sv_data": word}


def _values(fmt: Format, arrays: bitmod.StepArrays) -> np.ndarray:
    """Weights as integers (half units for levels), from the format's own table."""
    if fmt.kind != "levels":
        return (arrays.code - arrays.zero[:, None]).view(np.int8).astype(np.int32)
    half_units = (np.array(fmt.levels) * 2).astype(np.int32)
    special = (np.array(fmt.special_values) * 2).astype(np.int32)[arrays.selector]
    return np.where(arrays.code == 1 << fmt.bits - 1, special[:, None], half_units[arrays.code])
