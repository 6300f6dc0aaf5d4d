"""Port conflicts of an SRAM buffer: the stalls that its banks add to a phase of the array.

A buffer is `banks` banks of `width_bits`, words interleaved. A word that is wider than a bank takes
several banks at once; what is left over makes `ways` groups of banks, and successive words go round
them. A bank takes one access ("1rw") or one read and one write ("1r1w") at a time and is busy with
it for `busy_cycles` (its cycle time in clocks); the fill writes one half of the buffer while the
array reads the other, so the two never meet in one word.

A phase computes for C cycles; meanwhile the array takes R words, evenly spread (word i is due at
floor(i*C/R)), and W words are filled in. The rules of a group of banks, cycle by cycle:

    an idle port takes the next read if it may start, else the next write if there is one
    a read may start once the array has taken the word before it (one word is held ahead, as by
        the double-buffered operand registers)
    the array takes a word when it is due and its read has started, else it waits
    a phase ends when the array has computed and every read and write is through

With r = ceil(R/ways), w = ceil(W/ways) and b = `busy_cycles` a phase lasts exactly

    1rw    max(C, b*(r + w))          1r1w    max(C, b*r, b*w)

whether the words to be filled are all there from the start or come evenly, one every f cycles with
W*f <= C. Why: reads are never late while b*r <= C, for a write holds one up by b - 1 cycles at most
and a word has b cycles from the one before it to its own; if b*r > C, reads follow one another
without a gap. And if the port is last idle before cycle t, at most (1 - t/C) of the reads and of
the writes are left, so that all is through by t + b*(r + w)*(1 - t/C), which lies between b*(r + w)
and C. How long a fill takes beyond that (DRAM slower than the array) is for the caller: C is then
the cycles of the phase with the waiting for DRAM counted.

`step_conflicts` steps the rules for the group with the most words and agrees.
"""

import math
from fractions import Fraction
from typing import Any, overload

import numpy as np

from bitwright.quant import InputError

_Ints = np.ndarray[Any, np.dtype[np.int64]]


def bank_busy_cycles(cycle_ns: float, clock_ps: float) -> int:
    """Clocks for which an access keeps a bank busy.

    Args:
        cycle_ns: Cycle time of the bank (`SRAMBank.cycle_ns`).
        clock_ps: Period of the clock.

    Raises:
        InputError: A time that is not above 0.

    >>> bank_busy_cycles(0.34, 1000), bank_busy_cycles(0.34, 200)
    (1, 2)
    """
    for name, value in (("cycle_ns", cycle_ns), ("clock_ps", clock_ps)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}; a time above 0")
    return math.ceil(Fraction(str(cycle_ns)) * 1000 / Fraction(str(clock_ps)))


