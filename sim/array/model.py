"""The array as a GEMM engine: what it does in every clock cycle, and how long it takes.

The engine is one tile of `rows` x `cols` PEs around operand buffers and a result buffer, as
`rtl/engine/` builds it. Rows hold tokens and columns output channels: an activation word is
broadcast along its row, a weight word goes down its column through the column's term encoder or
plane feeder (BitMoD, HPCA 2025, Fig. 6). Outputs stay in the PEs until their sum is finished.

A *job* is a list of equal output tiles. An output tile is `groups` weight groups of `steps` steps
each, the last group of `last_steps`. A step takes `beats` cycles: the terms of a bit-serial weight,
the plane pairs of a Binary-TensorCore slice, 1 elsewhere. One beat is issued a cycle unless

- an operand word is not there yet: FILL before the job's first beat; afterwards BANDWIDTH if the
  port of a missing operand hands over a word in this very cycle, else OPERAND;
- it would end a group less than `spacing` cycles after the one before: SCALE. The scale unit takes
  `scale_cycles` and the column unit one PE of the column a cycle, both beside the next group;
- it would end a tile for whose results there is no room: DRAIN.

An operand buffer is a circular memory of `depth` words. A *window* of it is read `uses` times from
its beginning and then released; words of the windows behind it arrive meanwhile, as many as fit
(twice the window: double buffering). A word taken in cycle t can be used from t + 2 on, so that the
memory may be an SRAM with one write and one read port. With `uses` 1 and a window of one step the
buffer is a plain FIFO.

The sums of a group whose last beat is issued in cycle t leave the PEs in t + latency. The column
unit takes row r in cycle t + latency + 1 + r; a finished result can leave at the port `y` one cycle
later. Every port is ready/valid: a word moves in a cycle in which both are high.

`ArrayReference` is the definition, one clock cycle a `tick`. `run_array` is its fast twin for
constant and irregular ports. `array_cycles` is the closed form for constant ports.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numba import njit

from bitwright.quant import InputError

COUNT_BITS = 16  #: width of the engine's job fields and counters


class State(IntEnum):
    """What the engine does in a cycle; the RTL shows it on the port `state`."""

    IDLE = 0  #: no job; results may still be on their way
    FILL = 1  #: the first operands of a job are missing
    COMPUTE = 2  #: a beat is issued
    OPERAND = 3  #: an operand is missing and its port is idle
    BANDWIDTH = 4  #: an operand is missing although its port hands over a word
    SCALE = 5  #: the end of a group waits for the scale unit or the column unit
    DRAIN = 6  #: the end of a tile waits for room in the result buffer


@dataclass(frozen=True, slots=True)
class ArrayConfig:
    """Sizes of an engine."""

    rows: int  #: tokens side by side
    cols: int  #: output channels side by side
    latency: int  #: cycles from a group's last beat to its sums leaving the PEs
    scale_cycles: int = 0  #: of the scale unit; 0: none
    per_group: bool = True  #: every group gives results; else the column unit adds the groups up
    x_depth: int = 64  #: activation words that fit, a power of two
    w_depth: int = 64  #: weight words that fit, a power of two
    result_rows: int = 0  #: result words that fit, a power of two; 0: as many as never stall

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("cols", 1), ("latency", 1), ("scale_cycles", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; at least {least}")
        for name in ("x_depth", "w_depth"):
            value = getattr(self, name)
            if value < 4 or value & (value - 1) or value >= 1 << COUNT_BITS:
                raise InputError(f"{name} is {value}; a power of two, 4 .. {1 << COUNT_BITS - 1}")
        if self.result_rows == 0:
            tiles = -(-(self.latency + self.rows + 2) // self.spacing) + 1
            size = 1 << (self.rows * tiles - 1).bit_length()
            object.__setattr__(self, "result_rows", size)
        if self.result_rows & (self.result_rows - 1) or self.result_rows < self.rows:
            raise InputError(
                f"result_rows is {self.result_rows}; a power of two of at least {self.rows} rows"
            )

    @property
    def spacing(self) -> int:
        """Cycles between the last beats of two groups, at least."""
        return max(self.scale_cycles, self.rows)


@dataclass(frozen=True, slots=True)
class Job:
    """A list of equal output tiles; every field is a field of the RTL's job port."""

    tiles: int
    groups: int  #: of a tile
    steps: int  #: of every group but the last
    last_steps: int  #: of the last group
    x_window: int  #: activation words that are read again
    x_uses: int  #: times that they are read
    w_window: int
    w_uses: int
    x_words: int = 1  #: words of a step: activation planes, else 1
    w_words: int = 1  #: weight planes, else 1
    terms: int = 1  #: beats with the same words

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not 1 <= value < 1 << COUNT_BITS:
                raise InputError(
                    f"job field {entry.name} is {value}; 1 .. {(1 << COUNT_BITS) - 1}"
                    + ("; split the product into several jobs" if value > 0 else "")
                )
        for operand in ("x", "w"):
            words = getattr(self, f"{operand}_words")
            window = getattr(self, f"{operand}_window")
            uses = getattr(self, f"{operand}_uses")
            total = self.tiles * self.tile_steps * words
            if window % words:
                raise InputError(
                    f"job field {operand}_window is {window}; a multiple of a step's {words} words"
                )
            if total % (window * uses):
                raise InputError(
                    f"job reads {total} {operand} words, which is no whole number of windows of "
                    f"{window} words used {uses} times"
                )

    @property
    def beats(self) -> int:
        """Cycles of a step."""
        return self.x_words * self.w_words * self.terms

    @property
    def tile_steps(self) -> int:
        """Steps of an output tile."""
        return (self.groups - 1) * self.steps + self.last_steps

    def words(self, operand: str) -> int:
        """Words of "x" or "w" that the job takes from its port."""
        words = self.x_words if operand == "x" else self.w_words
        uses = self.x_uses if operand == "x" else self.w_uses
        return self.tiles * self.tile_steps * words // uses

    def rows_out(self, config: ArrayConfig) -> int:
        """Result words that the job hands over."""
        return self.tiles * config.rows * (self.groups if config.per_group else 1)

    def check(self, config: ArrayConfig) -> None:
        """Refuse windows that do not fit the buffers.

        Raises:
            InputError: One does not.
        """
        for operand, depth in (("x", config.x_depth), ("w", config.w_depth)):
            window = getattr(self, f"{operand}_window")
            if window > depth:
                raise InputError(
                    f"job field {operand}_window is {window} words; the {operand} buffer holds "
                    f"{depth}, so read a smaller window more often"
                )


