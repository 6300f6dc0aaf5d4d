"""What an engine puts into its array: the PEs of a family, and what their columns share.

`DotCells` holds the PEs that end every group with a result of its own; the Binary-TensorCore among
them gets its planes from a feeder. `BitmodCells` adds term encoders and the control of the
bit-serial pipeline, and its columns add the groups up.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyrtl import Block, Const, Register, WireVector, concat, select

from bitwright.quant import InputError
from bitwright.rtl import pe
from bitwright.sim import bitmod

from .control import Beat, delayed
from .instance import Place

register, cleared = pe.logic.register, pe.logic.cleared

Rows = Sequence[Mapping[str, WireVector]]


class Cells(ABC):
    """The PEs of an engine, as its other parts see them."""

    name: str  #: of the PE
    x_ports: Mapping[str, int]  #: fields of a row's activation word, first one lowest
    w_ports: Mapping[str, int]  #: fields of a column's weight word
    job_ports: Mapping[str, int]  #: fields of a job beside `control.JOB_FIELDS`
    setup_ports: Mapping[str, int]  #: written before a job
    order: str  #: beats of a step: "plain", "terms" or "planes"
    latency: int  #: from a group's last beat to its sums
    scale_cycles: int
    per_group: bool
    pe_outputs: Mapping[str, int]  #: of a PE, its sums and what goes with them
    y_bits: int  #: of a result

    @abstractmethod
    def array(
        self,
        x: Rows,
        w: Rows,
        beat: Beat,
        job: Mapping[str, WireVector],
        setup: Mapping[str, WireVector],
        rst: WireVector,
        place: Place,
    ) -> list[list[WireVector]]:
        """The sums of column c and row r as [c][r], `latency` cycles behind a group's last beat.

        Args:
            x: Fields of each row's activation word.
            w: Fields of each column's weight word.
            beat: What is issued in this cycle.
            job: The job's fields.
            setup: The set-up ports.
            rst: Reset.
            place: Puts a PE into the array.
        """

    def sums(self, outputs: Mapping[str, WireVector], name: str) -> WireVector:
        """What a PE's outputs hand over, with registers called `name` where it needs some."""
        return outputs["y"]

    def column(
        self, number: int, rows: int, sums: WireVector, valid: WireVector, first: WireVector
    ) -> WireVector:
        """The result of one row, as the column unit takes it; `sums` itself unless said otherwise.

        Args:
            number: Of the column.
            rows: PEs of the column; it takes them in turn.
            sums: Of the row whose turn it is.
            valid: It is a row's turn.
            first: The sums are those of the tile's first group.
        """
        return sums


@dataclass(frozen=True)
class _Unit:
    """A PE that gives a result per dot product, whatever its class."""

    name: str
    ports: Mapping[str, int]
    stages: int
    y_bits: int
    block: Block


def _unit(design: Any) -> _Unit:
    if isinstance(design, pe.DotDesign):
        unit = design.unit
        return _Unit(unit.name, unit.ports, unit.stages, unit.accumulator.bits, design.pe())
    bits = 32 if design.config.acc == "fp32" else 16
    return _Unit(design.name, {"act": 16, "weight": 16}, 2, bits, pe.fp16.fp16_pe(design.config))


_ACTIVATION = re.compile(r"act(\d+|_scale|_type)?|x\d[\d_]*|x_signed")
_SEQUENCED = {"shift": 4, "negative": 1}  # ports that the plane feeder drives


class DotCells(Cells):
    """PEs with one accumulator; all their groups give results."""

    scale_cycles, per_group = 0, True

    def __init__(self, design: Any) -> None:
        self._unit = unit = _unit(design)
        self.name, self.latency, self.y_bits = unit.name, unit.stages, unit.y_bits
        self.pe_outputs = {"y": unit.y_bits}
        fed = {port: bits for port, bits in unit.ports.items() if port not in _SEQUENCED}
        self.x_ports = {port: bits for port, bits in fed.items() if _ACTIVATION.fullmatch(port)}
        self.w_ports = {port: bits for port, bits in fed.items() if port not in self.x_ports}
        self.planes = "shift" in unit.ports
        self.order = "planes" if self.planes else "plain"
        self.job_ports = (
            {"x_words": 4, "w_words": 4, "x_signed": 1, "w_signed": 1} if self.planes else {}
        )
        self.setup_ports = {}

    def array(
        self,
        x: Rows,
        w: Rows,
        beat: Beat,
        job: Mapping[str, WireVector],
        setup: Mapping[str, WireVector],
        rst: WireVector,
        place: Place,
    ) -> list[list[WireVector]]:
        behind = self._unit.stages - 1
        arrived = delayed(beat.issued, behind, "arrived", rst)
        ended = delayed(beat.ends, behind, "ended", rst)
        running = Register(1, "running")
        running.next <<= cleared((arrived & ~ended) | (~arrived & running), rst)
        shared = {"clear": ~running}
        if self.planes:
            shared |= plane_feeder(beat, job)
        # A cycle without a beat adds zero, so that no PE needs an enable.
        idle = ~beat.issued
        rows = [{name: cleared(wire, idle) for name, wire in row.items()} for row in x]
        return [
            [
                self.sums(
                    place(self._unit.block, {**row, **column, **shared}, f"pe_r{r}_c{c}"),
                    f"r{r}_c{c}",
                )
                for r, row in enumerate(rows)
            ]
            for c, column in enumerate(w)
        ]


