"""Closed form of the array: the cycles of a job without stepping through them.

The control of `array.py` only ever takes maxima and adds constants, so the end of a job is the
longest path from any of the events that it waits for:

    D(g)  = max(steps of group g * beats, spacing)              from the end of a group to the next
    end   >= 1 + steps of the first group * beats - 1           the job is taken in cycle 0
             + sum of D over all groups behind the first
    end   >= arrival of the words of step i + 2                 the words of step i, for every i
             + beats from step i to the end of its group - 1
             + sum of D over all groups behind it
    last result = end + latency + rows + 1

Words that arrive one every `interval` cycles make the second line affine in i within a group and
from group to group within a tile and from tile to tile, so that the largest value lies at one of
its ends: a dozen cases instead of all steps. `cycles` is that number; it is exact if

- an operand whose windows are used several times arrives at least as fast as it is used up, and
- two windows fit into the buffer with two words to spare (or there is only one window), and
- the result buffer has room for what the latency holds (`result_rows` left at 0).

Otherwise `exact` is False, and the true number lies within `low` and `high`: at least the longest
path above or the time that the ports need, at most the time without any overlap. The result port
takes a word a cycle; job and words are offered from cycle 0 on, the engine is empty.
"""

from dataclasses import dataclass, replace

from bitwright.quant import InputError

from .model import ArrayConfig, Job


@dataclass(frozen=True, slots=True)
class ArrayCycles:
    """Cycles of a job, from the one in which it is offered to the last result's."""

    cycles: int  #: all; the lower bound if not `exact`
    exact: bool
    low: int
    high: int
    fill: int  #: before the first beat, the job's own cycle included
    beats: int  #: in which a beat is issued
    waits: int  #: between beats: operands and scale unit
    tail: int  #: behind the last beat: latency, column unit, results


def array_cycles(
    config: ArrayConfig, job: Job, *, x_interval: int = 1, w_interval: int = 1
) -> ArrayCycles:
    """The cycles of one job on an empty engine.

    Args:
        config: The engine.
        job: What it works on.
        x_interval: Cycles from one activation word to the next, at least 1.
        w_interval: The same for weight words.

    Raises:
        InputError: An interval below 1, or a window that does not fit its buffer.

    >>> config = ArrayConfig(rows=8, cols=8, latency=11, scale_cycles=8, per_group=False)
    >>> job = Job(tiles=4, groups=2, steps=32, last_steps=32, x_window=1, x_uses=1,
    ...           w_window=1, w_uses=1, terms=2)
    >>> array_cycles(config, job)  # doctest: +NORMALIZE_WHITESPACE
    ArrayCycles(cycles=534, exact=True, low=534, high=534, fill=2, beats=512, waits=0, tail=20)
    """
    for name, value in (("x_interval", x_interval), ("w_interval", w_interval)):
        if value < 1:
            raise InputError(f"{name} is {value}; at least 1 cycle")
    job.check(config)
    ends = [_undisturbed(config, job)]
    first_beat, exact = 1, _room(config) <= config.result_rows
    for operand, interval, depth in (
        ("x", x_interval, config.x_depth),
        ("w", w_interval, config.w_depth),
    ):
        words: int = getattr(job, f"{operand}_words")
        window: int = getattr(job, f"{operand}_window")
        uses: int = getattr(job, f"{operand}_uses")
        first_beat = max(first_beat, (words - 1) * interval + 2)
        one_window = job.words(operand) == window
        exact &= one_window or 2 * window + 2 <= depth
        exact &= uses == 1 or interval * words <= job.beats
        # Of words that are read again only the first pass over the first window waits for arrivals.
        passed = job.words(operand) // words if uses == 1 else 1
        ends += _arrivals(config, job, words * interval, (words - 1) * interval + 2, passed)
        last_word = (job.words(operand) - 1) * interval + 2
        ends.append(last_word + job.beats - 1)
    end = max(ends)
    tail = config.latency + config.rows + 1
    beats = job.tiles * job.tile_steps * job.beats
    low = end + tail + 1
    result = ArrayCycles(
        cycles=low,
        exact=exact,
        low=low,
        high=low,
        fill=first_beat,
        beats=beats,
        waits=end + 1 - first_beat - beats,
        tail=tail,
    )
    return result if exact else replace(result, high=_serial(config, job, x_interval, w_interval))


def _duration(config: ArrayConfig, job: Job, steps: int) -> int:
    """Cycles from the end of a group to the end of the next one, of so many steps."""
    return max(steps * job.beats, config.spacing)


def _behind(config: ArrayConfig, job: Job, tile: int, group: int) -> int:
    """Cycles from the end of a group to the end of the job, if nothing is missing."""
    whole, last = (_duration(config, job, steps) for steps in (job.steps, job.last_steps))
    per_tile = (job.groups - 1) * whole + last
    rest = 0 if group == job.groups - 1 else (job.groups - 2 - group) * whole + last
    return (job.tiles - 1 - tile) * per_tile + rest


def _undisturbed(config: ArrayConfig, job: Job) -> int:
    """Cycle of the last beat if operands are never missing."""
    first = job.steps if job.groups > 1 else job.last_steps
    return first * job.beats + _behind(config, job, 0, 0)


def _arrivals(config: ArrayConfig, job: Job, pace: int, first: int, steps: int) -> list[int]:
    """Cycles of the last beat as the arrivals of steps at the ends of groups and tiles allow.

    Step i of the first `steps` steps can begin in cycle `first + i * pace`.
    """
    found = []
    for tile in {0, job.tiles - 1}:
        for group in {0, max(job.groups - 2, 0), job.groups - 1}:
            length = job.last_steps if group == job.groups - 1 else job.steps
            start = tile * job.tile_steps + group * job.steps
            for within in (0, length - 1):
                if start + within < steps:
                    begin = first + (start + within) * pace
                    end = begin + (length - within) * job.beats - 1
                    found.append(end + _behind(config, job, tile, group))
    return found


def _room(config: ArrayConfig) -> int:
    """Result words that keep DRAIN away from a port that takes one a cycle."""
    return replace(config, result_rows=0).result_rows


def _serial(config: ArrayConfig, job: Job, x_interval: int, w_interval: int) -> int:
    """Cycles if no word arrived while a beat is issued, and no tile overlapped with results."""
    loads = job.words("x") * (x_interval + 2) + job.words("w") * (w_interval + 2)
    results = job.tiles * job.groups * (config.latency + 2 * config.rows + 3)
    return _undisturbed(config, job) + loads + results + 4
