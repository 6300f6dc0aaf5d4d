"""The published simulators of BitMoD, rule by rule.

`bitmod-hpca25` is the simulator behind Fig. 7 and 8 of BitMoD (HPCA 2025). R1 is the released
repository abdelfattah-lab/BitMoD-HPCA-25, R2 the author's yc2367/BitMoD. The figures follow R2; the
released R1 changed its attention model later and gives other numbers (see `released`). The rules,
for a product with n outputs, k inputs and m tokens, on an array of rows x cols PEs with `lanes`
multipliers (rows hold output channels and cols hold tokens here, as published; the rest of this
package has it the other way round):

    steps   = ceil(k / lanes) * ceil(n / rows) * ceil(m / cols)
    compute = steps * latency            latency 1; bit-serial PE: ceil(floor(weight bits) / 2)
    W       = ceil(k * bits / 8) * n     weight bytes, rounded up per row
    X       = input bytes of a row * m,  Y = 2 * n * m
    dram    = floor((fW * W + fX * X + Y) * 8 / 256)          16-bit DDR: 256 bits a cycle
    cycles  = max(compute, dram)

- fW and fX: `fetches` with buffers of 512 KiB each.
- R2 writes the latency as round(...) where R1 has ceil(...). They agree for 3, 4, 6 and 8 bits; at
  5 bits only ceil gives the published energy (and the paper's 3 terms), the cycles fit both.
- Attention, t tokens and context c (c = t in a prefill), is counted in the shapes of R2: scores
  n = t, k = heads * head_dim, m = heads * t; values n = heads * t, k = c, m = t. All its operands
  have 16 bits, the latency is that of the linear layers, and *both* products read inputs of
  kv_heads * head_dim * 2 bytes per row. This is not how attention works (it counts the scores too
  often by the number of heads), but what was published.
- The output layer is a linear layer at the weight precision of the others.
- The figure for generation is 20 decode steps plus the prefill.

On-chip energy = PE + SRAM reads + SRAM writes:

    PE     = pe_pj * 1.5 (place and route) * rows * cols * compute
    reads  = steps * 8 banks * (read of a weight bank + read of an activation bank)
    writes = 64-bit words * energy of a bank's write * 64 / port width of the bank; words are
             fW * n * ceil(k * weight bits / 64), fX * m * ceil(input bytes of a row / 8) and
             m * ceil(n / 4); attention also counts its words at the *linear* weight precision

A buffer has 8 banks of 64 KiB (CACTI, 28 nm, 1R1W); the port of a bank has
lanes * 4 * ceil(weight bits / 4) * rows / 8 bits, or lanes * 16 * cols / 8 for activations, half of
that for the bit-serial PE (R1 bitmod_sim/accelerator.py). Where that width is in our CACTI 7 table
the published energies come out without any fitted number (BitMoD and ANT); three widths that are
not in the table (FP16 and OliVe) are fitted, see data/bitmod_banks.csv. One run remains, OliVe in
decode of Yi-6B, with ports of 72 bits: it is interpolated and gives 0.5 % less than published. A
port narrower than the 32 bits where the table begins counts as a port of 32 bits (an upper bound;
no published run has one, but OliVe has in the released rules and with one array for both phases).

DRAM energy is 18.75 pJ per bit. There is no leakage.

`Corrections` replaces one simplification at a time; with none of them the rules above hold to the
last digit.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, lru_cache
from typing import Literal, NamedTuple

from bitwright.sim import (
    DRAMS,
    Kind,
    ModelShape,
    VectorOp,
    VectorUnit,
    decode,
    dram_bytes,
    prefill,
    read_table,
    sram,
)
from bitwright.sim import cycles as operation_cycles

from .corrections import Corrections
from .designs import PublishedDesign

BUFFER_BYTES = 512 * 1024  #: of the weight and of the activation buffer
BANKS = 8  #: of each buffer
PLACE_AND_ROUTE = 1.5  #: factor on the energy of a PE
CLOCK_PS = 1000.0
GENERATED_TOKENS = 20  #: decode steps behind the bars for generation
AS_PUBLISHED = Corrections()

_GROUP = 128
_TILE_EDGE = 8  # PEs along the edge of a tile
_SERIAL_SCALE_CYCLES = 8
_SERIAL_PIPELINE_CYCLES, _PLAIN_PIPELINE_CYCLES = 12, 2  # as in sim/accelerator/hardware.py
_SELECTOR_BITS = 2
TIMED_DRAM = "ddr4-3200"  #: whose timing and standing power the corrections take
_NARROWEST_PORT = 32  # bits; the CACTI table begins here


class _Product(NamedTuple):
    """`times` equal products, each of `batch` independent ones whose traffic is counted as one."""

    name: str
    n: int
    k: int
    m: int
    times: int
    input_row_bytes: int
    kind: Kind
    batch: int = 1
    mask: Literal["none", "scores", "values"] = "none"
    rows_per_position: int = 1


def _products(
    shape: ModelShape, phase: str, tokens: int, context: int, corrections: Corrections
) -> list[_Product]:
    width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, ffn, layers = shape.hidden, shape.ffn, shape.layers
    linear = [("attn.q", width, hidden), ("attn.k", kv_width, hidden), ("attn.v", kv_width, hidden)]
    linear += [("attn.o", hidden, width)]
    linear += [("ffn.gate", ffn, hidden)] if shape.gated else []
    linear += [("ffn.up", ffn, hidden), ("ffn.down", hidden, ffn)]
    if corrections.attention_shapes:
        sharing = shape.heads // shape.kv_heads
        rows, dim = sharing * tokens, shape.head_dim
        batch = shape.kv_heads
        scores = _Product(
            "attn.scores", context, dim, rows, layers, 2 * dim, "cache", batch, "scores", sharing
        )
        values = _Product(
            "attn.values",
            dim,
            context,
            rows,
            layers,
            2 * context,
            "cache",
            batch,
            "values",
            sharing,
        )
    else:
        rows, row_bytes = shape.heads * tokens, 2 * kv_width
        scores = _Product(
            *("attn.scores", tokens, width, rows, layers, row_bytes, "cache", 1, "scores"),
            rows_per_position=shape.heads,
        )
        values = _Product(
            "attn.values", rows, context, tokens, layers, row_bytes, "cache", 1, "values"
        )
    if not (corrections.causal and phase == "prefill"):
        scores, values = scores._replace(mask="none"), values._replace(mask="none")
    return [
        *(_Product(name, n, k, tokens, layers, 2 * k, "block") for name, n, k in linear),
        scores,
        values,
        _Product("lm_head", shape.vocab, hidden, tokens, 1, 2 * hidden, "plain"),
    ]


class Bank(NamedTuple):
    """One SRAM bank of the study; energies are per access of the whole width."""

    read_pj: float
    write_pj: float
    area_mm2: float | None  #: None: fitted, so not known
    source: str


@cache
def _fitted_banks() -> dict[int, Bank]:
    return {
        int(row["width_bits"]): Bank(
            float(row["read_pJ"]), float(row["write_pJ"]), None, row["label"]
        )
        for row in read_table("bitmod_banks.csv")
    }


@cache
def _bank(width_bits: int) -> Bank:
    """A bank of the study: the fitted one if there is one, else from the CACTI table."""
    fitted = _fitted_banks().get(width_bits)
    if fitted is not None:
        return fitted
    bank = sram(BUFFER_BYTES // BANKS, max(width_bits, _NARROWEST_PORT))
    source = bank.source
    if width_bits < _NARROWEST_PORT:
        source += f", of a {_NARROWEST_PORT}-bit port (an upper bound for {width_bits} bits)"
    return Bank(bank.read_pj, bank.write_pj, bank.area_mm2, source)


@cache
def _leak_mw(width_bits: int) -> float:
    return sram(BUFFER_BYTES // BANKS, max(width_bits, _NARROWEST_PORT)).leak_mw


def port_bits(design: PublishedDesign, phase: str, weight_bits: float) -> tuple[int, int]:
    """Port widths of one weight bank and one activation bank.

    >>> from bitwright.sim import PRESETS
    >>> port_bits(PRESETS["bitmod-hpca25"].designs["bitmod-lossless"], "prefill", 6.0625)
    (64, 128)
    """
    rows, cols = design.array(phase)
    halves = 2 if design.serial else 1
    weights = design.lanes * 4 * math.ceil(weight_bits / 4) * rows
    return weights // halves // BANKS, design.lanes * 16 * cols // halves // BANKS


class _Setting(NamedTuple):
    """All that a product's cost depends on besides its shape."""

    rows: int
    cols: int
    lanes: int
    serial: bool
    weight_bits: float
    kv_bits: int
    latency: int  #: of a linear layer's step
    kv_latency: int  #: of an attention step
    ports: tuple[int, int]
    corrections: Corrections