# ------------------------------------------------------------------ reference: plain Python


@dataclass(slots=True)
class _Buffer:
    """An operand buffer: what its counters hold in a cycle."""

    depth: int
    held: int = 0  #: words that take up room
    arrived: int = 0  #: words that can be used one cycle later
    level: int = 0  #: words that can be used, from the window's beginning on
    offset: int = 0  #: next word of the window
    use: int = 0  #: times that the window was read to its end

    @property
    def ready(self) -> bool:
        return self.held < self.depth

    def advance(self, taken: bool, step: int, window: int, uses: int) -> None:
        """One cycle: whether a word was taken; words of the step that ended, 0 for none."""
        released = 0
        if step:
            self.offset += step
            if self.offset == window:
                self.offset = 0
                self.use += 1
                if self.use == uses:
                    self.use, released = 0, window
        self.held += taken - released
        self.level += self.arrived - released
        self.arrived = int(taken)


class Outputs(NamedTuple):
    """What the engine shows in a cycle, results' values left out."""

    job_ready: bool
    x_ready: bool
    w_ready: bool
    y_valid: bool
    state: State


class ArrayReference:
    """The engine's control, one clock cycle per `tick`: the definition of every event's cycle.

    >>> config = ArrayConfig(rows=2, cols=2, latency=2)
    >>> job = Job(tiles=1, groups=1, steps=2, last_steps=2,
    ...           x_window=2, x_uses=1, w_window=2, w_uses=1)
    >>> engine = ArrayReference(config)
    >>> seen = [engine.tick(job if cycle == 0 else None, cycle < 2, cycle < 2, True)
    ...         for cycle in range(9)]
    >>> [int(out.state) for out in seen], [out.y_valid for out in seen].index(True)
    ([0, 1, 2, 2, 0, 0, 0, 0, 0], 7)
    """

    def __init__(self, config: ArrayConfig) -> None:
        self.config = config
        self.x, self.w = _Buffer(config.x_depth), _Buffer(config.w_depth)
        self._job: Job | None = None
        self._started = False  # the job has issued a beat
        self._beat = self._step = self._group = self._tile = 0
        self._spacing = 0  # cycles that the end of a group would have to wait
        self._reserved = 0  # rows of the result buffer that are full or promised
        self._pipe = [_NOTHING] * config.latency  # ends of groups on their way to the column unit
        self._rows_left = 0  # rows that the column unit still has to take
        self._finished = False  # their sums are results
        self._stored = 0  # rows in the result buffer

    def tick(self, job: Job | None, x: bool, w: bool, y_ready: bool) -> Outputs:
        """One clock cycle.

        Args:
            job: What the job port shows, None for `job_valid` = 0; to be shown until taken.
            x: `x_valid`.
            w: `w_valid`.
            y_ready: The receiver takes a result word if there is one.
        """
        config, current = self.config, self._job
        job_ready, y_valid = current is None, self._stored > 0
        x_taken, w_taken = x and self.x.ready, w and self.w.ready

        state, ends, results = State.IDLE, False, False
        if current is not None:
            x_missing = self.x.offset + current.x_words > self.x.level
            w_missing = self.w.offset + current.w_words > self.w.level
            of_group = current.last_steps if self._group == current.groups - 1 else current.steps
            last_beat = self._beat == current.beats - 1
            ends = last_beat and self._step == of_group - 1
            results = ends and (config.per_group or self._group == current.groups - 1)
            if x_missing or w_missing:
                moving = (x_missing and x_taken) or (w_missing and w_taken)
                state = State.BANDWIDTH if moving else State.OPERAND
                state = state if self._started else State.FILL
            elif ends and self._spacing:
                state = State.SCALE
            elif results and self._reserved > config.result_rows - config.rows:
                state = State.DRAIN
            else:
                state = State.COMPUTE
        out = Outputs(job_ready, self.x.ready, self.w.ready, y_valid, state)

        issued = state is State.COMPUTE
        ends, results = ends and issued, results and issued

        # Result buffer and column unit.
        y_taken = y_valid and y_ready
        self._stored += int(self._rows_left > 0 and self._finished) - int(y_taken)
        self._rows_left = max(self._rows_left - 1, 0)
        arriving = self._pipe.pop(0)
        if arriving != _NOTHING:
            self._rows_left, self._finished = config.rows, arriving == _RESULTS
        self._pipe.append(_RESULTS if results else _SUMS if ends else _NOTHING)
        self._reserved += config.rows * results - y_taken
        self._spacing = config.spacing - 1 if ends else max(self._spacing - 1, 0)

        # Operand buffers.
        x_step = w_step = 0
        if current is not None and issued and last_beat:
            x_step, w_step = current.x_words, current.w_words
        window = current or _NO_JOB
        self.x.advance(x_taken, x_step, window.x_window, window.x_uses)
        self.w.advance(w_taken, w_step, window.w_window, window.w_uses)

        # Counters.
        if current is not None and issued:
            self._started = True
            self._beat = 0 if last_beat else self._beat + 1
            if last_beat:
                self._step = 0 if ends else self._step + 1
            if ends:
                self._group += 1
                if self._group == current.groups:
                    self._group = 0
                    self._tile += 1
                    if self._tile == current.tiles:
                        self._tile, self._job = 0, None
        elif current is None and job is not None:
            self._job, self._started = job, False
        return out


