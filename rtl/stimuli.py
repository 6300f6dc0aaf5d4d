"""What a tile of the array shows its PEs, cycle by cycle, for real operands.

A tile is `EDGE` x `EDGE` PEs: rows hold tokens, columns output channels. The engine's own rules say
what stands on which port (`engine.engine_operands`: padding, planes, terms) and when a beat is
issued (docs/array.md); operands are always there. Streams are one lane a PE, 64 PEs of a tile to a
machine word, so that every tile has toggle counts of its own.

Before the beats that count come the last ones of the same tile, so that pipeline, accumulators and
column units are as full as between two tiles of a long product.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bitwright.sim import array, bitmod

from .engine import Cells, Operands, engine_operands

EDGE = 8  #: PEs along the edge of a tile, as in BitMoD (HPCA 2025), Fig. 6
LANES = EDGE * EDGE

_SETUP = 5  # cycles that reset the term encoders and write their special values

Streams = dict[str, np.ndarray]


class Schedule(NamedTuple):
    """What is issued in each cycle; arrays [cycles]."""

    step: np.ndarray  #: int, of the tile; the last one's while nothing is issued
    x_word: np.ndarray  #: int, activation plane
    w_word: np.ndarray  #: int, weight plane
    term: np.ndarray  #: int
    issued: np.ndarray  #: bool
    ends: np.ndarray  #: bool, the last beat of a group
    first: np.ndarray  #: bool, the group is its tile's first
    final: np.ndarray  #: bool, it is its tile's last
    warmup: int  #: cycles that do not count
    beats: int  #: beats that count

    @property
    def cycles(self) -> int:
        """Cycles that count."""
        return len(self.step) - self.warmup


def schedule(
    shape: array.jobs.TileShape,
    cells: Cells,
    spacing: int,
    *,
    stall_every: int = 0,
    stall: int = 0,
) -> Schedule:
    """The beats of one tile after a warm-up.

    Args:
        shape: Steps and groups of the tile.
        cells: The PEs, for the order of beats and the latency.
        spacing: Cycles from the end of a group to the next, at least.
        stall_every: Steps after which the array waits; 0: never.
        stall: Cycles that it waits.
    """
    order = [
        (x, w, term)
        for x in range(shape.x_words)
        for w in range(shape.w_words)
        for term in range(shape.terms)
    ]
    ends_of_groups = {min((g + 1) * shape.steps, shape.all_steps) - 1 for g in range(shape.groups)}
    # The warm-up fills the pipeline and lets a column take all its rows.
    lead = -(-(cells.latency + EDGE + 4) // len(order))
    begin = list(range(max(0, shape.all_steps - lead), shape.all_steps))
    rows: list[tuple[int, int, int, int, bool, bool, bool, bool]] = []
    last_end, warmup = -spacing, 0
    for part, steps in enumerate((begin, list(range(shape.all_steps)))):
        if part:
            warmup = len(rows)
        for count, step in enumerate(steps, start=1):
            group = min(step // shape.steps, shape.groups - 1)
            first, final = group == 0, group == shape.groups - 1
            for beat, (x, w, term) in enumerate(order):
                ends = step in ends_of_groups and beat == len(order) - 1
                while ends and len(rows) - last_end < spacing:
                    rows.append((step, x, w, term, False, False, first, final))
                if ends:
                    last_end = len(rows)
                rows.append((step, x, w, term, True, ends, first, final))
            if part and stall_every and count % stall_every == 0:
                rows += [(step, *order[-1], False, False, first, final)] * stall
    names = Schedule._fields[:-2]
    columns: dict[str, Any] = {
        name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
    return Schedule(**columns, warmup=warmup, beats=shape.all_steps * len(order))


def idle(schedule: Schedule, cycles: int, drain: int) -> Schedule:
    """The warm-up of a schedule, then nothing; the first `drain` idle cycles do not count."""
    keep = np.minimum(np.arange(schedule.warmup + drain + cycles), schedule.warmup - 1)
    busy = np.arange(len(keep)) < schedule.warmup
    return schedule._replace(
        step=schedule.step[keep],
        x_word=schedule.x_word[keep],
        w_word=schedule.w_word[keep],
        term=schedule.term[keep],
        issued=schedule.issued[keep] & busy,
        ends=schedule.ends[keep] & busy,
        first=schedule.first[keep],
        final=schedule.final[keep],
        warmup=schedule.warmup + drain,
        beats=0,
    )


@dataclass(frozen=True, eq=False)
class TileOperands:
    """Operands of several tiles side by side."""

    cells: Cells
    operands: tuple[Operands, ...]  #: of each tile

    @property
    def shape(self) -> array.jobs.TileShape:
        """Steps and groups, the same for all."""
        return self.operands[0].shape

    @property
    def lanes(self) -> int:
        """PEs of all tiles."""
        return LANES * len(self.operands)

    def rows(self, schedule: Schedule) -> Streams:
        """Activation ports [cycles, lanes]: a row's PEs see the same."""
        return {
            port: _lanes(self._stacked("x", port)[..., schedule.step, schedule.x_word], 0)
            for port in self.cells.x_ports
        }

    def columns(self, schedule: Schedule) -> Streams:
        """Weight ports [cycles, lanes]: a column's PEs see the same."""
        return {
            port: _lanes(self._stacked("w", port)[..., schedule.step, schedule.w_word], 1)
            for port in self.cells.w_ports
        }

    def _stacked(self, side: str, port: str) -> np.ndarray:
        """[tiles, rows or columns, steps, words]"""
        return np.stack([getattr(one, side)[port] for one in self.operands])