class PublishedRow(NamedTuple):
    """Cost of one product; cycles, bytes and energies are those of all repetitions."""

    name: str
    m: int
    n: int
    k: int
    repeats: int
    kind: Kind
    compute_cycles: int
    dram_cycles: int
    cycles: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    weight_fetches: int
    input_fetches: int
    sram_pj: float


@dataclass(frozen=True, slots=True)
class PublishedCost:
    """Cycles, and energy in uJ by part: logic, encoders, sram, dram, leakage, standing."""

    cycles: int
    energy_uj: Mapping[str, float]

    @property
    def on_chip_uj(self) -> float:
        """All energy but that of the DRAM."""
        return self.total_uj - self.energy_uj["dram"] - self.energy_uj["standing"]

    @property
    def total_uj(self) -> float:
        """All parts."""
        return sum(self.energy_uj.values())

    def __add__(self, other: "PublishedCost") -> "PublishedCost":
        """One after the other."""
        return PublishedCost(
            self.cycles + other.cycles,
            {part: value + other.energy_uj[part] for part, value in self.energy_uj.items()},
        )

    def __mul__(self, times: int) -> "PublishedCost":
        """The same so many times."""
        return PublishedCost(
            self.cycles * times, {part: value * times for part, value in self.energy_uj.items()}
        )


