"""The array engine's model: by hand, twins, closed form, jobs."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.quant import InputError
from bitwright.sim import ArrayConfig, Job, Ports, array, array_cycles, run_array

State, run_reference = array.State, array.run_reference

FIFO = {"x_window": 1, "x_uses": 1, "w_window": 1, "w_uses": 1}


# ------------------------------------------------------------------ by hand


def test_two_steps_by_hand():
    """2 x 2 PEs of latency 2, one tile of two steps, everything offered from cycle 0 on.

    Job and first words are taken in cycle 0. Words can be used from cycle 2 on, so cycle 1 is FILL
    and cycles 2 and 3 compute. The sums leave the PEs in 3 + 2 = 5, the column unit takes row 0 in
    6 and row 1 in 7, and they leave in 7 and 8.
    """
    config = ArrayConfig(rows=2, cols=2, latency=2)
    run = run_array(config, [Job(1, 1, 2, 2, **FIFO)], trace=True)
    assert run.job.tolist() == [0]
    assert run.x.tolist() == run.w.tolist() == [0, 1]
    assert run.trace.tolist() == [State.IDLE, State.FILL, *[State.COMPUTE] * 2, *[State.IDLE] * 5]
    assert run.y.tolist() == [7, 8]
    assert run.cycles == 9


def test_a_short_group_waits_for_the_scale_unit_by_hand():
    """Groups of one step, a scale unit of 8 cycles: the ends lie 8 cycles apart, in 2, 10, 18."""
    config = ArrayConfig(rows=2, cols=2, latency=11, scale_cycles=8, per_group=False)
    run = run_array(config, [Job(1, 3, 1, 1, **FIFO)], trace=True)
    assert np.flatnonzero(run.trace == State.COMPUTE).tolist() == [2, 10, 18]
    assert run.states[State.SCALE] == 14
    # 18 + 11 is the scale unit's product, then the two rows and the port.
    assert run.y.tolist() == [18 + 11 + 2, 18 + 11 + 3]


def test_a_slow_port_is_told_from_an_idle_one():
    """Weights come every third cycle: of two waits for a word one sees it arrive, or on its way."""
    config = ArrayConfig(rows=1, cols=1, latency=1)
    run = run_array(config, [Job(1, 1, 3, 3, **FIFO)], Ports(w=(0, 2, 2)), trace=True)
    assert run.w.tolist() == [0, 3, 6]
    # Words can be used in 2, 5 and 8: in 3 a word is being taken, in 4 it is on its way.
    names = [State(state).name for state in run.trace[2:9]]
    assert names == [
        *("COMPUTE", "BANDWIDTH", "OPERAND", "COMPUTE", "BANDWIDTH", "OPERAND", "COMPUTE")
    ]


def test_a_full_result_buffer_holds_the_array_up():
    """Room for one row, taken ten cycles after it is offered: the second tile's end waits."""
    config = ArrayConfig(rows=1, cols=1, latency=1, result_rows=1)
    run = run_array(config, [Job(2, 1, 1, 1, **FIFO)], Ports(y=(14,)), trace=True)
    # Ends in 2; the row leaves the PE in 3, is stored in 4 and taken in 14, its first moment.
    assert run.y.tolist() == [14, 29]
    # The next end is issued once the room is free, the cycle after.
    assert np.flatnonzero(run.trace == State.COMPUTE).tolist() == [2, 15]
    assert run.states[State.DRAIN] == 12


def test_a_window_is_read_again_without_its_port():
    """Two tiles of two steps: the weights stay, the activations of the second tile arrive."""
    config = ArrayConfig(rows=1, cols=1, latency=1, x_depth=4, w_depth=4)
    job = Job(2, 1, 2, 2, x_window=2, x_uses=1, w_window=2, w_uses=2)
    run = run_array(config, [job], trace=True)
    assert (len(run.x), len(run.w)) == (4, 2)
    assert np.flatnonzero(run.trace == State.COMPUTE).tolist() == [2, 3, 4, 5]


def test_planes_by_hand():
    """Two activation planes and three weight planes: six beats a step, two and three words."""
    config = ArrayConfig(rows=1, cols=1, latency=2)
    job = Job(1, 1, 2, 2, 2, 1, 3, 1, x_words=2, w_words=3)
    run = run_array(config, [job])
    assert (len(run.x), len(run.w), run.states[State.COMPUTE]) == (4, 6, 12)
    # The third weight word is taken in cycle 2 and can be used in 4: beats 4 .. 15.
    assert run.y.tolist() == [15 + 2 + 2]


