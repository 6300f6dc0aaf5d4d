"""Published simulators, rebuilt rule by rule so that their figures come out again.

`bitmod-hpca25` is the simulator behind Fig. 7 and 8 of BitMoD (HPCA 2025). R1 is the released
repository abdelfattah-lab/BitMoD-HPCA-25, R2 the author's yc2367/BitMoD. The figures follow R2; the
released R1 changed its attention model later and gives other numbers. Its rules, for a product with
n outputs, k inputs and m tokens, on an array of rows x cols PEs with `lanes` multipliers:

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
decode of Yi-6B, with ports of 72 bits: it is interpolated and gives 0.5 % less than published.

DRAM energy is 18.75 pJ per bit. There is no leakage.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from bitwright.quant import InputError

from .accelerator import Area, LayerResult, SimulationResult, fetches
from .memory import DRAMS, sram
from .tables import pick, read_table
from .workloads import Kind, ModelShape, load_shape

_BUFFER_BYTES = 512 * 1024
_BANKS = 8
_PLACE_AND_ROUTE = 1.5
_MODELS = ("opt-1.3b", "phi-2", "yi-6b", "llama-2-7b", "llama-2-13b", "llama-3-8b")


@dataclass(frozen=True, slots=True)
class PublishedDesign:
    """One accelerator of a published study."""

    name: str
    lanes: int
    serial: bool  #: bit-serial: latency follows the weight bits, ports are half as wide
    prefill_array: tuple[int, int]  #: rows x cols: output channels x tokens
    decode_array: tuple[int, int]
    pe_pj: float  #: per PE and cycle, before place and route
    pe_um2: float
    prefill_bits: float  #: weight bits, group scales included where the study includes them
    decode_bits: float | Mapping[str, float]  #: one number, or one per model
    source: str

    def array(self, phase: str) -> tuple[int, int]:
        """Rows and columns in a phase."""
        return self.prefill_array if phase == "prefill" else self.decode_array

    def weight_bits(self, shape: ModelShape, phase: str) -> float:
        """Weight precision of a model.

        Raises:
            InputError: The study chose it per model and does not have this one.
        """
        if phase == "prefill":
            return self.prefill_bits
        if not isinstance(self.decode_bits, Mapping):
            return self.decode_bits
        if shape.name not in self.decode_bits:
            raise InputError(
                f"design {self.name} has no decode precision for {shape.name}; the study has "
                f"{', '.join(self.decode_bits)}"
            )
        return self.decode_bits[shape.name]


@dataclass(frozen=True, slots=True)
class Preset:
    """A set of rules for `simulate`."""

    name: str
    summary: str
    source: str
    designs: Mapping[str, PublishedDesign] = field(default_factory=dict)


_SIM = "authors' repo: yc2367/BitMoD sim/"
_BITMOD = {
    design.name: design
    for design in (
        PublishedDesign(
            "fp16", 1, False, (32, 24), (64, 12), 0.77, 1968.7, 16, 16, f"{_SIM}test_baseline.py"
        ),
        PublishedDesign(
            *("ant", 1, False, (32, 32), (64, 16), 0.56, 1318.6, 5.5),
            dict(zip(_MODELS, (5, 5, 5.25, 5, 5, 4.5), strict=True)),
            f"{_SIM}test_ant.py; PE energy: abdelfattah-lab/BitMoD-HPCA-25 bitmod_sim/test_ant.py",
        ),
        PublishedDesign(
            *("olive", 1, False, (36, 32), (72, 16), 0.613, 1318.6, 4.5),
            dict(zip(_MODELS, (3.875, 4, 4.25, 3.75, 3.75, 3.5), strict=True)),
            f"{_SIM}test_olive.py",
        ),
        PublishedDesign(
            *("bitmod-lossless", 4, True, (32, 32), (64, 16), 0.56, 1507.7, 6.0625, 6.0625),
            f"{_SIM}test_bitmod.py",
        ),
        PublishedDesign(
            *("bitmod-lossy", 4, True, (32, 32), (64, 16), 0.56, 1507.7, 4.0625, 3.0625),
            f"{_SIM}test_bitmod.py",
        ),
    )
}

#: Rules that `bitwright simulate --preset` knows.
PRESETS: dict[str, Preset] = {
    "bitwright": Preset(
        "bitwright",
        "the general model: any PE, recipe and array",
        "this package, sim/accelerator.py",
    ),
    "bitmod-hpca25": Preset(
        "bitmod-hpca25",
        "the simulator behind Fig. 7 and 8 of BitMoD",
        "BitMoD (HPCA 2025, arXiv 2411.11745); authors' repo: yc2367/BitMoD sim/",
        _BITMOD,
    ),
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: Unknown name; the known ones are told.
    """
    return pick(PRESETS, name, "preset")