@dataclass(frozen=True, slots=True)
class PublishedPass:
    """What one pass costs under the published rules, corrected or not. Energies in uJ."""

    design: PublishedDesign
    phase: str
    array: tuple[int, int]
    weight_bits: float
    latency: int  #: cycles of a step of a linear layer
    ports: tuple[int, int]  #: bits of one weight bank and one activation bank
    rows: tuple[PublishedRow, ...]
    vector_cycles: int  #: 0 as published
    vector_bytes: int  #: over DRAM, 0 as published
    logic_uj: float
    encoder_uj: float  #: 0 as published
    leakage_uj: float  #: of the SRAM; 0 as published
    standing_uj: float  #: of the DRAM; 0 as published
    array_mm2: float
    encoder_mm2: float  #: 0 as published

    @property
    def cycles(self) -> int:
        """Cycles of the pass."""
        return sum(row.cycles for row in self.rows) + self.vector_cycles

    @property
    def dram_bytes(self) -> int:
        """Bytes over DRAM."""
        products = (row.weight_bytes + row.input_bytes + row.output_bytes for row in self.rows)
        return sum(products) + self.vector_bytes

    @property
    def sram_uj(self) -> float:
        """Reads and writes of the buffers."""
        return sum(row.sram_pj for row in self.rows) * 1e-6

    @property
    def dram_uj(self) -> float:
        """Transfers over DRAM."""
        return self.dram_bytes * 8 * DRAMS["ddr4-bitmod"].energy_pj_per_bit * 1e-6

    @property
    def cost(self) -> "PublishedCost":
        """Cycles and energies."""
        return PublishedCost(
            self.cycles,
            {
                "logic": self.logic_uj,
                "encoders": self.encoder_uj,
                "sram": self.sram_uj,
                "dram": self.dram_uj,
                "leakage": self.leakage_uj,
                "standing": self.standing_uj,
            },
        )

    @property
    def banks(self) -> tuple[Bank, Bank]:
        """A bank of the weight and of the activation buffer."""
        return _bank(self.ports[0]), _bank(self.ports[1])


