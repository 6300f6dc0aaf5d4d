"""The slow twin of `dram`: one channel, command by command and burst by burst.

Every bank keeps when it may open next; the channel keeps its recent openings, when its data bus is
free and when a refresh falls due. Streams take turns of one run each, runs go round the banks, and
a controller that knows what comes opens rows as early as the banks allow, but none past a run after
which a refresh waits. Nothing of the closed form is used.
"""

from dataclasses import dataclass
from fractions import Fraction

from bitwright.quant import InputError

from .dram import DRAM


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a channel."""

    ns: Fraction
    kind: str  #: "open", "read", "close" or "refresh"
    bank: int  #: -1: all banks
    stream: int  #: -1: none


@dataclass(frozen=True, slots=True)
class SteppedTransfer:
    """What a transfer did."""

    ns: Fraction  #: from the first command to the end of the last burst
    opens: int  #: rows opened
    refreshes: int
    commands: tuple[Command, ...]  #: in the order in which they were decided


def step_transfer(dram: DRAM, bursts: list[int]) -> SteppedTransfer:
    """Move bursts of several streams over one cold channel.

    Args:
        dram: The interface; its policy is "open" or "closed".
        bursts: Bursts of each stream on this channel. A stream that is through loses its turn.

    Raises:
        InputError: The interface is ideal, or there is no stream.

    >>> from .dram import DRAMS
    >>> step_transfer(DRAMS["ddr4-3200"], [1024]).ns  # 64 KiB: DRAM.transfer_cycles
    Fraction(2590, 1)
    """
    if dram.policy == "ideal":
        raise InputError(f"dram {dram.name!r} is ideal: it has no commands to step")
    if not bursts or min(bursts) < 0:
        raise InputError(f"bursts is {bursts}; a count of at least 0 for one stream or more")

    def ns(value: float) -> Fraction:
        return Fraction(str(value))

    burst_ns = dram.channels * dram.burst_bytes / ns(dram.bandwidth_gb_per_s)
    per_run = 1
    if dram.policy == "open":
        per_run = max(1, dram.open_together * dram.row_bytes // dram.burst_bytes // len(bursts))
    together = dram.open_together
    while together > per_run:
        together //= 2
    longest_open = max(
        ns(dram.ras_ns) - ns(dram.rcd_ns) - ns(dram.cl_ns) - per_run * burst_ns,
        ns(dram.rtp_ns) - ns(dram.cl_ns) - burst_ns,
    )

    commands: list[Command] = []
    may_open = [Fraction(0)] * dram.banks
    opened: list[Fraction] = []  # since the last refresh
    earliest = Fraction(0)  # end of the last refresh
    bus_free = Fraction(0)
    refreshes = 0
    left = list(bursts)
    stream, bank = -1, 0
    while any(left):
        stream = (stream + 1) % len(left)
        moved = min(per_run, left[stream])
        if not moved:
            continue
        left[stream] -= moved

        # Open the banks of the run, one after the other.
        run_banks = [bank + offset for offset in range(together)]
        bank = (bank + together) % dram.banks
        start = max(earliest, *(may_open[b] for b in run_banks))
        opening = []
        for b in run_banks:
            if opened:
                start = max(start, opened[-1] + ns(dram.rrd_ns))
            if len(opened) >= 4:
                start = max(start, opened[-4] + ns(dram.faw_ns))
            opened.append(start)
            opening.append(start)
            commands.append(Command(start, "open", b, stream))

        # Read, the banks alternating, once all of them are open.
        data = max(bus_free, opening[-1] + ns(dram.rcd_ns) + ns(dram.cl_ns))
        for index in range(moved):
            read = data + index * burst_ns - ns(dram.cl_ns)
            commands.append(Command(read, "read", run_banks[index % together], stream))
        bus_free = data + moved * burst_ns

        # The banks of a run close together.
        close = max(opening[-1] + ns(dram.ras_ns), read + ns(dram.rtp_ns))
        for b in run_banks:
            commands.append(Command(close, "close", b, stream))
            may_open[b] = close + ns(dram.rp_ns)

        due = (refreshes + 1) * ns(dram.refresh_interval_ns)
        if dram.refresh_interval_ns and bus_free >= due and any(left):
            refreshes += 1
            start = bus_free + max(Fraction(0), longest_open + ns(dram.rp_ns))
            commands.append(Command(start, "refresh", -1, -1))
            earliest = start + ns(dram.refresh_ns)
            opened = []
            bank = 0
    return SteppedTransfer(
        bus_free, sum(c.kind == "open" for c in commands), refreshes, tuple(commands)
    )
