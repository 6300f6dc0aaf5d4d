"""The loop of a sweep: what is not in the store is computed, chunk by chunk, and stored.

A chunk whose worker died is run again by itself; one that kills its worker again, being alone, is
split in two, and so on down to the point that does it, which is recorded as failed.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitwright.quant import InputError, Progress

from .constraints import Constraint, all_hold
from .executors import Chunk, Executor
from .fields import COLUMNS, RESULTS, SETTINGS, Row
from .point import Plan, Resolver, failed, prepare
from .sampling import sample, varied
from .spec import Spec, Value
from .store import Store

LARGEST_CHUNK = 256
MOST_DEATHS = 30  #: of workers with no point finished in between, see `run_sweep`

#: Called as tell(points done, points wanted, rows that just came).
Tell = Callable[[int, int, Sequence[Row]], None]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep with its points."""

    spec: Spec
    plan: Plan
    names: tuple[str, ...]  #: settings that differ between points
    keys: tuple[str, ...]  #: of the points, in order, each once
    settings: tuple[Row, ...]  #: of the points: values of SETTINGS, resolved
    skipped: int  #: points that a constraint on settings leaves out
    equal: int  #: points that resolve to the settings of an earlier one

    def __len__(self) -> int:
        return len(self.keys)

    def prepared(self, progress: Progress | None = None) -> "Sweep":
        """The same with what many points need, made now: areas of PEs; models are fetched.

        Raises:
            ModelUnavailable: A model is not here and cannot be fetched.
        """
        return replace(self, plan=prepare(self.plan, self.settings, progress))

    def point(self, place: int) -> dict[str, Any]:
        """The settings of a point."""
        return dict(zip(SETTINGS, self.settings[place], strict=True))


def plan_sweep(spec: Spec) -> Sweep:
    """The points of a sweep.

    Raises:
        InputError: No point is left, or there are too many.
    """
    names = varied(spec)
    resolver = Resolver(spec, names)
    before = [rule for rule in spec.parsed_constraints if not rule.on_results]
    points: dict[str, Row] = {}
    sampled = kept = 0
    for values in sample(spec):
        sampled += 1
        settings = resolver.settings(values)
        if before and not all_hold(before, settings):
            continue
        kept += 1
        points.setdefault(resolver.key(settings), tuple(settings.values()))
    if not points:
        rules = " and ".join(repr(rule.text) for rule in before)
        raise InputError(
            f"no point is left: none of {sampled:,} meets {rules}; relax a constraint or an axis"
        )
    return Sweep(
        spec,
        resolver.plan,
        names,
        tuple(points),
        tuple(points.values()),
        skipped=sampled - kept,
        equal=kept - len(points),
    )


def run_sweep(
    sweep: Sweep,
    store: Store,
    executor: Executor,
    *,
    retry_failed: bool = False,
    tell: Tell | None = None,
) -> int:
    """Compute what the store lacks; what comes back is stored at once.

    Args:
        sweep: What is wanted; `store.want(sweep.keys)` was called.
        store: Where rows are, and go.
        executor: Where points run. It is left open.
        retry_failed: Compute points again that failed before.
        tell: Called when rows came.

    Returns:
        How many points were computed.

    Raises:
        InputError: The store cannot be written, the connection to a cluster is lost, or workers
            only die; what is stored stays.
    """
    places = store.missing(retry_failed)
    total = len(sweep)
    done, computed = total - len(places), 0
    if tell:
        tell(done, total, ())
    waiting = deque(_chunks(sweep, places, executor.slots))
    suspects: deque[Chunk] = deque()  # lost with a worker: each runs alone, so that blame is exact
    running = deaths = 0
    alone = False
    while waiting or suspects or running:
        while waiting and not suspects and not alone and running < 2 * executor.slots:
            chunk = _still_missing(store, waiting.popleft())
            done += chunk.gone
            if chunk.points:
                executor.submit(sweep.plan, chunk.points)
                running += 1
        if suspects and not running:
            executor.submit(sweep.plan, suspects.popleft())
            running, alone = 1, True
        if not running:
            continue
        sent, rows = executor.next()
        running -= 1
        deaths = deaths + 1 if rows is None else 0
        if deaths > MOST_DEATHS:
            raise InputError(
                f"workers died {MOST_DEATHS} times in a row and finished no point; see why above, "
                "for example too little memory, and give the same command again"
            )
        if rows is None and not alone:
            suspects.append(sent)
            continue
        was_alone, alone = alone, False
        if rows is None:
            if len(sent) > 1:
                middle = len(sent) // 2
                suspects.extendleft([sent[middle:], sent[:middle]])
                continue
            ((key, values),) = sent
            rows = [failed(key, values, "the worker died, and again with this point alone")]
        store.add(rows, retry_failed)
        done += len(rows)
        computed += len(rows)
        if rest := sent[len(rows) :]:
            (suspects if was_alone else waiting).appendleft(rest)
        if tell:
            tell(done, total, rows)
    if tell:
        tell(total, total, ())
    return computed