_NOTHING, _SUMS, _RESULTS = 0, 1, 2  # what arrives at the column unit
_NO_JOB = Job(1, 1, 1, 1, 1, 1, 1, 1)


# ------------------------------------------------------------------ ports and runs


@dataclass(frozen=True, slots=True)
class Ports:
    """When the surroundings of the engine offer words and take results.

    A gap is a number of cycles. Word i is offered from gap i cycles after word i - 1 was taken and
    stays until it is taken itself; result word i is waited for as long. A list that ends begins
    again, so that one number stands for a constant port.
    """

    job: Sequence[int] = (0,)
    x: Sequence[int] = (0,)
    w: Sequence[int] = (0,)
    y: Sequence[int] = (0,)

    def arrays(self) -> list[np.ndarray]:
        """The four lists as int64 arrays.

        Raises:
            InputError: An empty list or a negative gap.
        """
        found = []
        for entry in fields(self):
            gaps = np.asarray(getattr(self, entry.name), np.int64)
            if gaps.ndim != 1 or not len(gaps) or gaps.min() < 0:
                raise InputError(
                    f"gaps of port {entry.name} are {getattr(self, entry.name)}; "
                    "a list of numbers >= 0"
                )
            found.append(gaps)
        return found


@dataclass(frozen=True, slots=True)
class ArrayRun:
    """Cycle of every event, counted from 0, and cycles by state."""

    job: np.ndarray  #: int64, cycle in which each job was taken
    x: np.ndarray  #: activation words
    w: np.ndarray  #: weight words
    y: np.ndarray  #: result words
    states: np.ndarray  #: int64 [7], cycles up to the last result, by `State`
    trace: np.ndarray = field(repr=False)  #: uint8, the state of each cycle; empty if not asked for

    @property
    def cycles(self) -> int:
        """Cycles up to and with the last result word."""
        return int(self.y[-1]) + 1

    def equals(self, other: "ArrayRun") -> bool:
        """Whether every event has the same cycle."""
        return all(
            np.array_equal(getattr(self, entry.name), getattr(other, entry.name))
            for entry in fields(self)
        )