class _Product(NamedTuple):
    """A product in the published shapes."""

    name: str
    n: int
    k: int
    m: int
    times: int
    input_row_bytes: int
    kind: Kind


def _products(shape: ModelShape, tokens: int, context: int) -> list[_Product]:
    width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, ffn, layers = shape.hidden, shape.ffn, shape.layers
    linear = [("attn.q", width, hidden), ("attn.k", kv_width, hidden), ("attn.v", kv_width, hidden)]
    linear += [("attn.o", hidden, width)]
    linear += [("ffn.gate", ffn, hidden)] if shape.gated else []
    linear += [("ffn.up", ffn, hidden), ("ffn.down", hidden, ffn)]
    rows = shape.heads * tokens
    cache_row = 2 * kv_width
    return [
        *(_Product(name, n, k, tokens, layers, 2 * k, "block") for name, n, k in linear),
        _Product("attn.scores", tokens, width, rows, layers, cache_row, "cache"),
        _Product("attn.values", rows, context, tokens, layers, cache_row, "cache"),
        _Product("lm_head", shape.vocab, hidden, tokens, 1, 2 * hidden, "plain"),
    ]


class _Bank(NamedTuple):
    read_pj: float
    write_pj: float
    area_mm2: float | None
    source: str


@cache
def _fitted_banks() -> dict[int, _Bank]:
    return {
        int(row["width_bits"]): _Bank(
            float(row["read_pJ"]), float(row["write_pJ"]), None, row["label"]
        )
        for row in read_table("bitmod_banks.csv")
    }