def tile_operands(cells: Cells, tiles: Sequence[tuple[Any, Any]]) -> TileOperands:
    """The ports' values for pairs of activations [EDGE, k] and weights [EDGE, k].

    Raises:
        InputError: The PE does not run them.
    """
    return TileOperands(cells, tuple(engine_operands(cells.name, x, w) for x, w in tiles))


def _lanes(values: np.ndarray, axis: int) -> np.ndarray:
    """[tiles, edge, cycles] to [cycles, lanes]; axis 0: the edge is the rows, 1: the columns."""
    moved = values.transpose(2, 0, 1)
    wide = np.repeat(moved, EDGE, axis=2) if axis == 0 else np.tile(moved, (1, 1, EDGE))
    return np.ascontiguousarray(wide.reshape(len(wide), -1))


# ------------------------------------------------------------------ control of a tile


def dot_control(schedule: Schedule, tiles: TileOperands, planes: bool) -> Streams:
    """What the array tells PEs of `DotCells`: [cycles, 1]."""
    behind = tiles.cells.latency - 1
    arrived, ended = _delayed(schedule.issued, behind), _delayed(schedule.ends, behind)
    running, clear = False, np.zeros(len(arrived), bool)
    for cycle in range(len(arrived)):
        clear[cycle] = not running
        running = bool(not ended[cycle] if arrived[cycle] else running)
    control = {"clear": clear}
    if planes:
        shape, job = tiles.shape, tiles.operands[0].job
        x_top = schedule.x_word == shape.x_words - 1
        w_top = schedule.w_word == shape.w_words - 1
        control["shift"] = schedule.x_word + schedule.w_word
        control["negative"] = (job["x_signed"] & x_top) ^ (job["w_signed"] & w_top)
    return {name: values.astype(np.uint64)[:, None] for name, values in control.items()}


def encoder_streams(tiles: TileOperands, schedule: Schedule) -> Streams:
    """Ports of the bit-serial PE's term encoders [cycles, lanes], set-up cycles in front."""
    columns = tiles.columns(schedule)
    common = {
        "valid": schedule.issued,
        "last": _in_step(schedule, schedule.ends),
        "final_group": schedule.final,
    }
    streams = {**columns, **{name: values[:, None] for name, values in common.items()}}
    length = len(schedule.step)
    job = tiles.operands[0].job
    for name, value in (("mode", job["mode"]), ("terms", tiles.shape.terms)):
        streams[name] = np.full((length, 1), value)
    setup = {name: np.zeros((_SETUP, values.shape[1])) for name, values in streams.items()}
    for name in ("rst", "sv_we", "sv_addr", "sv_data"):
        setup[name] = np.zeros((_SETUP, 1))
        streams[name] = np.zeros((length, 1))
    setup["rst"][0] = 1
    for cycle, write in enumerate(tiles.operands[0].setup, start=1):
        for name, value in write.items():
            setup[name][cycle] = value
    return {
        name: np.concatenate([setup[name], values]).astype(np.uint64)
        for name, values in streams.items()
    }


ENCODER_SETUP = _SETUP  #: cycles that `encoder_streams` puts in front


def _in_step(schedule: Schedule, ends: np.ndarray) -> np.ndarray:
    """Whether a cycle's step is one that ends a group: `last` is shown with every term."""
    closing = set(schedule.step[ends].tolist())
    return np.array([step in closing for step in schedule.step.tolist()])