def run_reference(config: ArrayConfig, jobs: Sequence[Job], ports: Ports = Ports()) -> ArrayRun:  # noqa: B008 - frozen
    """Run jobs through `ArrayReference`; `Raises` as `run_array`."""
    totals = _totals(config, jobs)
    gaps = dict(zip(("job", "x", "w", "y"), ports.arrays(), strict=True))
    engine = ArrayReference(config)
    times: dict[str, list[int]] = {name: [] for name in gaps}
    due = {name: int(gap[0]) for name, gap in gaps.items()}
    trace: list[int] = []
    while len(times["y"]) < totals["y"]:
        cycle = len(trace)
        offer = {name: cycle >= due[name] and len(times[name]) < totals[name] for name in gaps}
        job = jobs[len(times["job"])] if offer["job"] else None
        out = engine.tick(job, offer["x"], offer["w"], offer["y"])
        moved = {"job": out.job_ready, "x": out.x_ready, "w": out.w_ready, "y": out.y_valid}
        for name, gap in gaps.items():
            if offer[name] and moved[name]:
                times[name].append(cycle)
                due[name] = cycle + 1 + int(gap[len(times[name]) % len(gap)])
        trace.append(int(out.state))
        if cycle > _longest(config, jobs, gaps):
            raise RuntimeError(f"the engine stands still in cycle {cycle}")
    states = np.bincount(trace, minlength=len(State)).astype(np.int64)
    jobs_at, x, w, y = (np.array(times[name], np.int64) for name in ("job", "x", "w", "y"))
    return ArrayRun(jobs_at, x, w, y, states, np.array(trace, np.uint8))


def _totals(config: ArrayConfig, jobs: Sequence[Job]) -> dict[str, int]:
    if not jobs:
        raise InputError("no jobs; at least one")
    for job in jobs:
        job.check(config)
    return {
        "job": len(jobs),
        "x": sum(job.words("x") for job in jobs),
        "w": sum(job.words("w") for job in jobs),
        "y": sum(job.rows_out(config) for job in jobs),
    }


def _longest(config: ArrayConfig, jobs: Sequence[Job], gaps: dict[str, np.ndarray]) -> int:
    """More cycles than any run can take."""
    totals = _totals(config, jobs)
    waits = sum(totals[name] * (int(gap.max()) + 1) for name, gap in gaps.items())
    beats = sum(job.tiles * job.tile_steps * job.beats for job in jobs)
    ends = sum(job.tiles * job.groups for job in jobs)
    return waits + beats + (ends + 4) * (config.spacing + config.latency + 4)


# ------------------------------------------------------------------ fast twin: numba

_FIELDS = tuple(entry.name for entry in fields(Job))