def _bank(width_bits: int) -> _Bank:
    """A bank of the study: the fitted one if there is one, else from the CACTI table."""
    fitted = _fitted_banks().get(width_bits)
    if fitted is not None:
        return fitted
    bank = sram(_BUFFER_BYTES // _BANKS, width_bits)
    return _Bank(bank.read_pj, bank.write_pj, bank.area_mm2, bank.source)


def port_bits(design: PublishedDesign, phase: str, weight_bits: float) -> tuple[int, int]:
    """Port widths of one weight bank and one activation bank.

    >>> port_bits(PRESETS["bitmod-hpca25"].designs["bitmod-lossless"], "prefill", 6.0625)
    (64, 128)
    """
    rows, cols = design.array(phase)
    halves = 2 if design.serial else 1
    weights = design.lanes * 4 * math.ceil(weight_bits / 4) * rows
    return weights // halves // _BANKS, design.lanes * 16 * cols // halves // _BANKS


def simulate_published(
    shape: ModelShape | str,
    design: PublishedDesign | str,
    phase: str = "prefill",
    *,
    tokens: int = 256,
    context: int = 256,
    weight_bits: float | None = None,
) -> SimulationResult:
    """One pass under the rules of `bitmod-hpca25` (see the top of this module).

    Args:
        shape: A shape or its name; the study has six (`opt-1.3b` ... `llama-3-8b`).
        design: "fp16", "ant", "olive", "bitmod-lossless" or "bitmod-lossy".
        phase: "prefill" of `tokens` tokens, or "decode": one token at `context` positions.
        tokens: Length of the prompt; the study takes 256.
        context: Positions attended to in decode; the study takes 256 and keeps it there.
        weight_bits: None: the study's choice for design, phase and model.

    Raises:
        InputError: Unknown shape, design or phase, a mixture of experts, or a design whose
            precision was chosen per model and not for this one.
    """
    if isinstance(shape, str):
        shape = load_shape(shape)
    if isinstance(design, str):
        design = pick(_BITMOD, design, "design")
    if phase not in ("prefill", "decode"):
        raise InputError(f"phase is {phase!r}; one of prefill, decode")
    for name, value in (("tokens", tokens), ("context", context)):
        if value < 1:
            raise InputError(f"{name} is {value}; at least 1")
    if shape.experts > 1:
        raise InputError(f"{shape.name} is a mixture of experts, which preset bitmod-hpca25 lacks")
    bits = design.weight_bits(shape, phase) if weight_bits is None else weight_bits
    if not 1 <= bits <= 16:
        raise InputError(f"weight bits are {bits}; between 1 and 16")
    new_tokens = tokens if phase == "prefill" else 1
    context = tokens if phase == "prefill" else context

    widths = port_bits(design, phase, bits)
    banks = _bank(widths[0]), _bank(widths[1])
    rows, cols = design.array(phase)
    latency = math.ceil(math.floor(bits) / 2) if design.serial else 1
    layers = tuple(
        _layer(product, design, rows, cols, latency, bits, widths, banks)
        for product in _products(shape, new_tokens, context)
    )
    compute_cycles = sum(layer.compute_cycles for layer in layers)
    areas = [bank.area_mm2 for bank in banks]
    return SimulationResult(
        name=shape.name,
        phase=phase,
        tokens=new_tokens,
        context=context,
        design=f"{design.name} (bitmod-hpca25), {rows} x {cols} x {design.lanes} lanes",
        config={
            "preset": "bitmod-hpca25",
            "design": design.name,
            "rows": rows,
            "cols": cols,
            "lanes": design.lanes,
            "weight_bits": bits,
            "step_cycles": latency,
            "buffer_kib": _BUFFER_BYTES // 1024,
            "weight_port_bits": widths[0] * _BANKS,
            "activation_port_bits": widths[1] * _BANKS,
            "dram": "ddr4-bitmod",
            "clock_ps": 1000.0,
        },
        clock_ps=1000.0,
        layers=layers,
        logic_uj=design.pe_pj * _PLACE_AND_ROUTE * rows * cols * compute_cycles * 1e-6,
        leakage_uj=None,
        area=Area(
            array=rows * cols * design.pe_um2 * 1e-6,
            encoders=0.0,
            sram=None if None in areas else _BANKS * sum(area for area in areas if area),
        ),
        energy_note=(
            "published rules: logic is the published PE energy times 1.5 for place and route; "
            "leakage is left out"
        ),
        notes=(
            "attention is counted in the published simulator's shapes, which are too large; "
            "encoders and place and route are not in its areas",
        ),
        sources=(
            f"shape: {shape.source}",
            f"rules: {PRESETS['bitmod-hpca25'].source}",
            f"design {design.name}: {rows} x {cols} PEs, {design.pe_pj:g} pJ per PE and cycle, "
            f"{design.pe_um2:g} um2, {bits:g} weight bits; {design.source}",
            f"dram: 18.75 pJ/bit, 32 GB/s; {DRAMS['ddr4-bitmod'].source}",
            *(
                f"{what} buffer: {_BANKS} banks of 64 KiB, {width} bits wide, "
                f"read {bank.read_pj:.4g} pJ, write {bank.write_pj:.4g} pJ each; {bank.source}"
                for what, width, bank in zip(("weight", "activation"), widths, banks, strict=True)
            ),
        ),
    )


def _layer(
    product: _Product,
    design: PublishedDesign,
    rows: int,
    cols: int,
    latency: int,
    bits: float,
    widths: tuple[int, int],
    banks: tuple[_Bank, _Bank],
) -> LayerResult:
    name, n, k, m, times, input_row_bytes, kind = product
    steps = math.ceil(k / design.lanes) * math.ceil(n / rows) * math.ceil(m / cols)
    operand_bits = 16 if kind == "cache" else bits
    weight_bytes, input_bytes = math.ceil(k * operand_bits / 8) * n, input_row_bytes * m
    output_bytes = 2 * n * m
    of_weights, of_inputs = fetches(weight_bytes, input_bytes, _BUFFER_BYTES, _BUFFER_BYTES)
    traffic = of_weights * weight_bytes + of_inputs * input_bytes + output_bytes
    dram_cycles = traffic * 8 // 256

    weight_words = of_weights * n * math.ceil(k * bits / 64)
    activation_words = of_inputs * m * math.ceil(input_row_bytes / 8) + m * math.ceil(n / 4)
    sram_pj = (
        steps * _BANKS * (banks[0].read_pj + banks[1].read_pj)
        + weight_words * banks[0].write_pj * 64 / widths[0]
        + activation_words * banks[1].write_pj * 64 / widths[1]
    )
    return LayerResult(
        name=name,
        m=m,
        n=n,
        k=k,
        count=times,
        kind=kind,
        compute_cycles=times * steps * latency,
        dram_cycles=times * dram_cycles,
        cycles=times * max(steps * latency, dram_cycles),
        weight_bytes=times * of_weights * weight_bytes,
        input_bytes=times * of_inputs * input_bytes,
        output_bytes=times * output_bytes,
        weight_fetches=of_weights,
        input_fetches=of_inputs,
        sram_uj=times * sram_pj * 1e-6,
        dram_uj=times * traffic * 8 * DRAMS["ddr4-bitmod"].energy_pj_per_bit * 1e-6,
    )
