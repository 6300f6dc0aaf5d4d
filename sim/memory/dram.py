"""Off-chip memory: bandwidth, latency, row buffers, refresh and energy of named interfaces.

An interface (data/dram.csv) has `channels` equal channels; bursts go round them. A channel has one
data bus and `banks` banks, each with one open row. Transfers come in *runs*: consecutive bursts
from rows that are opened for the run and closed after it. Runs go round the banks.

    policy "open"    a run is a whole row of each of `open_together` banks, which must alternate
                     where one bank alone is slower than the bus (tCCD_L longer than a burst)
    policy "closed"  a run is one burst
    policy "ideal"   bandwidth only: no rows, latency, refresh or standing power
    k streams        take turns: the controller gathers one run's worth of bursts before it turns to
                     the next stream, so a run shrinks to 1/k of its bursts (at least one)

With burst = time of a burst on the bus and g = banks of a run, a run r is timed by

    open[r]  >= open[r-1] + g*tRRD,  open[r - 4/g] + tFAW,  close[r - banks/g] + tRP
    data[r]  >= data[r-1] + bursts*burst,  open[r] + first      first = (g-1)*tRRD + tRCD + tCL
    close[r]  = the later of open[r] + (g-1)*tRRD + tRAS and the last read of the run + tRTP

that is, rows are opened as early as the banks allow, in order. The longest path through these rules
gives data[n] = first + K(n), where K(n) is the heaviest way to fill n runs with

    one run        step   = max(bursts*burst, g*tRRD)
    4/g runs       tFAW
    banks/g runs   cycle  = max((g-1)*tRRD + tRAS, first - tCL + (bursts-1)*burst + tRTP) + tRP

so a run takes in the long term pace = max(step, g*tFAW/4, g*cycle/banks). K is exact for every n
(`dram_stepped` steps the same rules burst by burst and agrees).

Refresh: every tREFI a refresh of all banks falls due. It waits for the end of the run that is under
way (JEDEC lets it wait), then for the longest time in which its rows may have to stay open, then
takes tRFC; the next run begins cold. Each refresh so costs the same `lost` time and

    bandwidth = channels * bytes of a run / pace * (1 - lost / tREFI)

which is the exact long-term rate where pace = step (every interface here under policy "open"), and
otherwise a lower bound of it: a run after a refresh may be early.

Energy: bits moved, rows opened, refreshes, and standby power of rows held open. Where the energy
per bit already has opened rows in it, `activate_pj` is 0 and `power_source` says so.

Left out: turns of the bus between reads and writes (writes are timed and charged as reads), refresh
of single banks, power-down, the controller's own latency, and drivers and termination where
`source` says so.
"""

import math
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, overload

import numpy as np

from bitwright.quant import InputError
from bitwright.sim import pick, read_table

