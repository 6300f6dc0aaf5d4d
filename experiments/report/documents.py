"""What must be in a results file, per kind; more may be in it.

The checks of pydantic stand between files, which anybody may have written, and the reader.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_MAPPING = dict[str, Any]


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=False, allow_inf_nan=False)


class Meta(BaseModel):
    """What all kinds have."""

    model_config = ConfigDict(extra="allow")
    bitwright: str
    commit: str = "none"
    seed: int = 0
    command: str | None = None


class Source(_Lenient):
    """A row of the provenance."""

    quantity: str
    source: str


class Layer(_Lenient):
    """A product of a pass."""

    name: str
    kind: str
    count: int = Field(ge=1)
    macs: int = Field(ge=0)
    cycles: int = Field(ge=0)
    dram_bytes: int = Field(ge=0)


class Operand(_Lenient):
    """How the array takes one kind of weights."""

    step_cycles: int = Field(ge=1)


class Config(_Lenient):
    """The array of a pass."""

    rows: int = Field(ge=1)
    cols: int = Field(ge=1)
    lanes: int = Field(ge=1)
    dram: str
    clock_ps: float = Field(gt=0)
    operands: dict[str, Operand]


class Energy(_Lenient):
    """In uJ; None: not measured."""

    logic: float | None
    sram: float
    dram: float
    leakage: float | None
    total: float | None


class Pass(_Lenient):
    """Prefill or decode of a record of `codesign`."""

    cycles: int
    vector_cycles: int
    busy_cycles: int
    stall_cycles: int
    stalls: dict[str, int]
    latency_s: float
    tokens_per_s: float | None
    dram_bytes: int
    energy_uJ: Energy
    area_breakdown_mm2: dict[str, float | None]
    config: Config
    layers: list[Layer]


class CodesignRecord(_Lenient):
    """A recipe."""

    recipe: str
    config: _MAPPING
    perplexity: float
    bits_per_weight: float
    nominal_bits: float
    pe: str
    area_mm2: float | None
    prefill: Pass
    decode: Pass


class CodesignDocument(_Lenient):
    """results.json of `codesign`."""

    meta: Meta
    records: list[CodesignRecord] = Field(min_length=1)
    provenance: list[Source] = []


class SweepDocument(_Lenient):
    """results.json of `sweep`; records are flat, their keys the sweep's own."""

    meta: Meta
    records: list[_MAPPING] = Field(min_length=1)
    provenance: list[Source] = []


class SearchRow(_Lenient):
    """A mixed-precision candidate."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    name: str
    recipe: str
    formats: dict[str, str] = {}


class SearchDocument(_Lenient):
    """search.json."""

    meta: Meta
    front: list[SearchRow] = Field(min_length=1)
    uniform: list[SearchRow] = []
    hypervolume: Any = None
    knee: int | None = None
    provenance: list[Source] = []
