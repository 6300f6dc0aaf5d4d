"""Area and delay of the processing elements, block by block."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from os import cpu_count
from typing import Any

from bitwright.quant import InputError, Progress

from .pe import Design, DotDesign, find_design
from .synth import SynthesisResult, synthesise
from .technology import Technology, resolve_technology


@dataclass(frozen=True)
class BlockResult:
    """One block of a PE on one technology; `total` is the whole PE."""

    pe: str
    block: str
    technology: str
    area_um2: float
    cells: int
    registers: int
    delay_ps: float  #: register to register
    clock_ps: float | None  #: target period of the mapping
    shared: bool  #: once per column of an array, and not part of `total`
    source: str
    leakage_uw: float = 0.0  #: of all its cells, at the technology's corner

    @property
    def f_max_mhz(self) -> float:
        return 1e6 / self.delay_ps

    @property
    def reached(self) -> bool:
        """Whether the target period is met; there is none to miss if it is None."""
        return self.clock_ps is None or self.delay_ps <= self.clock_ps

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "f_max_mhz": self.f_max_mhz, "reached": self.reached}


@dataclass(frozen=True)
class PESynthesis:
    """A PE on one technology."""

    pe: str
    technology: str
    blocks: tuple[BlockResult, ...]

    @property
    def total(self) -> BlockResult:
        return next(block for block in self.blocks if block.block == "total")

    @property
    def area_um2(self) -> float:
        """The PE, without what its column shares."""
        return self.total.area_um2

    @property
    def encoder_um2(self) -> float:
        """What the PEs of a column share (term encoder, column accumulator), per column."""
        return sum(block.area_um2 for block in self.blocks if block.shared)

    @property
    def leakage_uw(self) -> float:
        """The PE's, without what its column shares."""
        return self.total.leakage_uw

    @property
    def encoder_leakage_uw(self) -> float:
        """That of what the PEs of a column share, per column."""
        return sum(block.leakage_uw for block in self.blocks if block.shared)

    @property
    def delay_ps(self) -> float:
        """The slowest of the PE and what its column shares: the shortest period of an array."""
        return max(b.delay_ps for b in self.blocks if b.shared or b.block == "total")

    @property
    def source(self) -> str:
        return self.total.source


def synthesise_pe(
    pe: str,
    technology: str | Technology,
    clock_ps: float | None = None,
    *,
    only: Sequence[str] | None = None,
    stages: int | None = None,
    progress: Progress | None = None,
) -> PESynthesis:
    """Area and delay of each block of a PE.

    Args:
        pe: Its name.
        technology: A shipped technology's name, or a technology.
        clock_ps: Target period of the mapping; None for the technology's own.
        only: Names of the blocks wanted, `total` among them; None for all.
        stages: Register levels of a dot-product PE; None for its own.
        progress: Called as blocks finish.

    Raises:
        InputError: An unknown PE or technology, a missing tool.
    """
    design = pipelined(find_design(pe), stages)
    if isinstance(technology, str):
        technology = resolve_technology(technology)
    target = technology.clock_ps if clock_ps is None else clock_ps
    blocks = design.blocks()
    names = [name for name in blocks if only is None or name in only]

    def run(name: str) -> SynthesisResult:
        return synthesise(blocks[name], _last_module(blocks[name]), technology, target)

    rows = []
    # Each block is a Yosys process of its own; these threads only wait for them.
    with ThreadPoolExecutor(max_workers=min(4, cpu_count() or 1)) as pool:
        for name, result in zip(names, pool.map(run, names), strict=True):
            rows.append(
                BlockResult(
                    pe=pe,
                    block=name,
                    technology=technology.name,
                    area_um2=result.area_um2,
                    cells=result.cells,
                    registers=result.registers,
                    delay_ps=result.delay_ps,
                    clock_ps=result.clock_ps,
                    shared=name in design.shared,
                    source=result.source,
                    leakage_uw=leakage_uw(result, technology),
                )
            )
            if progress:
                progress(len(rows), len(names), f"{pe} {name}, {technology.name}")
    return PESynthesis(pe, technology.name, tuple(rows))


def leakage_uw(result: SynthesisResult, technology: Technology) -> float:
    """Leakage of a netlist: the cells' own figures (state averages), added up."""
    cells = technology.cells
    return sum(count * cells[name].leakage_nW for name, count in result.cells_by_type.items()) / 1e3


def pipelined(design: Design, stages: int | None) -> Design:
    """The design with that many register levels; None leaves it as it is.

    Raises:
        InputError: Its pipeline is fixed, or there are too many.
    """
    if stages is None:
        return design
    if not isinstance(design, DotDesign):
        raise InputError(
            f"stages (={stages}): the pipeline of the {design.name} PE is fixed; leave stages out"
        )
    return replace(design, unit=replace(design.unit, stages=stages))


def _last_module(verilog: str) -> str:
    return re.findall(r"^\s*module\s+(\w+)", verilog, re.MULTILINE)[-1]