def interleaving(banks: int, width_bits: int, word_bits: int) -> tuple[int, int]:
    """How words lie across the banks of a buffer.

    Args:
        banks: Banks of the buffer.
        width_bits: Width of one bank.
        word_bits: Width of what the array takes at a time.

    Returns:
        Groups of banks that words go round, and the accesses that one word needs of its group
        (more than one if the word is wider than all banks together).

    Raises:
        InputError: A size below 1.

    >>> interleaving(8, 64, 512), interleaving(8, 64, 200), interleaving(8, 64, 1024)
    ((1, 1), (2, 1), (1, 2))
    """
    for name, value in (("banks", banks), ("width_bits", width_bits), ("word_bits", word_bits)):
        if value < 1:
            raise InputError(f"{name} is {value}; at least 1")
    needed = -(-word_bits // width_bits)
    return max(1, banks // needed), -(-needed // banks)


@overload
def conflict_cycles(  # type: ignore[overload-overlap]  # integers alone give an integer
    reads: int,
    writes: int,
    compute_cycles: int,
    *,
    ports: str,
    busy_cycles: int = 1,
    ways: int = 1,
) -> int: ...
@overload
def conflict_cycles(
    reads: int | _Ints,
    writes: int | _Ints,
    compute_cycles: int | _Ints,
    *,
    ports: str,
    busy_cycles: int | _Ints = 1,
    ways: int | _Ints = 1,
) -> _Ints: ...
def conflict_cycles(
    reads: int | _Ints,
    writes: int | _Ints,
    compute_cycles: int | _Ints,
    *,
    ports: str,
    busy_cycles: int | _Ints = 1,
    ways: int | _Ints = 1,
) -> int | _Ints:
    """Cycles that a phase lasts beyond `compute_cycles` because of the ports of a buffer.

    The formula at the top of this module. Arguments are integers or int64 arrays that broadcast;
    arrays in, an array out. Repetitions of a phase are multiplied by the caller.

    Args:
        reads: Words that the array takes, at least 0.
        writes: Words that are filled in meanwhile, at least 0.
        compute_cycles: Cycles of the phase without conflicts, at least 0.
        ports: "1rw" or "1r1w".
        busy_cycles: Clocks per access of a bank, at least 1 (`bank_busy_cycles`).
        ways: Groups of banks that words go round, at least 1 (`interleaving`).

    Raises:
        InputError: An unknown port, or a value below its least.

    >>> conflict_cycles(100, 30, 120, ports="1rw"), conflict_cycles(100, 30, 120, ports="1r1w")
    (10, 0)
    """
    _check(reads, writes, compute_cycles, ports, busy_cycles, ways)
    most_reads, most_writes = -(-reads // ways), -(-writes // ways)
    if ports == "1rw":
        work = busy_cycles * (most_reads + most_writes)
    elif isinstance(most_reads, int) and isinstance(most_writes, int):
        work = busy_cycles * max(most_reads, most_writes)
    else:
        work = busy_cycles * np.maximum(most_reads, most_writes)
    late = work - compute_cycles
    return max(0, late) if isinstance(late, int) else np.maximum(0, late)


def step_conflicts(
    reads: int,
    writes: int,
    compute_cycles: int,
    *,
    ports: str,
    busy_cycles: int = 1,
    ways: int = 1,
    fill_interval: int = 0,
) -> int:
    """The slow twin of `conflict_cycles`: the group of banks with the most words, every cycle.

    Args:
        reads: As in `conflict_cycles`, and so on.
        fill_interval: Cycles between the arrivals of words to be filled in by that group; 0: all
            are there from the start.

    Raises:
        InputError: As in `conflict_cycles`.
    """
    _check(reads, writes, compute_cycles, ports, busy_cycles, ways)
    reads, writes = -(-reads // ways), -(-writes // ways)
    started = taken = filled = 0  # reads started, words taken by the array, writes started
    waited = 0  # cycles the array has waited
    read_port = write_port = 0  # cycle from which the port is idle
    now = 0
    while True:
        if read_port <= now and started < reads and started <= taken:
            read_port = now + busy_cycles
            started += 1
            if ports == "1rw":
                write_port = read_port
        if write_port <= now and filled < writes and filled * fill_interval <= now:
            write_port = now + busy_cycles
            filled += 1
            if ports == "1rw":
                read_port = write_port
        computed = now - waited >= compute_cycles and taken == reads
        if computed and filled == writes and max(read_port, write_port) <= now:
            return now - compute_cycles
        # Several words may be due in one cycle (more reads than cycles); one can be taken.
        if taken < reads and taken * compute_cycles // reads <= now - waited:
            if started > taken:
                taken += 1
            if taken < reads and taken * compute_cycles // reads <= now - waited:
                waited += 1
        now += 1


def _check(
    reads: int | _Ints,
    writes: int | _Ints,
    cycles: int | _Ints,
    ports: str,
    busy_cycles: int | _Ints,
    ways: int | _Ints,
) -> None:
    if ports not in ("1rw", "1r1w"):
        raise InputError(f"ports is {ports!r}; 1rw or 1r1w")
    for name, value, least in (
        ("reads", reads, 0),
        ("writes", writes, 0),
        ("compute_cycles", cycles, 0),
        ("busy_cycles", busy_cycles, 1),
        ("ways", ways, 1),
    ):
        smallest = value if isinstance(value, int) else np.min(value, initial=least)
        if smallest < least:
            raise InputError(f"{name} is {smallest}; at least {least}")