class Terms(NamedTuple):
    """What the term encoders give a column in each beat; arrays [cycles, lanes]."""

    lanes: Streams  #: sign0, shift0, live0, ...
    significance: np.ndarray
    issued: np.ndarray
    ends: np.ndarray
    scale: np.ndarray  #: of the group that ends


def bitmod_control(terms: Terms) -> Streams:
    """Control of the bit-serial PE's stages, two cycles behind the terms: [cycles, lanes]."""
    two = [_delayed(values, 2) for values in (terms.significance, terms.issued, terms.ends)]
    significance, term, load = two
    scale = _delayed(terms.scale, 2)
    lanes = load.shape[1]
    running = np.zeros(lanes, bool)
    left, bits = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
    out = {name: np.zeros(load.shape, np.uint64) for name in ("clear", "first", "scale_bit")}
    for cycle in range(len(load)):
        out["clear"][cycle] = ~running
        out["first"][cycle] = left == bitmod.SCALE_CYCLES
        out["scale_bit"][cycle] = bits & 1
        running = np.where(term[cycle], ~load[cycle].astype(bool), running)
        left = np.where(load[cycle], bitmod.SCALE_CYCLES, np.maximum(left - 1, 0))
        bits = np.where(load[cycle], scale[cycle], bits >> 1)
    return {
        "bsig": significance.astype(np.uint64),
        "clear": out["clear"],
        "load": load.astype(np.uint64),
        "first": out["first"],
        "scale_bit": out["scale_bit"],
    }


def without_zero_terms(terms: Terms, act: Streams, warmup: int) -> tuple[Terms, Streams, int]:
    """Every column leaves out the beats in which none of its weights has a term.

    The beat that ends a group stays. Columns that finish early wait.

    Returns:
        Terms and activations of the shorter schedule, and the PE cycles left out after `warmup`.
    """
    live = np.zeros(terms.issued.shape, bool)
    for name, values in terms.lanes.items():
        if name.startswith("live"):
            live |= values.astype(bool)
    keep = (live | terms.ends.astype(bool)) & terms.issued.astype(bool)
    keep[:warmup] = True
    dropped = int((terms.issued.astype(bool) & ~keep).sum())
    # Cycles that stay come first, in their order.
    order = np.argsort(~keep, axis=0, kind="stable")
    length = int(keep.sum(axis=0).max())
    stays = np.arange(len(keep))[:, None] < keep.sum(axis=0)
    order = np.where(stays, order, np.take_along_axis(order, keep.sum(axis=0)[None] - 1, 0))

    def moved(values: np.ndarray, held: bool = True) -> np.ndarray:
        wide = np.broadcast_to(values, keep.shape)
        taken = np.take_along_axis(wide, order, 0)
        return (taken if held else taken * stays)[:length]

    shorter = Terms(
        {name: moved(values, not name.startswith("live")) for name, values in terms.lanes.items()},
        moved(terms.significance),
        moved(terms.issued, False),
        moved(terms.ends, False),
        moved(terms.scale),
    )
    return shorter, {name: moved(values) for name, values in act.items()}, dropped


def column_control(schedule: Schedule, cells: Cells, rows: int) -> Streams:
    """Control of the column units: [cycles, 1]."""
    arriving = _delayed(schedule.ends, cells.latency)
    first = _delayed(schedule.first, cells.latency)
    left, is_first = 0, False
    turn, firsts = np.zeros(len(arriving), bool), np.zeros(len(arriving), bool)
    for cycle in range(len(arriving)):
        turn[cycle], firsts[cycle] = left > 0, is_first
        left = rows if arriving[cycle] else max(left - 1, 0)
        is_first = bool(first[cycle]) if arriving[cycle] else is_first
    control = {"arriving": arriving, "turn": turn, "first": firsts}
    return {name: values.astype(np.uint64)[:, None] for name, values in control.items()}


def column_inputs(outputs: Mapping[str, np.ndarray], rows: int) -> Streams:
    """PE outputs [cycles, lanes] as ports of the unit that stands below each lane's PE."""
    base = np.arange(EDGE) // rows * rows
    streams = {}
    for port, values in outputs.items():
        tiles = values.reshape(len(values), -1, EDGE, EDGE)
        for q in range(rows):
            picked = tiles[:, :, np.minimum(base + q, EDGE - 1), :]
            streams[f"{port}{q}"] = np.ascontiguousarray(picked.reshape(len(values), -1))
    return streams


def _delayed(values: np.ndarray, cycles: int) -> np.ndarray:
    """The values so many cycles later, zeros before them."""
    if not cycles:
        return values
    return np.concatenate([np.zeros_like(values[:cycles]), values[:-cycles]])
