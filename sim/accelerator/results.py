"""What a run gives: one row per product and per vector operation, and their sums.

Cycles by cause. The array computes (`busy`) or waits, and each waiting cycle has one cause:

    fill      pipeline and systolic skew before the first results of a product
    port      a buffer port hands an operand over more slowly than the PE takes it
    conflict  reads and writes of a buffer that its banks cannot serve in time
    scale     a group shorter than the scale unit or the column accumulator needs
    drain     results behind the last step of a product
    dram      bandwidth: operands that are not there yet, results that are not away
    latency   the first bytes of a product from DRAM

Vector operations follow the products and do not overlap with them: their cycles are busy ones of
the vector unit, or wait for DRAM. All causes, the array's and the vector unit's busy cycles add up
to the cycles of the pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar, overload

import numpy as np

from bitwright.sim import Kind

Row = TypeVar("Row")

#: Causes for which the array waits.
CAUSES = ("fill", "port", "conflict", "scale", "drain", "dram", "latency")
#: Causes that are the array's own and its buffers'; `compute_cycles` counts them in.
ARRAY_CAUSES = ("fill", "port", "conflict", "scale", "drain")


@dataclass(frozen=True, slots=True)
class Area:
    """Area in mm2; None where it is not known."""

    array: float | None
    encoders: float | None
    sram: float | None

    @property
    def total(self) -> float | None:
        """The sum, or None if a part is not known."""
        parts = (self.array, self.encoders, self.sram)
        return None if any(part is None for part in parts) else sum(p for p in parts if p)


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One product of a workload; cycles, bytes and energies of all `count` repetitions."""

    name: str
    m: int
    n: int
    k: int
    count: int
    kind: Kind
    compute_cycles: int  #: array and buffers: everything but waiting for DRAM
    dram_cycles: int  #: that the bytes take at the bandwidth, whether waited for or not
    cycles: int
    weight_bytes: int  #: over DRAM, repeated fetches counted
    input_bytes: int
    output_bytes: int  #: rows that the cache takes are in `cache_bytes`
    weight_fetches: int  #: times the weights (or the cache) cross DRAM
    input_fetches: int
    sram_uj: float
    dram_uj: float  #: of the transfers
    cache_bytes: int = 0  #: of keys and values over DRAM, read or written
    fill_cycles: int = 0
    port_cycles: int = 0
    conflict_cycles: int = 0
    scale_cycles: int = 0
    drain_cycles: int = 0
    latency_cycles: int = 0
    macs: int = 0  #: needed ones
    utilisation: float = 0.0  #: multiply-accumulates over what all lanes could do in `cycles`
    mapping: str = ""  #: order, kept tiles and tile, see `mapping`
    weight_buffer_write_bytes: int = 0  #: weights, or keys and values, from DRAM
    weight_buffer_read_bytes: int = 0  #: the same for the array
    activation_buffer_write_bytes: int = 0  #: inputs from DRAM
    activation_buffer_read_bytes: int = 0  #: inputs for the array
    result_bytes: int = 0  #: written to the activation buffer, and read from it for DRAM
    standing_uj: float = 0.0  #: DRAM refresh and background while it runs
    leakage_uj: float = 0.0  #: SRAM and logic while it runs
    logic_uj: float | None = None  #: switching of the PEs and what surrounds them; None: not known

    @property
    def stall_cycles(self) -> int:
        """Cycles in which the array waits for DRAM."""
        return self.cycles - self.compute_cycles

    @property
    def dram_stall_cycles(self) -> int:
        """The part of them that is bandwidth, not latency."""
        return self.stall_cycles - self.latency_cycles

    @property
    def busy_cycles(self) -> int:
        """Cycles of steps as fast as the PE takes them."""
        return self.compute_cycles - sum(getattr(self, f"{cause}_cycles") for cause in ARRAY_CAUSES)

    @property
    def stalls(self) -> dict[str, int]:
        """Cycles by cause; with `busy_cycles` they add up to `cycles`."""
        return {
            **{cause: getattr(self, f"{cause}_cycles") for cause in ARRAY_CAUSES},
            "dram": self.dram_stall_cycles,
            "latency": self.latency_cycles,
        }

    @property
    def dram_bytes(self) -> int:
        """Bytes over DRAM, all operands."""
        return self.weight_bytes + self.input_bytes + self.output_bytes + self.cache_bytes

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON and CSV."""
        return {
            "name": self.name,
            "m": self.m,
            "n": self.n,
            "k": self.k,
            "count": self.count,
            "kind": self.kind,
            "macs": self.macs,
            "mapping": self.mapping,
            "compute_cycles": self.compute_cycles,
            "dram_cycles": self.dram_cycles,
            "cycles": self.cycles,
            "stall_cycles": self.stall_cycles,
            "busy_cycles": self.busy_cycles,
            **{f"stall_{cause}_cycles": cycles for cause, cycles in self.stalls.items()},
            "utilisation": self.utilisation,
            "weight_bytes": self.weight_bytes,
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "cache_bytes": self.cache_bytes,
            "dram_bytes": self.dram_bytes,
            "weight_fetches": self.weight_fetches,
            "input_fetches": self.input_fetches,
            "weight_buffer_write_bytes": self.weight_buffer_write_bytes,
            "weight_buffer_read_bytes": self.weight_buffer_read_bytes,
            "activation_buffer_write_bytes": self.activation_buffer_write_bytes,
            "activation_buffer_read_bytes": self.activation_buffer_read_bytes,
            "result_bytes": self.result_bytes,
            "sram_uJ": self.sram_uj,
            "dram_uJ": self.dram_uj,
            "dram_standing_uJ": self.standing_uj,
            "leakage_uJ": self.leakage_uj,
            "logic_uJ": self.logic_uj,
        }


@dataclass(frozen=True, slots=True)
class VectorResult:
    """One operation of the vector unit, all repetitions."""

    name: str
    function: str
    elements: int
    busy_cycles: int
    cycles: int  #: with waiting for DRAM
    dram_bytes: int  #: of operands that are no product's
    dram_uj: float
    standing_uj: float = 0.0
    leakage_uj: float = 0.0
    logic_uj: float | None = None  #: of the waiting array; None: not known

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON and CSV."""
        return {
            "name": self.name,
            "function": self.function,
            "elements": self.elements,
            "cycles": self.cycles,
            "busy_cycles": self.busy_cycles,
            "stall_dram_cycles": self.cycles - self.busy_cycles,
            "dram_bytes": self.dram_bytes,
            "dram_uJ": self.dram_uj,
            "dram_standing_uJ": self.standing_uj,
            "leakage_uJ": self.leakage_uj,
            "logic_uJ": self.logic_uj,
        }