def published_pass(
    shape: ModelShape,
    design: PublishedDesign,
    phase: str,
    *,
    tokens: int = 256,
    context: int = 256,
    weight_bits: float | None = None,
    corrections: Corrections = AS_PUBLISHED,
) -> PublishedPass:
    """One pass of a model on a design: a prefill of `tokens`, or one token at `context` positions.

    Args:
        shape: The model.
        design: The accelerator.
        phase: "prefill" or "decode".
        tokens: Length of the prompt.
        context: Positions that a decode step attends to.
        weight_bits: None: the study's choice for design, phase and model.
        corrections: What to model although the published simulator does not.

    Raises:
        InputError: A design whose precision was chosen per model and not for this one.
    """
    bits = design.weight_bits(shape, phase) if weight_bits is None else weight_bits
    new_tokens = tokens if phase == "prefill" else 1
    context = tokens if phase == "prefill" else context
    if corrections.one_array:
        design = replace(design, decode_array=design.prefill_array)
    rows, cols = design.array(phase)
    ports = port_bits(design, phase, bits)

    def latency(of_bits: float) -> int:
        return math.ceil(math.floor(of_bits) / 2) if design.serial else 1

    setting = _Setting(
        *(rows, cols, design.lanes, design.serial, bits),
        kv_bits=design.kv_bits if corrections.kv_bits else 16,
        latency=latency(bits),
        kv_latency=latency(design.kv_bits if corrections.kv_bits else bits),
        ports=ports,
        corrections=corrections,
    )
    products = _products(shape, phase, new_tokens, context, corrections)
    layers = tuple(_row(product, setting) for product in products)
    vector = _vector(shape, phase, tokens, context, setting.kv_bits < 16, corrections)
    compute_cycles = sum(layer.compute_cycles for layer in layers)
    cycles = sum(layer.cycles for layer in layers) + vector.cycles
    nanoseconds = cycles * CLOCK_PS * 1e-3
    tiles = rows * cols / _TILE_EDGE**2
    area_factor = PLACE_AND_ROUTE if corrections.place_and_route else 1.0
    leak_mw = BANKS * sum(_leak_mw(width) for width in ports) if corrections.sram_leakage else 0.0
    return PublishedPass(
        *(design, phase, (rows, cols), bits, setting.latency, ports, layers),
        vector_cycles=vector.cycles,
        vector_bytes=vector.dram_bytes,
        logic_uj=design.pe_pj * PLACE_AND_ROUTE * rows * cols * compute_cycles * 1e-6,
        encoder_uj=design.encoder_pj * PLACE_AND_ROUTE * tiles * compute_cycles * 1e-6
        if corrections.encoders
        else 0.0,
        leakage_uj=leak_mw * nanoseconds * 1e-6,  # mW * ns = pJ
        standing_uj=DRAMS[TIMED_DRAM].standing_pj(nanoseconds * 1e-9) * 1e-6
        if corrections.dram_standing
        else 0.0,
        array_mm2=rows * cols * design.pe_um2 * 1e-6 * area_factor,
        encoder_mm2=design.encoder_um2 * tiles * 1e-6 * area_factor
        if corrections.encoders
        else 0.0,
    )


def fetches(
    weight_bytes: int, input_bytes: int, weight_buffer: int, activation_buffer: int
) -> tuple[int, int]:
    """How often weights and inputs cross DRAM, by the published rule.

    Both once if either fits its buffer. Otherwise all weights again for every buffer-full of
    inputs, or all inputs again for every buffer-full of weights, whichever moves fewer bytes (the
    second if equal).

    >>> fetches(3000, 2000, 1000, 1000)  # 2 * 3000 + 2000 or 3000 + 3 * 2000
    (2, 1)
    """
    if weight_bytes <= weight_buffer or input_bytes <= activation_buffer:
        return 1, 1
    of_weights = math.ceil(input_bytes / activation_buffer)
    of_inputs = math.ceil(weight_bytes / weight_buffer)
    if of_weights * weight_bytes + input_bytes < weight_bytes + of_inputs * input_bytes:
        return of_weights, 1
    return 1, of_inputs


