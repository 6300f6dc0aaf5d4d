"""The loop over executors: the same rows everywhere, dead workers, failures, the best points."""

import itertools
import random
from importlib import import_module

import pytest

from bitwright.experiments import sweep
from bitwright.quant import InputError

executors = import_module("bitwright.experiments.sweep.executors")
points = import_module("bitwright.experiments.sweep.point")

FIXED = {"shape": "smollm2-135m"}
DOCUMENT = {
    "version": 1,
    "fixed": FIXED,
    "axes": {
        "recipe": ["bitmod3", "bitmod4", "w4g128-olive"],
        "rows": [8, 16],
        "cols": [16, 32],
        "weight_buffer_kib": [256, 1],
    },
    "measure": {"area": False},
    "objectives": ["decode_latency_s", "bits_per_weight"],
}


@pytest.fixture(scope="module")
def planned():
    return sweep.plan_sweep(sweep.parse_sweep(DOCUMENT))


def run(planned, executor, path, **options):
    """Rows after a run."""
    with sweep.Store(path) as store:
        store.want(planned.keys)
        sweep.run_sweep(planned, store, executor, **options)
        executor.close()
        return list(store.rows())


@pytest.fixture(scope="module")
def expected(planned, tmp_path_factory):
    rows = run(planned, sweep.Here(), tmp_path_factory.mktemp("here") / "s.sqlite")
    assert [place for place, _ in rows] == list(range(24))
    # olive runs on no bitmod PE, and no tile fits 1 KiB.
    assert sum(row[1] == "ok" for _, row in rows) == 8
    return rows


def test_processes_give_the_rows_of_one_process(planned, expected, tmp_path):
    assert run(planned, sweep.Processes(2), tmp_path / "s.sqlite") == expected


def test_a_second_run_computes_nothing_and_a_retry_only_failures(planned, expected, tmp_path):
    path = tmp_path / "s.sqlite"
    run(planned, sweep.Here(), path)
    with sweep.Store(path) as store:
        store.want(planned.keys)
        assert sweep.run_sweep(planned, store, sweep.Here()) == 0
        assert sweep.run_sweep(planned, store, sweep.Here(), retry_failed=True) == 16
        assert list(store.rows()) == expected


def test_no_workers_are_a_mistake():
    with pytest.raises(InputError, match="--workers is 0; at least 1"):
        sweep.Processes(0)


def test_a_failure_that_went_away_is_replaced_on_request(planned, expected, tmp_path):
    path = tmp_path / "s.sqlite"
    with sweep.Store(path) as store:
        store.want(planned.keys)
        key, settings = planned.keys[0], planned.settings[0]
        store.add([executors_failed(key, settings)])
        sweep.run_sweep(planned, store, sweep.Here())
        assert dict(store.rows())[0][1:3] == ("failed", "once")
        sweep.run_sweep(planned, store, sweep.Here(), retry_failed=True)
        assert list(store.rows()) == expected


def executors_failed(key, settings):
    return points.failed(key, settings, "once")


def test_points_that_another_sweep_stores_meanwhile_are_not_computed(planned, expected, tmp_path):
    class Meddling(sweep.Here):
        """Somebody else stores later points while the first ones run."""

        def next(self):
            with sweep.Store(path) as other:
                other.add([row for _, row in expected[12:18]])
            return super().next()

    path = tmp_path / "s.sqlite"
    told = []
    with sweep.Store(path) as store:
        store.want(planned.keys)
        computed = sweep.run_sweep(
            planned, store, Meddling(), tell=lambda done, total, rows: told.append((done, total))
        )
        # The first two chunks of six are under way; a failed row of theirs is computed again.
        again = sum(row[1] == "failed" for _, row in expected[12:18])
        assert computed == 18 + again < 24
        assert list(store.rows()) == expected
    assert told[0] == (0, 24) and told[-1] == (24, 24)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


# ------------------------------------------------------------------ workers that die


class Simulated:
    """An executor whose workers die of certain points, and at times of nothing."""

    slots = 3

    def __init__(self, deadly=(), unlucky=0, seed=0):
        self.deadly, self.unlucky = set(deadly), unlucky
        self.rng = random.Random(seed)
        self.queue, self.lost, self.most = [], [], 0

    def submit(self, plan, chunk):
        self.queue.append((plan, chunk))
        self.most = max(self.most, len(self.queue))

    def next(self):
        if self.lost:
            return self.lost.pop(), None
        plan, chunk = self.queue.pop(self.rng.randrange(len(self.queue)))
        dies = any(key in self.deadly for key, _ in chunk)
        if not dies and self.unlucky and self.rng.random() < 0.3:
            self.unlucky -= 1
            dies = True
        if dies:  # as with a pool of processes, all that runs goes with it
            self.lost = [other for _, other in self.queue]
            self.queue = []
            return chunk, None
        return chunk, sweep.run_chunk(plan, chunk, 0.0 if self.rng.random() < 0.3 else 9.0)

    def close(self):
        pass