class Table(Sequence[Row]):
    """Rows that are kept as columns and built when they are looked at.

    Equal to any sequence of equal rows.
    """

    __slots__ = ("_columns", "_length", "_rows", "_type")

    def __init__(self, row_type: type[Row], columns: dict[str, Any], length: int) -> None:
        """Columns by field of `row_type`: arrays, lists, or one value for all rows."""
        self._type = row_type
        self._columns = columns
        self._length = length
        self._rows: tuple[Row, ...] | None = None

    def rows(self) -> tuple[Row, ...]:
        """All rows."""
        if self._rows is None:
            lists = [
                column.tolist()
                if isinstance(column, np.ndarray)
                else column
                if isinstance(column, list)
                else [column] * self._length
                for column in self._columns.values()
            ]
            self._rows = tuple(
                self._type(**dict(zip(self._columns, row, strict=True)))
                for row in zip(*lists, strict=True)
            )
        return self._rows

    def total(self, name: str) -> Any:
        """The sum of a column."""
        column = self._columns.get(name)
        if isinstance(column, np.ndarray):
            return column.sum().item() if self._length else 0
        return sum(getattr(row, name) for row in self.rows())

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return self.rows()[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self.rows() == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.rows())


def _total(rows: Sequence[Any], name: str) -> Any:
    return rows.total(name) if isinstance(rows, Table) else sum(getattr(r, name) for r in rows)


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What one pass over a workload costs."""

    name: str  #: model or file
    phase: str
    tokens: int | None
    context: int | None
    design: str  #: the accelerator, in words
    config: dict[str, Any]  #: every setting of the run
    clock_ps: float
    layers: Sequence[LayerResult]
    logic_uj: float | None  #: switching of the PEs; None: not modelled
    leakage_uj: float | None  #: of the SRAM, and of the logic where it is known; None: not modelled
    area: Area
    energy_note: str
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = field(default=(), repr=False)
    vector: Sequence[VectorResult] = ()
    standing_uj: float = 0.0  #: refresh and background of DRAM over the whole pass
    logic_leakage_uj: float | None = None  #: the part of `leakage_uj` that is logic; None: unknown
    batch: int = 1
    logic_parts_uj: Mapping[str, float] = field(default_factory=dict)  #: active cycles, by part

    @property
    def cycles(self) -> int:
        """Cycles of the pass."""
        return _total(self.layers, "cycles") + self.vector_cycles

    @property
    def compute_cycles(self) -> int:
        """Cycles the array computes, fills or waits for itself and its buffers."""
        return _total(self.layers, "compute_cycles")

    @property
    def vector_cycles(self) -> int:
        """Cycles of the vector operations, their waiting for DRAM counted in."""
        return _total(self.vector, "cycles")

    @property
    def stall_cycles(self) -> int:
        """Cycles the array waits for DRAM."""
        return _total(self.layers, "cycles") - self.compute_cycles

    @property
    def stalls(self) -> dict[str, int]:
        """Waiting cycles by cause, the vector unit's under "dram"."""
        waits = {name: _total(self.layers, f"{name}_cycles") for name in ARRAY_CAUSES}
        latency = _total(self.layers, "latency_cycles")
        vector = self.vector_cycles - _total(self.vector, "busy_cycles")
        return {**waits, "dram": self.stall_cycles - latency + vector, "latency": latency}

    @property
    def busy_cycles(self) -> int:
        """Cycles of steps as fast as the PEs take them."""
        return self.compute_cycles - sum(self.stalls[name] for name in ARRAY_CAUSES)

    @property
    def latency_s(self) -> float:
        """Seconds of the pass."""
        return self.cycles * self.clock_ps * 1e-12

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens taken in (prefill) or made (decode) per second, those of all sequences."""
        return None if self.tokens is None else self.tokens / self.latency_s

    @property
    def bytes_by_operand(self) -> dict[str, int]:
        """Bytes over DRAM by operand."""
        return {
            "weights": _total(self.layers, "weight_bytes"),
            "inputs": _total(self.layers, "input_bytes"),
            "outputs": _total(self.layers, "output_bytes"),
            "cache": _total(self.layers, "cache_bytes"),
            "vector": _total(self.vector, "dram_bytes"),
        }

    @property
    def dram_bytes(self) -> int:
        """Bytes over DRAM."""
        return sum(self.bytes_by_operand.values())

    @property
    def macs(self) -> int:
        """Multiply-accumulates that are needed."""
        return _total(self.layers, "macs")

    @property
    def sram_uj(self) -> float:
        """Energy of SRAM reads and writes."""
        return _total(self.layers, "sram_uj")

    @property
    def dram_uj(self) -> float:
        """Energy of DRAM: transfers, refresh and background."""
        return _total(self.layers, "dram_uj") + _total(self.vector, "dram_uj") + self.standing_uj

    @property
    def total_uj(self) -> float | None:
        """Sum of the energies; None while logic is not modelled."""
        if self.logic_uj is None:
            return None
        return self.logic_uj + self.sram_uj + self.dram_uj + (self.leakage_uj or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """The document of `bitwright simulate --json`."""
        return {
            "workload": self.name,
            "phase": self.phase,
            "tokens": self.tokens,
            "context": self.context,
            "batch": self.batch,
            "design": self.design,
            "macs": self.macs,
            "cycles": self.cycles,
            "compute_cycles": self.compute_cycles,
            "stall_cycles": self.stall_cycles,
            "vector_cycles": self.vector_cycles,
            "busy_cycles": self.busy_cycles,
            "stalls": self.stalls,
            "latency_s": self.latency_s,
            "tokens_per_s": self.tokens_per_s,
            "dram_bytes": self.dram_bytes,
            "dram_bytes_by_operand": self.bytes_by_operand,
            "energy_uJ": {
                "logic": self.logic_uj,
                "sram": self.sram_uj,
                "dram": self.dram_uj,
                "leakage": self.leakage_uj,
                "total": self.total_uj,
                "note": self.energy_note,
            },
            "dram_standing_uJ": self.standing_uj,
            "logic_leakage_uJ": self.logic_leakage_uj,
            "logic_breakdown_uJ": dict(self.logic_parts_uj),
            "area_mm2": self.area.total,
            "area_breakdown_mm2": asdict(self.area),
            "config": self.config,
            "notes": list(self.notes),
            "sources": list(self.sources),
            "layers": [layer.to_dict() for layer in self.layers],
            "vector": [row.to_dict() for row in self.vector],
        }