@lru_cache(maxsize=1 << 16)  # in a generation only attention changes from token to token
def _row(product: _Product, setting: _Setting) -> PublishedRow:
    name, n, k, m, times, input_row_bytes, kind, batch, mask, rows_per_position = product
    corrections = setting.corrections
    cached = kind == "cache"
    latency = setting.kv_latency if cached else setting.latency
    operand_bits = setting.kv_bits if cached else setting.weight_bits

    steps, intervals = 0, 0
    for across, depth, tiles in _tiles(product, setting):
        steps += batch * tiles * across * math.ceil(depth / setting.lanes)
        intervals += batch * tiles * across * _interval_cycles(depth, latency, setting)
    compute = steps * latency
    if corrections.pipeline:
        compute = intervals + batch * _fill_cycles(setting)

    weight_row_bytes = math.ceil(_row_bits(k, operand_bits, setting, kind) / 8)
    weight_bytes = weight_row_bytes * n * batch
    input_bytes, output_bytes = batch * input_row_bytes * m, 2 * batch * n * m
    input_words, output_words = m * math.ceil(input_row_bytes / 8), m * math.ceil(n / 4)
    if mask != "none":
        positions = m // rows_per_position
        kept = rows_per_position * positions * (positions + 1)  # bytes, 2 per position attended to
        if mask == "scores":
            output_bytes, output_words = batch * kept, math.ceil(kept / 8)
        elif corrections.attention_shapes:
            # In the published shapes an input row is not k long, so the mask does not shorten it.
            input_bytes, input_words = batch * kept, math.ceil(kept / 8)
    buffer = BUFFER_BYTES // 2 if corrections.half_buffers else BUFFER_BYTES
    of_weights, of_inputs = fetches(weight_bytes, input_bytes, buffer, buffer)
    traffic = of_weights * weight_bytes + of_inputs * input_bytes + output_bytes
    dram_cycles = _dram_cycles(traffic, corrections)
    cycles = max(compute, dram_cycles)
    if corrections.half_buffers:
        chunk = min(
            buffer, min(setting.rows, n) * weight_row_bytes
        )  # weights of a tile, if it fits
        first = chunk + min(buffer, min(setting.cols, m) * input_row_bytes)
        last = 2 * min(setting.rows, n) * min(setting.cols, m)
        tile = math.ceil(k / setting.lanes) * latency
        part = math.ceil(tile * chunk / (min(setting.rows, n) * weight_row_bytes))
        exposed = _dram_cycles(first, corrections) + _dram_cycles(last, corrections)
        cycles = max(compute + exposed, dram_cycles + part)

    word_bits = setting.kv_bits if cached and corrections.kv_bits else setting.weight_bits
    weight_words = of_weights * batch * n * math.ceil(_row_bits(k, word_bits, setting, kind) / 64)
    activation_words = batch * (of_inputs * input_words + output_words)
    weight_bank, activation_bank = _bank(setting.ports[0]), _bank(setting.ports[1])
    reads = steps * (2 if setting.serial and corrections.port_accesses else 1)
    sram_pj = (
        reads * BANKS * (weight_bank.read_pj + activation_bank.read_pj)
        + weight_words * weight_bank.write_pj * 64 / setting.ports[0]
        + activation_words * activation_bank.write_pj * 64 / setting.ports[1]
    )
    return PublishedRow(
        name,
        m,
        n,
        k,
        times * batch,
        kind,
        compute_cycles=times * compute,
        dram_cycles=times * dram_cycles,
        cycles=times * cycles,
        weight_bytes=times * of_weights * weight_bytes,
        input_bytes=times * of_inputs * input_bytes,
        output_bytes=times * output_bytes,
        weight_fetches=of_weights,
        input_fetches=of_inputs,
        sram_pj=times * sram_pj,
    )


def _tiles(product: _Product, setting: _Setting) -> Iterator[tuple[int, int, int]]:
    """Runs of equal rows of tiles: tiles across the outputs, inputs to add up, repetitions."""
    if product.mask == "none":
        across = math.ceil(product.n / setting.rows)
        yield across, product.k, math.ceil(product.m / setting.cols)
        return
    for first in range(0, product.m, setting.cols):
        # The last token of a tile decides how much of the masked product the tile needs.
        last = min(first + setting.cols, product.m) - 1
        needed = last // product.rows_per_position + 1
        if product.mask == "scores":
            yield math.ceil(needed / setting.rows), product.k, 1
        else:
            yield math.ceil(product.n / setting.rows), needed, 1