def _chunks(sweep: Sweep, places: Sequence[int], slots: int) -> Iterator[Chunk]:
    """Points in order, in chunks that leave each slot several of them."""
    size = min(LARGEST_CHUNK, max(1, math.ceil(len(places) / (4 * slots))))
    for start in range(0, len(places), size):
        yield [(sweep.keys[p], sweep.settings[p]) for p in places[start : start + size]]


@dataclass(frozen=True, slots=True)
class _Missing:
    points: Chunk
    gone: int  #: points that somebody else has stored meanwhile


def _still_missing(store: Store, chunk: Chunk) -> _Missing:
    """A chunk without what another sweep on the same store has added."""
    found = store.has([key for key, _ in chunk])
    return _Missing([point for point in chunk if point[0] not in found], len(found))


# ------------------------------------------------------------------ the best points


class Best:
    """The points that no other beats in all objectives, kept as rows come."""

    def __init__(self, sweep: Sweep) -> None:
        self.objectives = tuple(sweep.spec.objectives)
        self._columns = [COLUMNS.index(name) for name in self.objectives]
        self._signs = [1 if RESULTS[name].best == "least" else -1 for name in self.objectives]
        self._rules = result_rules(sweep.spec)
        self._front: dict[str, tuple[tuple[float, ...], Row]] = {}

    def add(self, rows: Iterable[Row]) -> None:
        """Take rows into account, as far as they are ok and feasible."""
        for row in rows:
            if self.objectives and row[1] == "ok" and feasible(self._rules, row):
                self.take(row)

    def take(self, row: Row) -> None:
        """Take a row into account that is ok and feasible."""
        values = [row[column] for column in self._columns]
        if not values or None in values:
            return
        cost = tuple(sign * value for sign, value in zip(self._signs, values, strict=True))
        if any(_beats(other, cost) for other, _ in self._front.values()):
            return
        self._front = {key: one for key, one in self._front.items() if not _beats(cost, one[0])}
        self._front[row[0]] = (cost, row)

    def rows(self) -> list[Row]:
        """The front, the best in the first objective first; equal ones in the order they came."""
        return [row for _, row in sorted(self._front.values(), key=lambda one: one[0])]


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether a is at least as good in everything and better in something."""
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def result_rules(spec: Spec) -> list[Constraint]:
    """Constraints on results."""
    return [rule for rule in spec.parsed_constraints if rule.on_results]


def feasible(rules: Sequence[Constraint], row: Row) -> bool:
    """Whether a stored row meets constraints on results."""
    return not rules or all_hold(rules, dict(zip(COLUMNS, row, strict=True)))


def label(sweep: Sweep, settings: dict[str, Value]) -> str:
    """A short name of a point: what tells it from the sweep's other points.

    Names stand alone, numbers behind what they are of: "bitmod3 rows=32 hbm2".
    """
    words = []
    for name in sweep.names:
        value = settings[name]
        if name == "algorithm" and "recipe" in sweep.names:
            continue  # the recipe says it
        if value is None or value == "":
            continue
        words.append(value if isinstance(value, str) else f"{name}={value:g}")
    return " ".join(words) or "the only point"