def plane_feeder(beat: Beat, job: Mapping[str, WireVector]) -> dict[str, WireVector]:
    """Shift and sign of the planes that meet in this beat: 2**(i + j), negative for top planes."""
    x_top = beat.x_plane == (job["x_words"] - 1)[:3]
    w_top = beat.w_plane == (job["w_words"] - 1)[:3]
    return {
        "shift": (beat.x_plane + beat.w_plane)[:4],
        "negative": (job["x_signed"] & x_top) ^ (job["w_signed"] & w_top),
    }


class BitmodCells(Cells):
    """Bit-serial PEs: a term encoder and a scale shifter per column, an FP32 sum per output."""

    name = "bitmod"
    setup_ports = {"sv_we": 1, "sv_addr": 2, "sv_data": 6}
    job_ports = {"terms": 3, "mode": 2}
    order = "terms"
    #: Two stages, the scale unit, its product register.
    latency = 2 + bitmod.SCALE_CYCLES + 1
    scale_cycles = bitmod.SCALE_CYCLES
    per_group = False
    pe_outputs = {"d": 24, "e": 6}
    y_bits = 32

    def __init__(self, design: Any) -> None:
        self._config = design.config
        lanes = self._config.lanes
        self.x_ports = {f"act{i}": 16 for i in range(lanes)}
        self.w_ports = {f"code{i}": 8 for i in range(lanes)} | {
            "zero": 8, "selector": 2, "scale": 8,
        }  # fmt: skip

    def array(
        self,
        x: Rows,
        w: Rows,
        beat: Beat,
        job: Mapping[str, WireVector],
        setup: Mapping[str, WireVector],
        rst: WireVector,
        place: Place,
    ) -> list[list[WireVector]]:
        lanes = range(self._config.lanes)
        integer, fp3 = job["mode"] == bitmod.INT, job["mode"] == bitmod.FP3
        special = []
        for i in range(4):
            word = Register(6, f"sv{i}")
            write = setup["sv_we"] & (setup["sv_addr"] == i)
            word.next <<= cleared(select(write, setup["sv_data"], word), rst)
            special.append(word)

        # Control of the stages, shared by all PEs.
        arrived = delayed(beat.issued, 2, "stage", rst)
        load = delayed(beat.ends, 2, "load", rst)
        significance = select(
            integer, concat(beat.index, Const(0, 1)), concat(Const(0, 2), beat.index[0])
        )
        running, left = Register(1, "group_running"), Register(4, "scale_left")
        running.next <<= cleared(select(arrived, ~load, running), rst)
        left.next <<= cleared(select(load, Const(8, 4), pe.bitmod.counted_down(left)), rst)
        control = {
            "bsig": delayed(significance, 2, "bsig"),
            "clear": ~running,
            "load": load,
            "first": left[3],
        }

        part = pe.bitmod.bitmod_pe(self._config)
        sums = []
        for c, column in enumerate(w):
            chosen = select(
                column["selector"][1],
                select(column["selector"][0], special[3], special[2]),
                select(column["selector"][0], special[1], special[0]),
            )
            terms: dict[str, WireVector] = {}
            for lane in lanes:
                term = pe.bitmod.encode_weight(
                    column[f"code{lane}"], column["zero"], chosen, integer, fp3, beat.index
                )
                terms |= {
                    f"sign{lane}": term.sign,
                    f"shift{lane}": term.shift,
                    f"live{lane}": term.live & beat.issued,
                }
            bits = Register(8, f"scale_bits_c{c}")
            scale = delayed(column["scale"], 2, f"scale_c{c}_")
            bits.next <<= select(load, scale, bits[1:].zero_extended(8))
            shared = {**terms, **control, "scale_bit": bits[0]}
            made = [place(part, {**row, **shared}, f"pe_r{r}_c{c}") for r, row in enumerate(x)]
            sums.append([self.sums(out, f"r{r}_c{c}") for r, out in enumerate(made)])
        return sums

    def sums(self, outputs: Mapping[str, WireVector], name: str) -> WireVector:
        # The scale unit may take the next group's exponent in the cycle in which D is ready.
        return concat(register(outputs["e"], f"product_e_{name}"), outputs["d"])

    def column(
        self, number: int, rows: int, sums: WireVector, valid: WireVector, first: WireVector
    ) -> WireVector:
        """Binary32 sums of the column's outputs, which go round once per group."""
        ring = [Register(32, f"column{number}_{r}") for r in range(rows)]
        total = pe.logic.float32_add(cleared(ring[0], first), sums[:24], sums[24:])
        for r, kept in enumerate(ring):
            kept.next <<= select(valid, ring[r + 1] if r + 1 < rows else total, kept)
        return total


def find_cells(name: str) -> Cells:
    """The cells of a PE, one of `DESIGNS` or a variant.

    Raises:
        InputError: Unknown PE.
    """
    design = pe.find_design(name)
    if isinstance(design, pe.bitmod.BitmodDesign):
        return BitmodCells(design)
    if isinstance(design, pe.DotDesign | pe.fp16.Fp16Design):
        return DotCells(design)
    raise InputError(f"there are no engine cells for PE {name!r}")