def _interval_cycles(depth: int, latency: int, setting: _Setting) -> int:
    """Cycles of an output tile, group by group; a group does not end before its scale unit can."""
    whole, rest = divmod(depth, _GROUP)
    floor = _SERIAL_SCALE_CYCLES if setting.serial else 0
    cycles = whole * max(math.ceil(_GROUP / setting.lanes) * latency, floor)
    return cycles + (max(math.ceil(rest / setting.lanes) * latency, floor) if rest else 0)


def _fill_cycles(setting: _Setting) -> int:
    """Pipeline, accumulator drain and skew between tiles, as in sim/accelerator/hardware.py."""
    depth = _SERIAL_PIPELINE_CYCLES if setting.serial else _PLAIN_PIPELINE_CYCLES
    drain = min(setting.rows, _TILE_EDGE) - 1
    skew = math.ceil(setting.rows / _TILE_EDGE) - 1 + math.ceil(setting.cols / _TILE_EDGE) - 1
    return depth + drain + skew


def _row_bits(k: int, bits: float, setting: _Setting, kind: Kind) -> float:
    """Stored bits of one output channel."""
    if not (setting.corrections.selector_bits and setting.serial and kind != "cache"):
        return k * bits
    data = math.floor(bits)
    selector = _SELECTOR_BITS if data <= 4 else 0
    return k * data + math.ceil(k / _GROUP) * (8 + selector) + 16


@cache
def _timed_rate() -> Fraction:
    """Bytes a cycle: the study's bandwidth at the efficiency of a real channel with 3 streams."""
    channel = DRAMS[TIMED_DRAM]
    effective = channel.effective_bytes_per_cycle(CLOCK_PS, streams=3)
    share = effective / channel.bytes_per_cycle(CLOCK_PS)
    return DRAMS["ddr4-bitmod"].bytes_per_cycle(CLOCK_PS) * share


def _dram_cycles(traffic: int, corrections: Corrections) -> int:
    if not corrections.dram_timing or not traffic:
        return traffic * 8 // 256
    return math.floor(traffic / _timed_rate()) + DRAMS[TIMED_DRAM].latency_cycles(CLOCK_PS)


class _Vector(NamedTuple):
    cycles: int
    dram_bytes: int


@cache
def _vector_op(op: VectorOp, corrections: Corrections) -> _Vector:
    moved = dram_bytes(op)
    return _Vector(max(operation_cycles(op, VectorUnit()), _dram_cycles(moved, corrections)), moved)


@lru_cache(maxsize=1 << 14)
def _vector(
    shape: ModelShape, phase: str, tokens: int, context: int, narrow: bool, corrections: Corrections
) -> _Vector:
    """Everything that is no matrix product, on the default unit of sim/workload/vector.py."""
    if not corrections.vector_unit:
        return _Vector(0, 0)
    if phase == "prefill":
        work = prefill(shape, tokens, causal=corrections.causal, quantise_cache=narrow)
    else:
        work = decode(shape, context, quantise_cache=narrow)
    costs = [_vector_op(op, corrections) for op in work.vector]
    return _Vector(sum(cost.cycles for cost in costs), sum(cost.dram_bytes for cost in costs))


def published_generation(
    shape: ModelShape,
    design: PublishedDesign,
    *,
    tokens: int = 256,
    corrections: Corrections = AS_PUBLISHED,
) -> PublishedCost:
    """A prefill of `tokens` and the generation after it: 20 equal decode steps, as published.

    Corrected, it is 256 steps (`generated_tokens`), and step i of them attends to tokens + i
    positions, its own included (`growing_cache`), instead of to `tokens`.

    Raises:
        InputError: As `published_pass`.
    """
    steps = 256 if corrections.generated_tokens else GENERATED_TOKENS

    def decode_step(context: int) -> PublishedCost:
        return published_pass(
            shape, design, "decode", context=context, corrections=corrections
        ).cost

    total = published_pass(shape, design, "prefill", tokens=tokens, corrections=corrections).cost
    if not corrections.growing_cache:
        return total + decode_step(tokens) * steps
    for step in range(1, steps + 1):
        total = total + decode_step(tokens + step)
    return total