Policy = Literal["ideal", "open", "closed"]
_Ints = np.ndarray[Any, np.dtype[np.int64]]
_Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True, slots=True)
class DRAM:
    """One off-chip interface. Times and rows are those of one channel, which are all alike."""

    name: str
    energy_pj_per_bit: float  #: of a bit moved, either way
    bandwidth_gb_per_s: float  #: peak of all channels, 1e9 bytes a second
    source: str  #: of the energy per bit and the bandwidth
    policy: Policy = "ideal"
    channels: int = 1
    burst_bytes: int = 64  #: least that a channel moves
    row_bytes: int = 8192  #: open row of one bank
    banks: int = 16
    open_together: int = 1  #: banks that must alternate to keep the bus busy: 1, 2 or 4
    rcd_ns: float = 0.0  #: open to read
    cl_ns: float = 0.0  #: read to its first data
    rp_ns: float = 0.0  #: close to open
    ras_ns: float = 0.0  #: open to close
    rtp_ns: float = 0.0  #: read to close
    rrd_ns: float = 0.0  #: open to open of another bank
    faw_ns: float = 0.0  #: window with at most four opens
    refresh_interval_ns: float = 0.0  #: tREFI; 0: no refresh
    refresh_ns: float = 0.0  #: tRFC, all banks
    timing_source: str = "none"
    activate_pj: float = 0.0  #: a row opened and closed, all devices of a channel
    refresh_pj: float = 0.0  #: one refresh of one channel
    background_mw: float = 0.0  #: standby with open rows, whole interface
    power_source: str = "none"

    def __post_init__(self) -> None:
        where = f"dram {self.name!r}"
        if self.policy not in get_args(Policy):
            raise InputError(
                f"policy of {where} is {self.policy!r}; one of {', '.join(get_args(Policy))}"
            )
        if not (math.isfinite(self.bandwidth_gb_per_s) and self.bandwidth_gb_per_s > 0):
            raise InputError(
                f"bandwidth_gb_per_s of {where} is {self.bandwidth_gb_per_s}; above 0 GB/s"
            )
        for name in ("channels", "burst_bytes", "row_bytes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of {where} is {getattr(self, name)}; at least 1")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{field.name} of {where} is {value}; finite and at least 0")
        if self.banks < 4 or self.banks % 4:
            raise InputError(f"banks of {where} is {self.banks}; a multiple of 4")
        if self.open_together not in (1, 2, 4):
            raise InputError(f"open_together of {where} is {self.open_together}; 1, 2 or 4")
        if self.row_bytes % self.burst_bytes:
            raise InputError(
                f"row_bytes of {where} is {self.row_bytes}; "
                f"a multiple of burst_bytes (={self.burst_bytes})"
            )
        if self.policy != "ideal" and self.refresh_interval_ns:
            pace = _pace(self, 1)
            if pace.interval < pace.lost + pace.pace:
                raise InputError(
                    f"refresh_interval_ns of {where} is {self.refresh_interval_ns}; a refresh and "
                    f"the run before it take {float(pace.lost + pace.pace):g} ns, leave more"
                )

    def bytes_per_cycle(self, clock_ps: float) -> Fraction:
        """Exact bytes moved in one cycle of a clock at the peak bandwidth.

        >>> DRAMS["ddr4-bitmod"].bytes_per_cycle(1000)
        Fraction(32, 1)
        """
        return _exact(self.bandwidth_gb_per_s) * _exact(clock_ps) / 1000

    def effective_bytes_per_cycle(self, clock_ps: float, *, streams: int = 1) -> Fraction:
        """Exact bytes of a cycle in a long transfer, after row misses and refresh.

        By the formula at the top of this module: the long-term rate, or a lower bound of it.

        Raises:
            InputError: `streams` is below 1.

        >>> float(DRAMS["ddr4-3200"].effective_bytes_per_cycle(1000)) / 25.6  # of the peak
        0.9506410256410256
        """
        _check_streams(streams)
        if self.policy == "ideal":
            return self.bytes_per_cycle(clock_ps)
        pace = _pace(self, streams)
        rate = self.channels * pace.bursts * self.burst_bytes / pace.pace
        if pace.interval:
            rate *= 1 - pace.lost / pace.interval
        return rate * _exact(clock_ps) / 1000

    @property
    def latency_ns(self) -> float:
        """From the first command of a cold transfer to its first data."""
        return 0.0 if self.policy == "ideal" else float(_pace(self, 1).first)

    @property
    def row_miss_ns(self) -> float:
        """How long the bus idles if the next run has to open another row of the same banks."""
        if self.policy == "ideal":
            return 0.0
        pace = _pace(self, 1)
        return float(pace.cycle - pace.run)

    def latency_cycles(self, clock_ps: float) -> int:
        """`latency_ns` in whole cycles of a clock.

        >>> DRAMS["ddr4-3200"].latency_cycles(1000)  # 2.5 + 13.75 + 13.75 ns
        30
        """
        if self.policy == "ideal":
            return 0
        return math.ceil(_pace(self, 1).first * 1000 / _exact(clock_ps))

    def pace(self, streams: int = 1) -> "RunPace":
        """The times of the formulas at the top of this module.

        Raises:
            InputError: The policy is ideal, or `streams` is below 1.
        """
        _check_streams(streams)
        if self.policy == "ideal":
            raise InputError(f"dram {self.name!r} is ideal: it has no runs to time")
        return _pace(self, streams)

    def run_bytes(self, streams: int = 1) -> int:
        """Bytes that a channel moves from the rows it opens at a time.

        Raises:
            InputError: `streams` is below 1.
        """
        _check_streams(streams)
        return _run_shape(self, streams)[0] * self.burst_bytes

    def transfer_ns(self, nbytes: int, *, streams: int = 1) -> Fraction:
        """Time from the first command of a cold transfer to the end of its last burst.

        Exact (equal to `dram_stepped`) if the transfer meets no refresh, or if a run costs its
        `step`. Else an upper bound: each of the R refreshes that are met lets the next runs be
        early by at most E = (banks/g - 1) * (pace - step), and the time that is gained so may save
        refreshes, so that the bound lies less than ((R + 1)*E + lost) / (1 - lost/tREFI) above.

        Args:
            nbytes: Bytes of all streams together; the last burst is moved whole.
            streams: Streams that take turns.

        Raises:
            InputError: `nbytes` is negative or `streams` below 1.
        """
        _check_streams(streams)
        if nbytes < 0:
            raise InputError(f"nbytes is {nbytes}; at least 0")
        if self.policy == "ideal" or nbytes == 0:
            return Fraction(nbytes) / _exact(self.bandwidth_gb_per_s)
        pace = _pace(self, streams)
        # Bursts go round the channels; the first channel has most of them.
        bursts = _ceil(_ceil(nbytes, self.burst_bytes), self.channels)
        before = _ceil(bursts, pace.bursts) - 1  # runs before the last
        last = (bursts - before * pace.bursts) * pace.burst
        refreshes = 0
        if pace.interval and before:
            # Run i ends at k*lost + first + run + (i - 1)*pace after k refreshes; refresh k + 1
            # comes after the first run that ends at (k + 1)*interval or later.
            past_first = pace.first + pace.run + (before - 1) * pace.pace - pace.interval
            refreshes = max(0, math.floor(past_first / (pace.interval - pace.lost)) + 1)
        if refreshes:
            return pace.first + before * pace.pace + refreshes * pace.lost + last
        return pace.first + pace.weight(before) + last

    def transfer_cycles(self, nbytes: int, clock_ps: float, *, streams: int = 1) -> int:
        """`transfer_ns` in whole cycles of a clock.

        Raises:
            InputError: `nbytes` is negative or `streams` below 1.

        >>> DRAMS["ddr4-3200"].transfer_cycles(65536, 1000)  # 30 ns + 1024 bursts of 2.5 ns
        2590
        """
        return math.ceil(self.transfer_ns(nbytes, streams=streams) * 1000 / _exact(clock_ps))

    @overload
    def activates(self, nbytes: int, *, streams: int = 1) -> int: ...
    @overload
    def activates(self, nbytes: _Ints, *, streams: int = 1) -> _Ints: ...
    def activates(self, nbytes: int | _Ints, *, streams: int = 1) -> int | _Ints:
        """Rows opened for so many bytes, all channels; an array gives an array.

        Raises:
            InputError: `streams` is below 1.
        """
        _check_streams(streams)
        if self.policy == "ideal":
            return nbytes * 0
        bursts, together = _run_shape(self, streams)
        each, more = divmod(_ceil(nbytes, self.burst_bytes), self.channels)
        runs = more * _ceil(each + 1, bursts) + (self.channels - more) * _ceil(each, bursts)
        return runs * together

    @overload
    def transfer_pj(self, nbytes: int, *, streams: int = 1) -> float: ...
    @overload
    def transfer_pj(self, nbytes: _Ints, *, streams: int = 1) -> _Floats: ...
    def transfer_pj(self, nbytes: int | _Ints, *, streams: int = 1) -> float | _Floats:
        """Energy of moving so many bytes: bits and opened rows; an array gives an array.

        Raises:
            InputError: `streams` is below 1.

        >>> DRAMS["ddr4-bitmod"].transfer_pj(8)
        1200.0
        """
        moved = 8 * nbytes * self.energy_pj_per_bit
        if not self.activate_pj:
            _check_streams(streams)
            return moved
        return moved + self.activates(nbytes, streams=streams) * self.activate_pj

    @property
    def standing_mw(self) -> float:
        """Power that is spent whether or not anything moves: refresh and open standby."""
        if self.policy == "ideal":
            return 0.0
        if not self.refresh_interval_ns:
            return self.background_mw
        return self.background_mw + self.channels * self.refresh_pj / self.refresh_interval_ns

    def standing_pj(self, seconds: float) -> float:
        """Energy of refresh and open standby over a time.

        >>> round(DRAMS["ddr4-3200"].standing_pj(1e-6) / 1e3)  # 499.2 + 85.3 mW, in nJ
        584
        """
        return self.standing_mw * seconds * 1e9


