"""What products run on: an array of PEs with two buffers and DRAM, and operands as they are stored.

The array is output stationary, `rows` tokens x `cols` output channels of PEs with `lanes`
multipliers each. Activations are broadcast along a row; weights go down a column through its term
encoder or plane feeder, and one column accumulator takes the results of the PEs below each other
(BitMoD, HPCA 2025, Fig. 6: tiles of 8 x 8 PEs, tiles connected systolically).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from bitwright.quant import FORMATS, Format, InputError, ScaleFormat
from bitwright.sim import SRAMBank, find_dram, pick, sram

HALF_BITS = 16  #: FP16 operands and results
PEAK_MACS = 2048  #: multiply-accumulates a cycle of the published array at 4-bit weights
_GROUP = 128  # of the weights that ports are made for


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One accelerator. The defaults are the array of the BitMoD paper (sections IV and V)."""

    name: str = "bitwright"
    pe: str = "bitmod"  #: name in `PES`
    rows: int = 32  #: tokens side by side
    cols: int = 32  #: output channels side by side
    lanes: int = 4  #: multiplications side by side in one PE
    weight_buffer_kib: int = 512
    activation_buffer_kib: int = 512
    banks: int = 8  #: of each buffer; all of them are accessed together
    weight_lane_bits: int = 4  #: port: weight bits per cycle for each lane of a column
    activation_lane_bits: int = 8  #: port: activation bits per cycle for each lane of a row
    dram: str = "ddr4-bitmod"  #: name in `DRAMS`
    clock_ps: float = 1000.0
    node_nm: int = 28  #: of the SRAM table
    sram_cell: str = "itrs-hp"
    sram_ports: str = "1r1w"  #: or 1rw: reads and writes take turns
    scale_cycles: int = 8  #: serial scale unit, per group; 0: none
    rows_per_accumulator: int = 8  #: PEs of a column that share an encoder and an accumulator
    pipeline_cycles: int = 12  #: from a PE's last term to its result in the column accumulator
    tile_edge: int = 8  #: PEs along the edge of a broadcast tile
    vector_lanes: int = 64  #: elements side by side in the vector unit
    source: str = "BitMoD (HPCA 2025), section IV: 4 x 4 tiles of 8 x 8 PEs, 512 KB buffers, 1 GHz"

    def __post_init__(self) -> None:
        for name in (
            *("rows", "cols", "lanes", "weight_buffer_kib", "activation_buffer_kib", "banks"),
            *("weight_lane_bits", "activation_lane_bits", "rows_per_accumulator", "tile_edge"),
            "vector_lanes",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; at least 1")
        for name in ("scale_cycles", "pipeline_cycles"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; at least 0")
        if not (math.isfinite(self.clock_ps) and self.clock_ps > 0):
            raise InputError(f"clock_ps is {self.clock_ps}; a period above 0 ps")
        find_dram(self.dram)

    @property
    def spacing(self) -> int:
        """Least cycles between the ends of two groups: the scale unit, or the PEs that share an
        accumulator and hand it their results one a cycle."""
        return max(self.scale_cycles, self.rows_per_accumulator)

    @property
    def fill_cycles(self) -> int:
        """Cycles of a product before results come: the pipeline, and one per systolic tile."""
        skew = _ceil(self.rows, self.tile_edge) - 1 + _ceil(self.cols, self.tile_edge) - 1
        return self.pipeline_cycles + skew

    @property
    def drain_cycles(self) -> int:
        """Cycles of a product behind its last step: the other PEs that share an accumulator."""
        return min(self.rows, self.rows_per_accumulator) - 1

    @property
    def shared_units(self) -> int:
        """Term encoders and column accumulators: one for the PEs of a column in one tile."""
        return self.cols * _ceil(self.rows, self.rows_per_accumulator)

    def weight_bank(self) -> SRAMBank:
        """One bank of the weight buffer.

        Raises:
            InputError: The bank lies outside the SRAM table.
        """
        return self._bank(self.weight_buffer_kib, self.cols * self.lanes * self.weight_lane_bits)

    def activation_bank(self) -> SRAMBank:
        """One bank of the activation buffer.

        Raises:
            InputError: The bank lies outside the SRAM table.
        """
        return self._bank(
            self.activation_buffer_kib, self.rows * self.lanes * self.activation_lane_bits
        )

    def _bank(self, buffer_kib: int, port_bits: int) -> SRAMBank:
        # A port is as wide as the array needs, rounded up to a power of two, at least 32 bits.
        width = max(32, 1 << (_ceil(port_bits, self.banks) - 1).bit_length())
        size = buffer_kib * 1024 // self.banks
        return _sram(size, width, self.node_nm, self.sram_cell, self.sram_ports)


@lru_cache(maxsize=4096)
def _sram(size: int, width: int, node_nm: int, cell: str, ports: str) -> SRAMBank:
    return sram(size, width, node_nm=node_nm, cell=cell, ports=ports)


#: Accelerators as published, by PE.
_PUBLISHED = {
    "bitmod": Accelerator(),
    **{
        pe: Accelerator(
            pe=pe,
            rows=24,
            lanes=1,
            weight_lane_bits=16,
            activation_lane_bits=16,
            scale_cycles=0,
            pipeline_cycles=2,
            source="BitMoD (HPCA 2025), FP16 baseline: 4 x 4 tiles of 6 x 8 PEs, 512 KB buffers",
        )
        for pe in ("fp16", "fp16acc16")
    },
}


@lru_cache(maxsize=256)
def default_accelerator(pe: str) -> Accelerator:
    """The default accelerator of a PE: as published, or derived from the PE.

    Derived: buffers, DRAM and clock of the published array, and as many PEs as give its peak of
    2048 multiply-accumulates a cycle at 4-bit weights (or the PE's widest below, or its only ones),
    in a square or twice as many columns as rows. Ports hand over what the PE takes, scales of
    groups of 128 included; the pipeline has the PE's register levels; as many PEs share a column
    accumulator as a group of 128 hides, at most 8. The area follows and is not held equal: for
    that there is `size_arrays`.

    Raises:
        InputError: No such PE; the nearest are told.
    """
    if pe in _PUBLISHED:
        return _PUBLISHED[pe]
    from bitwright.sim import PES

    unit = pick(PES, pe, "pe")
    lanes = unit.lanes
    formats = [FORMATS[name] for name in unit.weight_formats]  # type: ignore[attr-defined]
    planes = getattr(unit, "unrolled", None)  # a PE of so many activation and weight planes
    formats = [fmt for fmt in formats if planes is None or fmt.bits == planes[1]]
    usual = max((f for f in formats if f.bits <= 4), key=lambda f: f.bits, default=formats[0])
    steps = {f.name: unit.step_cycles(f) for f in formats}
    pes = max(1, PEAK_MACS * steps[usual.name] // lanes)
    rows = 1 << (pes.bit_length() - 1) // 2
    beats = _ceil(_GROUP, lanes) * steps[usual.name]
    act = activation_format(pe)
    act_bits = HALF_BITS if act is None else _usual_bits(act)
    return Accelerator(
        pe=pe,
        rows=rows,
        cols=_ceil(pes, rows),
        lanes=lanes,
        weight_lane_bits=max(math.ceil(_usual_bits(f) / steps[f.name]) for f in formats),
        activation_lane_bits=max(math.ceil(act_bits / cycles) for cycles in steps.values()),
        scale_cycles=0,
        rows_per_accumulator=min(8, rows, beats),
        pipeline_cycles=unit.stages,  # type: ignore[attr-defined]
        source=(
            f"derived: {PEAK_MACS} multiply-accumulates a cycle at {usual.name} weights, as the "
            "array of BitMoD (HPCA 2025) at 4 bits; its buffers, DRAM and clock"
        ),
    )


def _usual_bits(fmt: Format) -> float:
    """Bits of an element of a large tensor in groups of 128 or the format's blocks."""
    return fmt.stored_bits(_GROUP, _GROUP, fmt.block or _GROUP) / _GROUP**2


def activation_format(pe: str) -> Format | None:
    """The format in which a PE takes activations; None: FP16.

    Raises:
        InputError: No such PE; the nearest are told.
    """
    from bitwright.sim import PES

    name = getattr(pick(PES, pe, "pe"), "act_format", "fp16")
    return None if name == "fp16" else FORMATS[name]


@dataclass(frozen=True, slots=True)
class Operand:
    """How one kind of weight operand is stored and how fast a PE takes it."""

    step_cycles: int  #: cycles of one step of `lanes` weights
    format: Format | None = None  #: None: 16 bits, no scales
    group_size: int | None = None  #: None: one group per row
    scale_format: ScaleFormat | None = None  #: None: the format's own
    #: What is stored, where that is not the format's codes and scales; its groups hold for sums.
    stored: "Storage | None" = None

    def __post_init__(self) -> None:
        if self.step_cycles < 1:
            raise InputError(f"step_cycles is {self.step_cycles}; at least 1")
        if self.group_size is not None and self.group_size < 1:
            raise InputError(f"group_size is {self.group_size}; at least 1")

    def stored_bits(self, n: int, k: int) -> int:
        """Bits of an [n, k] operand, scales and all other metadata counted."""
        if self.stored is not None:
            return self.stored.total(n, k)
        if self.format is None:
            return n * k * HALF_BITS
        return self.format.stored_bits(n, k, self.group_size, self.scale_format)

    @property
    def storage(self) -> "Storage":
        """The parts of what is stored."""
        return self.stored or Storage.of(self.format, self.group_size, self.scale_format)

    @property
    def sum_group(self) -> int | None:
        """Columns after which a sum leaves the PEs to be scaled; None: a row.

        Scales of formats with blocks are applied inside the PE, which goes on summing.
        """
        if self.format is None or self.format.block is not None:
            return None
        return self.group_size


@dataclass(frozen=True, slots=True)
class Storage:
    """The parts of `Operand.stored_bits`: what an element, a group, a row and a tensor take."""

    bits: int
    group: int | None  #: None: one group per row
    per_group: int
    per_row: int
    per_tensor: int

    @classmethod
    def of(
        cls,
        fmt: Format | None,
        group_size: int | None = None,
        scale_format: ScaleFormat | None = None,
    ) -> "Storage":
        """The parts of a format; None: FP16.

        >>> Storage.of(FORMATS["bitmod3"], 128)
        Storage(bits=3, group=128, per_group=10, per_row=32, per_tensor=0)
        """
        if fmt is None:
            return cls(HALF_BITS, None, 0, 0, 0)
        width = fmt.block or 1
        size = None if fmt.block else 1

        def stored(n: int, k: int) -> int:
            return fmt.stored_bits(n, k, size, scale_format)

        per_group = stored(1, width + 1) - stored(1, 1) - width * fmt.bits
        per_row = stored(2, 1) - stored(1, 1) - fmt.bits - per_group
        per_tensor = stored(1, 1) - fmt.bits - per_group - per_row
        return cls(fmt.bits, fmt.block or group_size, per_group, per_row, per_tensor)

    @classmethod
    def spread(cls, bits: int, n: int, k: int) -> "Storage":
        """So many bits in all, spread over an [n, k] operand as evenly as whole bits go.

        >>> Storage.spread(41, 4, 5)  # 2 bits each, and one left
        Storage(bits=2, group=None, per_group=0, per_row=0, per_tensor=1)
        """
        each, left = divmod(bits, n * k)
        row, left = divmod(left, n)
        return cls(each, None, 0, row, left)

    def total(self, n: int, k: int) -> int:
        """Bits of an [n, k] operand."""
        groups = 1 if self.group is None else _ceil(k, self.group)
        return n * (k * self.bits + groups * self.per_group + self.per_row) + self.per_tensor


@dataclass(frozen=True, slots=True)
class PEArea:
    """Area and leakage of a PE, with where they come from."""

    pe_um2: float
    source: str
    encoder_um2: float = 0.0  #: shared by `rows_per_accumulator` PEs of a column; 0: none
    delay_ps: float | None = None  #: critical path, if known
    leakage_uw: float = 0.0  #: of a PE; 0: not known
    encoder_leakage_uw: float = 0.0  #: of what its column shares


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)