@njit(cache=True)
def _run(  # type: ignore[no-untyped-def]
    jobs, rows, latency, spacing, per_group, depths, result_rows, gaps, times, states, trace,
    longest,
):  # fmt: skip
    """`ArrayReference` and its surroundings; returns the cycles run, -1 if it stands still."""
    gaps_job, gaps_x, gaps_w, gaps_y = gaps
    times_job, times_x, times_w, times_y = times
    pipe = np.zeros(latency, np.uint8)
    tiles = groups = steps = last_steps = beats = 0
    x_window = x_uses = w_window = w_uses = x_words = w_words = 0
    x_depth, w_depth = depths
    x_held = x_arrived = x_level = x_offset = x_use = 0
    w_held = w_arrived = w_level = w_offset = w_use = 0
    busy = started = finished = False
    beat = step = group = tile = wait = reserved = rows_left = stored = slot = 0
    n_job = n_x = n_w = n_y = 0
    due_job, due_x, due_w, due_y = gaps_job[0], gaps_x[0], gaps_w[0], gaps_y[0]
    total_job, total_x, total_w, total_y = len(times_job), len(times_x), len(times_w), len(times_y)
    keep = len(trace) > 0
    cycle = 0
    while n_y < total_y:
        if cycle > longest:
            return -1
        x_taken = cycle >= due_x and n_x < total_x and x_held < x_depth
        w_taken = cycle >= due_w and n_w < total_w and w_held < w_depth
        y_taken = stored > 0 and cycle >= due_y
        job_taken = not busy and n_job < total_job and cycle >= due_job
        state, ends, results, last_beat = 0, False, False, False
        if busy:
            x_missing = x_offset + x_words > x_level
            w_missing = w_offset + w_words > w_level
            of_group = last_steps if group == groups - 1 else steps
            last_beat = beat == beats - 1
            ends = last_beat and step == of_group - 1
            results = ends and (per_group or group == groups - 1)
            if x_missing or w_missing:
                if not started:
                    state = 1
                elif (x_missing and x_taken) or (w_missing and w_taken):
                    state = 4
                else:
                    state = 3
            elif ends and wait > 0:
                state = 5
            elif results and reserved > result_rows - rows:
                state = 6
            else:
                state = 2
        states[state] += 1
        if keep:
            if cycle >= len(trace):
                return -2 - cycle
            trace[cycle] = state
        issued = state == 2
        ends, results = ends and issued, results and issued

        if rows_left > 0:
            stored += finished
            rows_left -= 1
        stored -= y_taken
        if pipe[slot]:
            rows_left, finished = rows, pipe[slot] == 2
        pipe[slot] = 2 if results else 1 if ends else 0
        slot = slot + 1 if slot + 1 < latency else 0
        reserved += (rows if results else 0) - y_taken
        wait = spacing - 1 if ends else wait - 1 if wait > 0 else 0

        x_released = w_released = 0
        if issued:
            started = True
            if last_beat:
                beat = 0
                step += 1
                x_offset += x_words
                if x_offset == x_window:
                    x_offset = 0
                    x_use += 1
                    if x_use == x_uses:
                        x_use, x_released = 0, x_window
                w_offset += w_words
                if w_offset == w_window:
                    w_offset = 0
                    w_use += 1
                    if w_use == w_uses:
                        w_use, w_released = 0, w_window
                if ends:
                    step = 0
                    group += 1
                    if group == groups:
                        group = 0
                        tile += 1
                        if tile == tiles:
                            tile, busy = 0, False
            else:
                beat += 1
        x_held += x_taken - x_released
        x_level += x_arrived - x_released
        x_arrived = np.int64(x_taken)
        w_held += w_taken - w_released
        w_level += w_arrived - w_released
        w_arrived = np.int64(w_taken)

        if job_taken:
            row = jobs[n_job]
            tiles, groups, steps, last_steps = row[0], row[1], row[2], row[3]
            x_window, x_uses, w_window, w_uses = row[4], row[5], row[6], row[7]
            x_words, w_words = row[8], row[9]
            beats = x_words * w_words * row[10]
            busy, started = True, False
            times_job[n_job] = cycle
            n_job += 1
            due_job = cycle + 1 + gaps_job[n_job % len(gaps_job)]
        if x_taken:
            times_x[n_x] = cycle
            n_x += 1
            due_x = cycle + 1 + gaps_x[n_x % len(gaps_x)]
        if w_taken:
            times_w[n_w] = cycle
            n_w += 1
            due_w = cycle + 1 + gaps_w[n_w % len(gaps_w)]
        if y_taken:
            times_y[n_y] = cycle
            n_y += 1
            due_y = cycle + 1 + gaps_y[n_y % len(gaps_y)]
        cycle += 1
    return cycle


def run_array(
    config: ArrayConfig,
    jobs: Sequence[Job],
    ports: Ports = Ports(),  # noqa: B008 - frozen
    *,
    trace: bool = False,
) -> ArrayRun:
    """Run jobs one after the other, all ports active from cycle 0 on.

    Args:
        config: The engine.
        jobs: What it works on.
        ports: When words are offered and results taken.
        trace: Keep the state of every cycle.

    Raises:
        InputError: No jobs, a window that does not fit its buffer, bad gaps.
    """
    totals = _totals(config, jobs)
    gaps = ports.arrays()
    times = [np.zeros(totals[name], np.int64) for name in ("job", "x", "w", "y")]
    table = np.array([[getattr(job, name) for name in _FIELDS] for job in jobs], np.int64)
    longest = _longest(config, jobs, dict(zip(("job", "x", "w", "y"), gaps, strict=True)))
    kept = np.zeros(longest + 2 if trace else 0, np.uint8)
    states = np.zeros(len(State), np.int64)
    cycles = _run(
        table, config.rows, config.latency, config.spacing, config.per_group,
        (config.x_depth, config.w_depth), config.result_rows, tuple(gaps), tuple(times), states,
        kept, longest,
    )  # fmt: skip
    if cycles < 0:
        raise RuntimeError(f"the engine stands still after {longest} cycles")
    job, x, w, y = times
    return ArrayRun(job, x, w, y, states, kept[:cycles])