class RunPace(NamedTuple):
    """Times in ns of the runs of a channel, by the names at the top of this module."""

    bursts: int  #: of a run
    together: int  #: g
    burst: Fraction
    run: Fraction  #: bursts * burst
    first: Fraction
    step: Fraction
    window: Fraction  #: tFAW, for 4 // g runs
    cycle: Fraction  #: for `sets` runs
    sets: int  #: banks // g
    pace: Fraction
    drain: Fraction  #: from the end of a run to the refresh after it
    lost: Fraction  #: by a refresh
    interval: Fraction  #: tREFI; 0: no refresh

    def weight(self, runs: int) -> Fraction:
        """K(runs): the heaviest filling of so many runs."""
        four = 4 // self.together
        window_gain = max(Fraction(0), self.window - four * self.step)
        cycle_gain = max(Fraction(0), self.cycle - self.sets * self.step)
        # `four` divides `sets`, so only one of the two larger moves is worth taking while both fit.
        if cycle_gain >= self.sets // four * window_gain:
            cycles, rest = divmod(runs, self.sets)
            gain = cycles * cycle_gain + rest // four * window_gain
        else:
            gain = runs // four * window_gain
        return runs * self.step + gain


def _run_shape(dram: DRAM, streams: int) -> tuple[int, int]:
    """Bursts of a run, and the banks that share it."""
    whole = dram.open_together * dram.row_bytes // dram.burst_bytes
    bursts = 1 if dram.policy == "closed" else max(1, whole // streams)
    together = max(g for g in (1, 2, 4) if g <= min(dram.open_together, bursts))
    return bursts, together


@cache
def _pace(dram: DRAM, streams: int) -> RunPace:
    bursts, together = _run_shape(dram, streams)
    burst = dram.channels * dram.burst_bytes / _exact(dram.bandwidth_gb_per_s)
    run = bursts * burst
    rcd, cl, rp, ras, rtp, rrd, faw = (
        _exact(getattr(dram, f"{name}_ns"))
        for name in ("rcd", "cl", "rp", "ras", "rtp", "rrd", "faw")
    )
    opening = (together - 1) * rrd
    first = opening + rcd + cl
    step = max(run, together * rrd)
    cycle = max(opening + ras, opening + rcd + run - burst + rtp) + rp
    sets = dram.banks // together
    pace = max(step, faw * together / 4, cycle / sets)
    # The data of a run end at least `first` + `run` after its rows began to open.
    drain = max(Fraction(0), max(ras - rcd - cl - run, rtp - cl - burst) + rp)
    lost = drain + _exact(dram.refresh_ns) + first + run - pace
    interval = _exact(dram.refresh_interval_ns)
    return RunPace(
        *(bursts, together, burst, run, first, step, faw, cycle, sets, pace, drain, lost, interval)
    )


def _exact(value: float) -> Fraction:
    """The decimal number that was written, not its binary neighbour."""
    return Fraction(str(value))


def _check_streams(streams: int) -> None:
    if streams < 1:
        raise InputError(f"streams is {streams}; at least 1")


def _ceil(value: Any, divisor: int) -> Any:
    return -(-value // divisor)


def _read() -> dict[str, DRAM]:
    renamed = {
        "energy_pJ_per_bit": "energy_pj_per_bit",
        "bandwidth_GB_per_s": "bandwidth_gb_per_s",
        "label": "source",
        "timing_label": "timing_source",
        "activate_pJ": "activate_pj",
        "refresh_pJ": "refresh_pj",
        "background_mW": "background_mw",
        "power_label": "power_source",
    }
    kinds = {field.name: field.type for field in fields(DRAM)}
    table = {}
    for row in read_table("dram.csv"):
        values: dict[str, Any] = {}
        for column, text in row.items():
            name = renamed.get(column, column)
            if text:
                kind = kinds[name]
                values[name] = kind(text) if kind in (int, float) else text
        table[row["name"]] = DRAM(**values)
    # Only where opened rows are charged on their own does another policy leave the rest right.
    table["ddr4-3200-closed"] = replace(
        table["ddr4-3200"], name="ddr4-3200-closed", policy="closed"
    )
    return table


#: Off-chip interfaces by name.
DRAMS: dict[str, DRAM] = _read()


def find_dram(name: str) -> DRAM:
    """The interface of that name.

    Raises:
        InputError: Unknown name; the known ones are told.
    """
    return pick(DRAMS, name, "dram")
