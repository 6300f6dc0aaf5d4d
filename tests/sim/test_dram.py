"""Off-chip memory: by hand, against its stepped twin, and its limits."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.quant import InputError
from bitwright.sim import DRAM, DRAMS, find_dram, step_transfer

TIMED = [dram for dram in DRAMS.values() if dram.policy != "ideal"]

# 1 GB/s with bursts of 10 bytes: a burst takes 10 ns. A row has 4 bursts. 4 banks.
SMALL = DRAM(
    name="small",
    energy_pj_per_bit=1.0,
    bandwidth_gb_per_s=1.0,
    source="test",
    policy="open",
    burst_bytes=10,
    row_bytes=40,
    banks=4,
    rcd_ns=15.0,
    cl_ns=20.0,
    rp_ns=12.0,
    ras_ns=30.0,
    rtp_ns=8.0,
    rrd_ns=5.0,
    faw_ns=40.0,
    activate_pj=100.0,
    refresh_pj=500.0,
    background_mw=2.0,
)


def commands(dram, bursts, kind):
    steps = step_transfer(dram, bursts)
    return [(int(c.ns), c.bank) for c in steps.commands if c.kind == kind]


def test_a_row_after_the_other_by_hand():
    # Open 0, read 15, data 35. Row 0 moves its 4 bursts from 35 to 75, row 1 from 75 to 115, ...:
    # the bank of a row closes at read 4 (45) + 8 = 53, opens again at 65, long before it is needed.
    assert commands(SMALL, [20], "open")[:5] == [(0, 0), (5, 1), (10, 2), (15, 3), (65, 0)]
    assert commands(SMALL, [20], "close")[:2] == [(53, 0), (93, 1)]
    assert step_transfer(SMALL, [20]).ns == 35 + 200
    assert SMALL.transfer_ns(200) == 235
    assert SMALL.transfer_ns(196) == 235  # the last burst is moved whole
    assert SMALL.transfer_cycles(200, 1000) == 235
    assert SMALL.transfer_cycles(200, 700) == 336  # 335.7
    assert SMALL.latency_cycles(1000) == 35
    assert SMALL.effective_bytes_per_cycle(500) == Fraction(1, 2)


def test_closed_rows_by_hand():
    # A burst a row. The fifth opening waits for bank 0: open 0, close at 30 (tRAS), open at 42;
    # four openings in 40 ns would have let it open at 40. Bank 2 (open 10, data at 55, hence read
    # at 35) closes at 43, opens at 55.
    closed = replace(SMALL, policy="closed")
    assert [ns for ns, _ in commands(closed, [9], "open")] == [0, 5, 10, 15, 42, 47, 55, 65, 84]
    assert step_transfer(closed, [9]).ns == 84 + 35 + 10
    assert closed.transfer_ns(90) == 129
    # Four bursts in 42 ns. After 7 the way is: bank 0 twice, then three data slots of 10 ns.
    assert closed.effective_bytes_per_cycle(1000) == Fraction(40, 42)
    assert closed.transfer_ns(80) == 35 + 42 + 3 * 10 + 10


def test_four_openings_a_window_by_hand():
    closed = replace(SMALL, policy="closed", banks=8, faw_ns=48.0)
    assert [ns for ns, _ in commands(closed, [6], "open")] == [0, 5, 10, 15, 48, 53]
    assert closed.effective_bytes_per_cycle(1000) == Fraction(40, 48)
    assert closed.transfer_ns(50) == 48 + 35 + 10


def test_banks_that_alternate_by_hand():
    # Two banks a run: 8 bursts of 10 ns in turn, the second bank opens 5 ns after the first.
    pair = replace(SMALL, open_together=2)
    assert commands(pair, [16], "open") == [(0, 0), (5, 1), (10, 2), (15, 3)]
    assert [bank for _, bank in commands(pair, [8], "read")] == [0, 1] * 4
    assert pair.transfer_ns(160) == 5 + 35 + 160 == step_transfer(pair, [16]).ns
    assert pair.run_bytes() == 80


def test_a_refresh_by_hand():
    # Due at 100: run 2 ends at 115. Its last read is at 85, closed at 93, so nothing is waited for:
    # longest open after the data = max(30 - 15 - 20 - 40, 8 - 20 - 10) + 12 < 0. Refresh 115 to
    # 175, data again at 210. Run 4 ends at 290, the refresh of 200 was due.
    dram = replace(SMALL, refresh_interval_ns=200.0, refresh_ns=60.0)
    assert commands(dram, [24], "refresh") == [(235, -1)]
    dram = replace(SMALL, refresh_interval_ns=150.0, refresh_ns=60.0)
    assert commands(dram, [12], "refresh") == []  # the transfer ends at 155, nothing is left
    assert commands(dram, [16], "refresh") == [(155, -1)]
    assert step_transfer(dram, [16]).ns == 155 + 60 + 35 + 40 == dram.transfer_ns(160)
    # Each refresh costs 60 + 35 ns: 55 of 150 are left for the data.
    assert dram.effective_bytes_per_cycle(1000) == Fraction(55, 150)


def test_the_wait_before_a_refresh_by_hand():
    # One burst a run: its row may have to stay open for 80 ns from its opening at the latest 45
    # before the end of the data, so the refresh waits for 35 + 12 ns.
    dram = replace(
        SMALL, policy="closed", ras_ns=80.0, banks=16, refresh_interval_ns=500.0, refresh_ns=60.0
    )
    steps = step_transfer(dram, [100])
    refresh = next(i for i, c in enumerate(steps.commands) if c.kind == "refresh")
    last_read = max(c.ns for c in steps.commands[:refresh] if c.kind == "read")
    assert steps.commands[refresh].ns == last_read + 20 + 10 + 35 + 12


def test_streams_that_take_turns_by_hand():
    # Two streams: runs of 2 bursts. Three runs of each.
    reads = [c for c in step_transfer(SMALL, [6, 6]).commands if c.kind == "read"]
    assert [c.stream for c in reads] == [0, 0, 1, 1] * 3
    assert [c.bank for c in reads] == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 1, 1]
    assert SMALL.run_bytes(2) == 20
    assert SMALL.run_bytes(9) == 10
    assert SMALL.activates(120, streams=2) == step_transfer(SMALL, [6, 6]).opens == 6
    assert SMALL.transfer_ns(120, streams=2) == step_transfer(SMALL, [6, 6]).ns


def test_energy_by_hand():
    # 170 bytes: 17 bursts, 5 rows.
    assert SMALL.activates(170) == 5
    assert SMALL.transfer_pj(170) == 8 * 170 + 5 * 100
    two = replace(SMALL, channels=2, bandwidth_gb_per_s=2.0)
    # 9 and 8 bursts: 3 and 2 rows.
    assert two.activates(170) == 5
    assert two.activates(np.array([0, 10, 20, 80, 90])).tolist() == [0, 1, 2, 2, 3]
    assert two.transfer_pj(np.array([0, 20])).tolist() == [0.0, 8 * 20 + 2 * 100]
    dram = replace(two, refresh_interval_ns=1000.0, refresh_ns=60.0)
    # 2 mW, and 2 channels * 500 pJ every 1000 ns (1 mW).
    assert dram.standing_mw == 3.0
    assert dram.standing_pj(1e-6) == pytest.approx(3000.0, rel=1e-12)
    assert two.standing_mw == 2.0


def timings():
    ns = st.integers(0, 60).map(float)
    return st.builds(
        replace,
        st.just(SMALL),
        policy=st.sampled_from(["open", "closed"]),
        channels=st.sampled_from([1, 2, 3]),
        bandwidth_gb_per_s=st.sampled_from([0.5, 1.0, 1.7, 4.0]),
        row_bytes=st.sampled_from([10, 20, 40, 70]),
        banks=st.sampled_from([4, 8, 12, 16]),
        open_together=st.sampled_from([1, 2, 4]),
        rcd_ns=ns,
        cl_ns=ns,
        rp_ns=ns,
        ras_ns=st.integers(0, 200).map(float),
        rtp_ns=ns,
        rrd_ns=st.integers(0, 30).map(float),
        faw_ns=st.integers(0, 150).map(float),
    )


def stepped(dram, nbytes, streams):
    """The first channel; whole runs go to the streams in turn, the last one takes the rest."""
    bursts = math.ceil(math.ceil(nbytes / dram.burst_bytes) / dram.channels)
    run = dram.run_bytes(streams) // dram.burst_bytes
    share = [0] * streams
    for index in range(-(-bursts // run)):
        share[index % streams] += min(run, bursts - index * run)
    return step_transfer(dram, share)


@settings(max_examples=300, deadline=None)
@given(timings(), st.integers(1, 1500), st.sampled_from([1, 1, 2, 3]))
def test_the_closed_form_is_the_stepped_time(dram, nbytes, streams):
    assert dram.transfer_ns(nbytes, streams=streams) == stepped(dram, nbytes, streams).ns


@settings(max_examples=300, deadline=None)
@given(
    timings(),
    st.integers(1, 3000),
    st.sampled_from([1, 1, 2, 3]),
    st.integers(0, 100),
    st.integers(1, 900),
)
def test_the_closed_form_with_refresh(dram, nbytes, streams, refresh, more):
    pace = dram.pace(1)
    shortest = pace.drain + refresh + pace.first + pace.run
    dram = replace(
        dram, refresh_ns=float(refresh), refresh_interval_ns=float(math.ceil(shortest) + more)
    )
    closed = dram.transfer_ns(nbytes, streams=streams)
    twin = stepped(dram, nbytes, streams)
    pace = dram.pace(streams)
    if pace.pace == pace.step:
        assert closed == twin.ns
    else:
        # Every refresh lets the next runs be early by less than `early`; time that is gained so
        # saves refreshes, of which one more may be counted.
        early = (pace.sets - 1) * (pace.pace - pace.step)
        gained = (twin.refreshes + 1) * early + pace.lost
        assert twin.ns <= closed <= twin.ns + gained / (1 - pace.lost / pace.interval)


@settings(max_examples=60, deadline=None)
@given(timings(), st.integers(1, 900), st.sampled_from([1, 2]))
def test_the_rows_opened_are_those_of_the_twin(dram, nbytes, streams):
    dram = replace(dram, channels=1)
    assert dram.activates(nbytes, streams=streams) == stepped(dram, nbytes, streams).opens


@settings(max_examples=60, deadline=None)
@given(timings(), st.integers(1, 900))
def test_the_twin_keeps_the_standard(dram, nbytes):
    dram = replace(dram, refresh_interval_ns=3000.0, refresh_ns=50.0)
    trace = step_transfer(dram, [nbytes // 10 + 1]).commands
    opens = sorted(c.ns for c in trace if c.kind == "open")
    assert all(b - a >= dram.rrd_ns for a, b in zip(opens, opens[1:], strict=False))
    assert all(b - a >= dram.faw_ns for a, b in zip(opens, opens[4:], strict=False))
    refreshes = [c.ns for c in trace if c.kind == "refresh"]
    opened_at, closed_at = {}, {}
    for c in trace:
        if c.kind == "open":
            assert c.ns >= closed_at.get(c.bank, Fraction(-1000)) + Fraction(str(dram.rp_ns))
            assert all(c.ns >= r + 50 or c.ns <= r for r in refreshes)
            opened_at[c.bank] = c.ns
        elif c.kind == "read":
            assert c.ns >= opened_at[c.bank] + Fraction(str(dram.rcd_ns))
        elif c.kind == "close":
            assert c.ns >= opened_at[c.bank] + Fraction(str(dram.ras_ns))
            closed_at[c.bank] = c.ns
        else:
            assert c.ns >= max(closed_at.values()) + Fraction(str(dram.rp_ns))


@pytest.mark.parametrize("dram", TIMED, ids=lambda dram: dram.name)
@pytest.mark.parametrize("streams", [1, 4])
def test_named_interfaces_equal_the_twin(dram, streams):
    dram = replace(dram, refresh_interval_ns=0.0)
    for nbytes in (1, dram.burst_bytes * dram.channels * 3, 200_000):
        assert dram.transfer_ns(nbytes, streams=streams) == stepped(dram, nbytes, streams).ns


@pytest.mark.parametrize("dram", TIMED, ids=lambda dram: dram.name)
def test_the_rate_is_that_of_a_long_transfer(dram):
    # A transfer over many refreshes: its rate comes within one refresh and one run of the rate.
    nbytes = dram.channels * 400_000
    twin = stepped(dram, nbytes, 1)
    assert twin.refreshes >= 2
    if dram.policy == "open":
        assert dram.transfer_ns(nbytes) == twin.ns
    rate = dram.effective_bytes_per_cycle(1000)  # bytes a ns
    pace = dram.pace(1)
    spare = pace.lost + pace.first + pace.pace
    assert nbytes / rate <= twin.ns + spare
    if dram.policy == "open":
        assert twin.ns - spare <= nbytes / rate


@pytest.mark.parametrize("dram", DRAMS.values(), ids=lambda dram: dram.name)
def test_the_effective_rate_is_below_the_peak(dram):
    peak = dram.bytes_per_cycle(1000)
    rates = [dram.effective_bytes_per_cycle(1000, streams=streams) for streams in (1, 2, 8, 64)]
    assert all(rate <= peak for rate in rates)
    assert rates == sorted(rates, reverse=True)
    assert (rates[0] < peak) == (dram.policy != "ideal")


def test_the_published_interface_is_ideal():
    dram = DRAMS["ddr4-bitmod"]
    assert dram.effective_bytes_per_cycle(1000, streams=5) == dram.bytes_per_cycle(1000) == 32
    assert (dram.latency_cycles(1000), dram.latency_ns, dram.row_miss_ns) == (0, 0.0, 0.0)
    assert dram.transfer_cycles(1000, 1000) == 32  # 31.25
    assert dram.transfer_pj(8) == 1200.0  # published: 1200 pJ per 64 bits
    assert dram.standing_pj(1.0) == 0.0
    assert dram.activates(1 << 20) == 0


def test_ddr4_3200_by_hand():
    # 64 bytes of a 64-bit bus at 3200 MT/s take 2.5 ns. Two banks of 8 KiB rows alternate
    # (tCCD_L is two bursts): a run is 256 bursts, 640 ns. First data 2.5 + 13.75 + 13.75 ns.
    dram = find_dram("ddr4-3200")
    assert dram.transfer_ns(64) == Fraction("32.5")
    assert dram.transfer_ns(16384 + 64) == Fraction("672.5")
    # A refresh costs 350 + 30 ns, and 7.5 - 13.75 - 2.5 + 13.75 = 5 ns until the rows are closed.
    assert dram.effective_bytes_per_cycle(1000) == Fraction(256, 10) * (1 - Fraction(385, 7800))
    # The rows of two banks open for 16 KiB.
    assert dram.transfer_pj(16384) == 8 * 16384 * 5.4375 + 2 * 4200
    # Closed: four bursts in the window of 21.25 ns.
    closed = find_dram("ddr4-3200-closed")
    lost = 350 + Fraction("13.75") * 3 - Fraction("21.25") / 4 + Fraction("2.5")
    lost += Fraction("2.5")  # 32.5 - 27.5 - 2.5, the longest that a row stays open after its data
    assert closed.effective_bytes_per_cycle(1000) == Fraction(256) / Fraction("21.25") * (
        1 - lost / 7800
    )


def test_energies_from_currents():
    # data/dram.csv names the currents (mA) and the formulas; ddr4-3200: 8 devices at 1.2 V.
    ddr4 = find_dram("ddr4-3200")
    assert 1.2 * (168 - 52) * 2.5 * 8 / 512 == pytest.approx(ddr4.energy_pj_per_bit, rel=1e-12)
    opened = 1.2 * (57 * 46.25 - 52 * 32.5 - 37 * 13.75) * 8
    assert opened == pytest.approx(ddr4.activate_pj, rel=1e-12)
    assert 1.2 * (250 - 52) * 350 * 8 == pytest.approx(ddr4.refresh_pj, rel=1e-12)
    assert 1.2 * 52 * 8 == pytest.approx(ddr4.background_mw, rel=1e-12)
    hbm2, gddr5, lpddr5 = (find_dram(name) for name in ("hbm2", "gddr5", "lpddr5"))
    assert 1.2 * (250 - 55) * 260 == pytest.approx(hbm2.refresh_pj, rel=1e-12)
    assert 1.2 * 55 * 8 == pytest.approx(hbm2.background_mw, rel=1e-12)
    assert 1.5 * (286 - 55) * 37 == pytest.approx(gddr5.refresh_pj, rel=1e-12)
    assert 1.5 * 55 == gddr5.background_mw
    assert 1.2 * (150 - 22) * 196 * 1.07 / 2 == pytest.approx(lpddr5.refresh_pj, rel=1e-12)
    assert 1.2 * 22 == pytest.approx(lpddr5.background_mw, rel=1e-12)


def test_every_interface_keeps_its_sources():
    assert set(DRAMS) == {
        *("ddr4-bitmod", "hbm2", "hbm3", "gddr5", "lpddr4x", "lpddr5"),
        *("ddr4-3200", "ddr4-3200-closed"),
    }
    assert "BitMoD-HPCA-25" in DRAMS["ddr4-bitmod"].source
    for name in ("hbm2", "hbm3", "gddr5", "lpddr4x", "lpddr5"):
        assert "(unverified" in DRAMS[name].source
    for dram in DRAMS.values():
        assert len(dram.timing_source) > 10
        assert len(dram.power_source) > 10
        assert {"authors'", "third", "(unverified)", "(derived)"} & set(
            " ".join((dram.source, dram.timing_source, dram.power_source)).split()
        )


def test_bytes_of_a_cycle_are_exact():
    assert DRAMS["ddr4-bitmod"].bytes_per_cycle(1000) == 32  # 32 GB/s at 1 GHz
    assert DRAMS["hbm2"].bytes_per_cycle(500) == 128
    assert 10 * DRAMS["lpddr5"].bytes_per_cycle(1000) == 256  # 25.6 bytes, not a binary fraction


def test_an_unknown_interface_is_told_the_known_ones():
    with pytest.raises(InputError, match="unknown dram 'hbm'; did you mean .*Known: ddr4-bitmod, "):
        find_dram("hbm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "half"}, "policy of dram 'small' is 'half'; one of ideal, open, closed"),
        ({"bandwidth_gb_per_s": 0.0}, "bandwidth_gb_per_s of dram 'small' is 0.0; above 0 GB/s"),
        ({"channels": 0}, "channels of dram 'small' is 0; at least 1"),
        ({"rcd_ns": -1.0}, "rcd_ns of dram 'small' is -1.0; finite and at least 0"),
        ({"activate_pj": float("nan")}, "activate_pj of dram 'small' is nan; finite"),
        ({"banks": 6}, "banks of dram 'small' is 6; a multiple of 4"),
        ({"open_together": 3}, "open_together of dram 'small' is 3; 1, 2 or 4"),
        ({"row_bytes": 45}, r"row_bytes of dram 'small' is 45; a multiple of burst_bytes \(=10\)"),
        (
            {"refresh_interval_ns": 100.0, "refresh_ns": 60.0},
            "refresh_interval_ns of dram 'small' is 100.0; a refresh and the run before it take "
            "135 ns, leave more",
        ),
    ],
)
def test_bad_interfaces(change, message):
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


def test_bad_transfers():
    with pytest.raises(InputError, match="nbytes is -1; at least 0"):
        SMALL.transfer_ns(-1)
    for call in (
        lambda: SMALL.transfer_ns(1, streams=0),
        lambda: SMALL.effective_bytes_per_cycle(1000, streams=0),
        lambda: SMALL.run_bytes(0),
        lambda: SMALL.pace(0),
        lambda: SMALL.activates(1, streams=0),
        lambda: DRAMS["ddr4-bitmod"].transfer_pj(1, streams=0),
    ):
        with pytest.raises(InputError, match="streams is 0; at least 1"):
            call()
    assert SMALL.transfer_ns(0) == 0
    with pytest.raises(InputError, match="dram 'ddr4-bitmod' is ideal: it has no commands to step"):
        step_transfer(DRAMS["ddr4-bitmod"], [1])
    with pytest.raises(InputError, match="dram 'ddr4-bitmod' is ideal: it has no runs to time"):
        DRAMS["ddr4-bitmod"].pace()
    with pytest.raises(InputError, match=r"bursts is \[\]; a count of at least 0"):
        step_transfer(SMALL, [])
