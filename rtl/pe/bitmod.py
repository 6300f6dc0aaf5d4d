"""PyRTL generator of the bit-serial PE and its column, after docs/numerics.md.

One function per block, named as in the contract: term encoder, align, multiply, accumulate, scale
unit, column accumulator. `bitmod_pe` composes the blocks that every PE of an array holds;
`bitmod_column` adds what the PEs of a column share and is the design that is verified.

Numbers are two's complement from the first negation on: rounding to odd and to nearest even give
the same result as on sign and magnitude, and no stage negates twice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pyrtl
from pyrtl import Block, Const, Input, Output, Register, WireVector, concat, select

from bitwright.sim import bitmod

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

    hold: WireVector  #: align, multiply and accumulate keep their registers
    bsig: WireVector  #: 3 bits, bit significance of the term in the accumulate stage
    clear: WireVector  #: that term is the first of its group: forget the accumulator
    load: WireVector  #: it is the last of its group: hand the sum to the scale unit
    first: WireVector  #: first cycle of the scale unit
    bit: WireVector  #: scale bit of this cycle


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
    addends = []
    for lane in lanes:
        significand = concat(lane.significand, Const(0, 3))
        aligned = shift_right_jam(significand, lane.delta, signed=False, zeros=3)
        addends.append(aligned.zero_extended(sum_bits) ^ lane.sign.sign_extended(sum_bits))
    addends += [lane.sign for lane in lanes]  # the +1 of each negated lane
    total = addends[0]
    for addend in addends[1:]:
        total = (total + addend)[:sum_bits]
    return total


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
    # Two bits below the result, guard and sticky, decide about rounding.
    shifted = shift_right_jam(concat(v, Const(0, 2)), places, signed=True, zeros=2)
    guard, sticky, floor = shifted[1], shifted[0], shifted[2:18]
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
    act: Sequence[WireVector], terms: Sequence[TermWires], hold: WireVector
) -> tuple[list[AlignedLane], WireVector]:
    """`align` and its registers: 16 bits a lane and e_max (6 bits); latency 1."""
    lanes, e_max = align(act, terms)
    held = []
    for i, lane in enumerate(lanes):
        names = (f"lane_{field}{i}" for field in AlignedLane._fields)
        held.append(AlignedLane(*(register(w, n, hold) for w, n in zip(lane, names, strict=True))))
    return held, register(e_max, "align_e_max", hold)


def multiply_stage(
    lanes: Sequence[AlignedLane], e_max: WireVector, sum_bits: int, hold: WireVector
) -> tuple[WireVector, WireVector]:
    """`multiply` and its registers: S (`sum_bits`) and e_max (6 bits); latency 1."""
    return (
        register(multiply(lanes, sum_bits), "lane_sum", hold),
        register(e_max, "multiply_e_max", hold),
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
    a.next <<= select(control.hold, a, a_next)
    e_a.next <<= select(control.hold, e_a, e_next)
    return a_next, e_next


def scale_unit(
    a: WireVector, e_a: WireVector, control: Control
) -> tuple[WireVector, WireVector]:
    """Group scale, one bit a cycle, highest first: D = A * scale, 24 bits, two's complement, exact.

    With `load` in cycle t the product is on D in cycle t + 9, for that one cycle; the exponent is
    that of the group from t + 1 until the next `load`. One group in eight cycles.
    """
    own_a, own_e = Register(16, "scale_a"), Register(6, "scale_e")
    own_a.next <<= select(control.load, a, own_a)
    own_e.next <<= select(control.load, e_a, own_e)
    d = Register(24, "product")
    addend = (own_a & control.bit.sign_extended(16)).sign_extended(24)
    d.next <<= (concat(cleared(d[:23], control.first), Const(0, 1)) + addend)[:24]
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
    final: WireVector
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

    index = Register(2, "term_index")
    end = index == (step.terms - 1)[:2]
    integer, fp3 = step.mode == 0, step.mode[1]
    chosen = pyrtl.mux(step.selector, *special)
    terms = []
    for code in step.code:
        term = encode_weight(code, step.zero, chosen, integer, fp3, index)
        terms.append(term._replace(live=term.live & step.valid))

    # What goes with a term: its fields in the multiply and in the accumulate stage.
    fields = {
        "term": step.valid & ~rst,
        "last": step.valid & end & step.last & ~rst,
        "final": step.final,
        "scale": step.scale,
        "bsig": select(integer, concat(index, Const(0, 1)), concat(Const(0, 2), index[0])),
    }
    second = {name: Register(len(w), f"multiply_{name}") for name, w in fields.items()}
    third = {name: Register(len(w), f"accumulate_{name}") for name, w in fields.items()}

    # The scale unit counts 8 .. 1 and can take the next group in its last cycle.
    left, bits, final = Register(4, "scale_left"), Register(8, "scale_bits"), Register(1, "scale_final")
    hold = third["last"] & (left > 1)
    load = third["last"] & ~hold
    counted = select(left == 0, Const(0, 4), (left - 1)[:4])
    left.next <<= cleared(select(load, Const(8, 4), counted), rst)
    bits.next <<= select(load, third["scale"], concat(bits[:7], Const(0, 1)))
    final.next <<= select(load, third["final"], final)

    for name, wire in fields.items():
        stay = second[name], third[name]
        move = wire, second[name]
        for register_, kept, new in zip(stay, stay, move, strict=True):
            value = select(hold, kept, new)
            register_.next <<= cleared(value, rst) if name in ("term", "last") else value
    moved = select(end, Const(0, 2), (index + 1)[:2])
    index.next <<= cleared(select(step.valid & ~hold, moved, index), rst)
    running = Register(1, "group_running")
    running.next <<= cleared(select(third["term"] & ~hold, ~third["last"], running), rst)

    return Issue(
        ready=step.valid & end & ~hold,
        terms=terms,
        control=Control(hold, third["bsig"], ~running, load, left[3], bits[7]),
        product_valid=register(cleared(left == 1, rst), "product_valid"),
        product_final=register(final, "product_final"),
    )


# ------------------------------------------------------------------ designs


def processing_element(
    config: BitmodConfig,
    act: Sequence[WireVector],
    terms: Sequence[TermWires],
    control: Control,
) -> tuple[WireVector, WireVector]:
    """Align, multiply, accumulate and scale: the scale unit's D (24 bits) and exponent (6 bits)."""
    lanes, e_max = align_stage(act, terms, control.hold)
    s, e_max = multiply_stage(lanes, e_max, config.sum_bits, control.hold)
    return scale_unit(*accumulate_stage(s, e_max, control), control)


def bitmod_pe(config: BitmodConfig = BitmodConfig()) -> Block:  # noqa: B008 - frozen
    """One PE of an array. Control and scale bits come from its column, so it has no reset.

    Ports: per lane act 16, sign 1, shift 2, live 1; hold, bsig 3, clear, load, first, bit (see
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
    widths = {"zero": 8, "selector": 2, "mode": 2, "terms": 3, "last": 1, "final": 1, "scale": 8}
    code = _inputs("code", 8, config.lanes)
    step = StepWires(Input(1, "valid"), code, *(Input(b, name) for name, b in widths.items()))
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
        _output("final_out", issue.product_final)
    return block


def _align_block(config: BitmodConfig) -> Block:
    with design() as block:
        act, terms = _inputs("act", 16, config.lanes), _term_inputs(config)
        lanes, e_max = align_stage(act, terms, Input(1, "hold"))
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
        s, e_max = multiply_stage(lanes, Input(6, "e_in"), config.sum_bits, Input(1, "hold"))
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
            Input(24, "d"), Input(6, "e"), Input(1, "valid"), Input(1, "final"), Input(1, "rst")
        )
        _output("y", y)
        _output("y_valid", y_valid)
    return block