# ------------------------------------------------------------------ twins


@st.composite
def configs(draw):
    return ArrayConfig(
        rows=draw(st.integers(1, 5)),
        cols=draw(st.integers(1, 3)),
        latency=draw(st.integers(1, 12)),
        scale_cycles=draw(st.sampled_from([0, 0, 8])),
        per_group=draw(st.booleans()),
        x_depth=draw(st.sampled_from([8, 16, 64, 256])),
        w_depth=draw(st.sampled_from([8, 16, 64, 256])),
        result_rows=draw(st.sampled_from([0, 0, 8, 16])),
    )


@st.composite
def jobs(draw, config):
    shape = array.jobs.TileShape(
        draw(st.integers(1, 4)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
        *draw(st.sampled_from([(1, 1, 1), (1, 1, 2), (1, 1, 4), (2, 3, 1), (4, 2, 1)])),
    )
    if shape.groups > 1:
        shape = replace(shape, last_steps=min(shape.last_steps, shape.steps))
    order = draw(st.sampled_from(array.jobs.ORDERS))
    m_tiles, n_tiles = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    try:
        return array.jobs.plan_jobs(config, m_tiles, n_tiles, shape, order).jobs
    except InputError:
        return array.jobs.plan_jobs(config, m_tiles, n_tiles, shape, "stream").jobs


gaps = st.lists(st.sampled_from([0, 0, 0, 1, 2, 7]), min_size=1, max_size=6).map(tuple)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_fast_twin_gives_every_event_the_same_cycle(data):
    config = data.draw(configs())
    work = [job for _ in range(data.draw(st.integers(1, 3))) for job in data.draw(jobs(config))]
    ports = Ports(*(data.draw(gaps) for _ in range(4)))
    assert run_array(config, work, ports, trace=True).equals(run_reference(config, work, ports))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_the_closed_form_is_exact_or_bounds_the_stepped_model(data):
    config = data.draw(configs())
    job = data.draw(jobs(config))[0]
    x, w = data.draw(st.tuples(*[st.sampled_from([1, 1, 2, 3, 7])] * 2))
    # The first word of a port comes at once, the others one interval apart.
    ports = Ports(x=(0, *[x - 1] * job.words("x")), w=(0, *[w - 1] * job.words("w")))
    run, closed = (
        run_array(config, [job], ports),
        array_cycles(config, job, x_interval=x, w_interval=w),
    )
    assert closed.low <= run.cycles <= closed.high
    assert closed.cycles == closed.fill + closed.beats + closed.waits + closed.tail
    if closed.exact:
        assert run.cycles == closed.cycles
        states = {state.name: int(run.states[state]) for state in State}
        assert states["COMPUTE"] == closed.beats
        assert states["FILL"] + 1 == closed.fill
        waits = states["OPERAND"] + states["BANDWIDTH"] + states["SCALE"] + states["DRAIN"]
        assert waits == closed.waits


def test_ports_at_full_speed_make_the_closed_form_exact():
    """With windows that fit twice, and no slow port, no assumption is left."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        config = ArrayConfig(int(rng.integers(1, 9)), 4, 11, 8, False, 4096, 4096)
        shape = array.jobs.TileShape(int(rng.integers(1, 9)), 32, int(rng.integers(1, 33)), terms=2)
        order = array.jobs.ORDERS[int(rng.integers(3))]
        m_tiles, n_tiles = int(rng.integers(1, 5)), int(rng.integers(1, 9))
        (job, *rest) = array.jobs.plan_jobs(config, m_tiles, n_tiles, shape, order).jobs
        assert not rest
        closed = array_cycles(config, job)
        assert closed.exact
        assert closed.cycles == run_array(config, [job]).cycles


def test_the_closed_form_says_when_an_assumption_fails():
    config = ArrayConfig(rows=1, cols=1, latency=1, x_depth=8, w_depth=8)
    ample = Job(4, 1, 3, 3, x_window=3, x_uses=1, w_window=3, w_uses=4)
    assert array_cycles(config, ample).exact
    # A window that does not fit twice; one that is read twice and arrives slower than it is used.
    tight = Job(4, 1, 3, 3, x_window=6, x_uses=1, w_window=3, w_uses=4)
    assert not array_cycles(config, tight).exact
    assert not array_cycles(config, ample, w_interval=2).exact
    assert array_cycles(config, ample, x_interval=2).exact  # read once: a plain stream


# ------------------------------------------------------------------ jobs


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 5),
    st.sampled_from(array.jobs.ORDERS),
)  # fmt: skip
def test_a_plan_computes_every_tile_once(m_tiles, n_tiles, groups, steps, order):
    config = ArrayConfig(rows=2, cols=2, latency=2, x_depth=32, w_depth=16)
    shape = array.jobs.TileShape(groups, steps, steps)
    plan = array.jobs.plan_jobs(config, m_tiles, n_tiles, shape, order)
    assert sorted(plan.tiles) == [(i, j) for i in range(m_tiles) for j in range(n_tiles)]
    assert sum(job.tiles for job in plan.jobs) == m_tiles * n_tiles
    for operand, tiles in (("x", plan.x_tiles), ("w", plan.w_tiles)):
        assert sum(job.words(operand) for job in plan.jobs) == len(tiles) * shape.all_steps
    fetched = {"activations": plan.x_tiles, "weights": plan.w_tiles}.get(order)
    if fetched is not None:  # what stays is fetched once
        assert sorted(fetched) == list(range(len(fetched)))


def test_a_plan_fetches_what_the_port_must_carry():
    """4 x 2 tiles of 6 steps; two of the activation tiles fit a buffer of 32 words twice."""
    config = ArrayConfig(rows=1, cols=1, latency=1, x_depth=32, w_depth=16)
    plan = array.jobs.plan_jobs(config, 4, 2, array.jobs.TileShape(1, 6, 6), "activations")
    assert plan.x_tiles == (0, 1, 2, 3)
    assert plan.w_tiles == (0, 1, 0, 1)
    assert plan.tiles == ((0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0), (2, 1), (3, 1))
    (job,) = plan.jobs
    assert (job.x_window, job.x_uses, job.w_window, job.w_uses) == (12, 2, 6, 2)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ArrayConfig(0, 1, 1), "rows is 0; at least 1"),
        (lambda: ArrayConfig(1, 1, 1, x_depth=12), "x_depth is 12; a power of two, 4 .. 32768"),
        (
            lambda: ArrayConfig(4, 1, 1, result_rows=2),
            "result_rows is 2; a power of two of at least 4 rows",
        ),
        (lambda: Job(0, 1, 1, 1, **FIFO), "job field tiles is 0; 1 .. 65535"),
        (
            lambda: Job(1 << 16, 1, 1, 1, **FIFO),
            "job field tiles is 65536; 1 .. 65535; split the product into several jobs",
        ),
        (
            lambda: Job(1, 1, 2, 2, 3, 1, 2, 1),
            "job reads 2 x words, which is no whole number of windows of 3 words used 1 times",
        ),
        (
            lambda: Job(1, 1, 1, 1, 1, 1, 2, 1, x_words=2),
            "job field x_window is 1; a multiple of a step's 2 words",
        ),
        (
            lambda: run_array(ArrayConfig(1, 1, 1, x_depth=4), [Job(1, 1, 8, 8, 8, 1, 8, 1)]),
            "job field x_window is 8 words; the x buffer holds 4, so read a smaller window more "
            "often",
        ),
        (lambda: run_array(ArrayConfig(1, 1, 1), []), "no jobs; at least one"),
        (
            lambda: Ports(x=(-1,)).arrays(),
            "gaps of port x are (-1,); a list of numbers >= 0",
        ),
        (
            lambda: array_cycles(ArrayConfig(1, 1, 1), Job(1, 1, 1, 1, **FIFO), x_interval=0),
            "x_interval is 0; at least 1 cycle",
        ),
        (
            lambda: array.jobs.plan_jobs(
                ArrayConfig(1, 1, 1, x_depth=4), 1, 1, array.jobs.TileShape(1, 9, 9), "activations"
            ),
            "x_depth is 4 words; one tile takes 9, so make the buffer larger or stream "
            "(order='stream')",
        ),
        (
            lambda: array.jobs.plan_jobs(
                ArrayConfig(1, 1, 1), 1, 1, array.jobs.TileShape(1, 1, 1), cast(Any, "outputs")
            ),
            "order is 'outputs'; one of activations, weights, stream",
        ),
    ],
)
def test_errors(make, text):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == text


def test_states_are_those_of_the_port():
    assert [state.name.lower() for state in array.State] == [
        *("idle", "fill", "compute", "operand", "bandwidth", "scale", "drain")
    ]