def test_workers_that_only_die_end_the_sweep_in_one_line(planned, tmp_path):
    with pytest.raises(InputError) as told:
        run(planned, Simulated(planned.keys), tmp_path / "s.sqlite")
    assert str(told.value).startswith("workers died 30 times in a row and finished no point")
    with sweep.Store(tmp_path / "s.sqlite") as store:
        store.want(planned.keys)
        # What was blamed until then stays on record.
        assert all(row[1] == "failed" for _, row in store.rows())


@pytest.mark.parametrize("bad", [(), (0,), (23,), (3, 4, 17)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_blame_falls_on_the_point_that_kills_its_worker(bad, seed, planned, expected, tmp_path):
    """Chunks come back in any order, in parts, or not at all."""
    executor = Simulated([planned.keys[place] for place in bad], seed=seed)
    rows = run(planned, executor, tmp_path / "s.sqlite")
    for place, row in rows:
        if place in bad:
            assert row[1:3] == ("failed", "the worker died, and again with this point alone")
        else:
            assert row == expected[place][1]
    assert [place for place, _ in rows] == list(range(24)) and executor.most <= 6


def test_a_worker_killed_from_outside_costs_no_point(planned, expected, tmp_path):
    """The chunk that was running is run again, alone."""
    assert run(planned, Simulated(unlucky=1, seed=5), tmp_path / "s.sqlite") == expected


DEADLY = """
import os, signal
from bitwright.experiments import sweep


def run(plan, chunk, seconds):
    if any(key == {key!r} for key, _ in chunk):
        os.kill(os.getpid(), signal.SIGKILL)
    return sweep.run_chunk(plan, chunk, seconds)
"""


@pytest.mark.slow
def test_processes_that_die_are_replaced(planned, expected, tmp_path, monkeypatch):
    """A worker is killed in the middle, and one point kills every worker that takes it."""
    import multiprocessing

    bad = 5
    (tmp_path / "deadly_chunks.py").write_text(DEADLY.format(key=planned.keys[bad]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(executors, "run_chunk", import_module("deadly_chunks").run)
    executor = sweep.Processes(2)
    killed = []

    def tell(done, total, rows):
        if rows and not killed:
            victims = [p for p in multiprocessing.active_children() if p.is_alive()]
            victims[0].kill()
            killed.append(victims[0].pid)

    with sweep.Store(tmp_path / "s.sqlite") as store:
        store.want(planned.keys)
        sweep.run_sweep(planned, store, executor, tell=tell)
        executor.close()
        rows = list(store.rows())
    assert killed and len(rows) == 24
    assert rows[bad][1][1:3] == ("failed", "the worker died, and again with this point alone")
    assert rows[:bad] + rows[bad + 1 :] == expected[:bad] + expected[bad + 1 :]
    assert multiprocessing.active_children() == []


# ------------------------------------------------------------------ the best points


def best_of(rows, objectives=("decode_latency_s", "decode_tokens_per_s"), constraints=()):
    spec = sweep.parse_sweep(
        {**DOCUMENT, "objectives": list(objectives), "constraints": list(constraints)}
    )
    best = sweep.Best(sweep.plan_sweep(spec))
    for row in rows:  # one at a time, as they come
        best.add([row])
    return [row[0] for row in best.rows()]


def result(key, latency, rate, status="ok"):
    values = dict.fromkeys(sweep.COLUMNS)
    values |= {"key": key, "status": status}
    values |= {"decode_latency_s": latency, "decode_tokens_per_s": rate}
    return tuple(values.values())


def test_the_best_by_hand():
    rows = [
        result("slow, bad", 3.0, 1.0),
        result("fast, bad", 1.0, 2.0),
        result("slow, good", 2.0, 9.0),
        result("beaten", 2.5, 8.0),
        result("equal", 1.0, 2.0),
        result("failed", 0.1, 99.0, "failed"),
        result("unknown", 0.1, None),
    ]
    for order in itertools.permutations(rows[:5]):
        equal = sorted(("fast, bad", "equal"), key=[row[0] for row in order].index)
        assert best_of([*order, *rows[5:]]) == [*equal, "slow, good"]
    assert best_of(rows, objectives=()) == []
    assert best_of(rows, constraints=["decode_latency_s > 1"]) == ["slow, good"]


def test_the_front_is_that_of_all_pairs():
    rng = random.Random(0)
    rows = [result(str(i), rng.randrange(12), rng.randrange(12)) for i in range(200)]
    latency, rate = map(sweep.COLUMNS.index, ("decode_latency_s", "decode_tokens_per_s"))
    costs = {row[0]: (row[latency], -row[rate]) for row in rows}

    def beaten(key):
        a = costs[key]
        return any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in costs.values())

    assert sorted(best_of(rows)) == sorted(key for key in costs if not beaten(key))


def test_labels_say_what_differs(planned):
    assert sweep.label(planned, planned.point(0)) == (
        "w3g128-bitmod rows=8 cols=16 weight_buffer_kib=256"
    )
    spec = {**DOCUMENT, "axes": {"recipe": ["bitmod4"], "algorithm": ["", "awq"], "kv": ["fp16"]}}
    two = sweep.plan_sweep(sweep.parse_sweep(spec))
    assert [sweep.label(two, two.point(place)) for place in range(2)] == [
        "w4g128-bitmod fp16",
        "w4g128-bitmod+awq fp16",
    ]
