"""How long the bit-serial PE takes on real weights if it leaves out terms that are zero.

The fixed schedule gives every step of `lanes` weights as many cycles as the format has terms. How
many of those are needed depends on the codes. A step never takes less than one cycle: it carries
the activations on. Three *modes*:

- "fixed": the format's terms, as the PE of docs/numerics.md.
- "significance": a term cycle is needed if any lane has a live term at that bit significance. The
  PE stays as it is, its encoder picks the next significance wanted. A term cycle without a live
  lane adds 0 to the accumulator and moves neither its bits nor its exponent, so results stay the
  same bit for bit.
- "lanes": the largest number of live terms among the lanes; every lane sends its own next term
  with a significance of its own. This is another PE: four shifters and a wider lane sum, and sums
  in another order. Its cycles are a bound on what skipping by term can give, its values are not
  those of docs/numerics.md.

The columns of an array hold different output channels, hence different terms, but share the
activations of a row. How far they may run apart is the *synchronisation*:

- "shared": one term counter for all columns; a significance drops out only where no lane of any
  column needs it ("lanes": the largest count of all).
- "step": each column skips by itself (one encoder a column, BitMoD, Fig. 6), and the next
  activations come when the slowest column is done. Needs no more than a common `ready`.
- "group": columns run apart and meet at the end of a group; each needs a queue of activations.
- "tile": they meet at the end of the dot product, when the tile's results drain.
- "none": they never meet and share the work evenly. No array does this; it is a bound.

All PEs of a column share its terms, so the rows (tokens) do not matter. A group closes at least
`spacing` cycles after the one before (scale unit, shared column accumulator; docs/numerics.md,
Timing), so skipping cannot make a group shorter than that. The first group of a tile is taken to
follow a group that has just closed; a stalled or starting array is the business of `array` and
`accelerator`.

`term_beats` counts one row of output tiles, all channels of a tensor; `layer_term_statistics` does
it for every layer of a model, with the distribution behind the number.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numba import njit

from bitwright.quant import InputError, QuantizedTensor
from bitwright.sim import (
    INT,
    SCALE_CYCLES,
    encode_terms,
    format_mode,
    special_registers,
    term_table,
)

if TYPE_CHECKING:
    from bitwright.quant import LanguageModel, Progress, Recipe

Mode = Literal["fixed", "significance", "lanes"]
Sync = Literal["shared", "step", "group", "tile", "none"]

LANES = 4  #: weights of one step of the PE
#: Number of set bits of a pattern of at most four terms.
_ONES = np.array([mask.bit_count() for mask in range(16)], np.uint8)


def check_modes(mode: str, sync: str) -> None:
    """Refuse an unknown mode or synchronisation.

    Raises:
        InputError: One of them is unknown; the known ones are told.
    """
    for what, value, known in (("mode", mode, get_args(Mode)), ("sync", sync, get_args(Sync))):
        if value not in known:
            raise InputError(f"{what} is {value!r}; one of {', '.join(known)}")


def _check_sizes(cols: int, spacing: int) -> None:
    if cols < 1:
        raise InputError(f"cols is {cols}; at least 1 output channel side by side")
    if spacing < 0:
        raise InputError(f"spacing is {spacing}; at least 0 cycles")


# ------------------------------------------------------------------ one pass over the codes


class StepTerms(NamedTuple):
    """What the steps of a tensor need; steps as the PE takes them, each group padded with zeros."""

    terms: int  #: term cycles of a step in the fixed schedule
    masks: np.ndarray  #: uint8 [n, steps]: bit t is set if a lane has a live term t
    most: np.ndarray  #: uint8 [n, steps]: largest number of live terms among the lanes
    group_starts: np.ndarray  #: int64 [groups]: first step of each group
    weights_by_terms: np.ndarray  #: int64 [terms + 1]: weights with so many live terms

    def costs(self, mode: Mode) -> np.ndarray:
        """Cycles of every step of every channel on its own: uint8 [n, steps], 1 .. `terms`."""
        if mode == "fixed":
            return np.full_like(self.masks, self.terms)
        return np.maximum(_ONES[self.masks] if mode == "significance" else self.most, 1)


def step_terms(qt: QuantizedTensor) -> StepTerms:
    """The live terms of a tensor, step by step.

    Raises:
        InputError: The bit-serial PE does not run the format.
    """
    mode, terms = format_mode(qt.format)
    table = term_table(mode, terms, special_registers(qt.format)) != 0
    masks = (table << np.arange(terms)).sum(2).astype(np.uint8)
    if mode == INT and qt.format.kind == "int-sym":
        # The table is indexed by 8-bit patterns; codes have the format's width.
        half = 1 << qt.format.bits - 1
        masks = masks[:, ((np.arange(256) & 2 * half - 1) ^ half) - half & 0xFF]
    none = np.zeros((qt.n, qt.groups), np.uint8)
    sizes = [min(qt.group_size, qt.k - start) for start in range(0, qt.k, qt.group_size)]
    steps = [-(-size // LANES) for size in sizes]
    shape = qt.n, sum(steps)
    union, most = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
    weights_by_terms = np.zeros(terms + 1, np.int64)
    _scan(
        np.ascontiguousarray(qt.codes),
        none if qt.zero_points is None else np.ascontiguousarray(qt.zero_points),
        none if qt.selectors is None or mode == INT else np.ascontiguousarray(qt.selectors),
        masks,
        _ONES,
        qt.group_size,
        union,
        most,
        weights_by_terms,
    )
    starts = np.cumsum([0, *steps[:-1]])
    return StepTerms(terms, union, most, starts, weights_by_terms)


@njit(cache=True)
def _scan(codes, zeros, selectors, masks, ones, group_size, union, most, weights_by_terms):  # type: ignore[no-untyped-def]
    """Fill union and most [n, steps] and weights_by_terms [terms + 1]; see `StepTerms`."""
    n, k = codes.shape
    for row in range(n):
        step = 0
        for group in range(zeros.shape[1]):
            stop = min((group + 1) * group_size, k)
            zero, table = zeros[row, group], masks[selectors[row, group]]
            for start in range(group * group_size, stop, LANES):
                wanted, largest = np.uint8(0), np.uint8(0)
                for column in range(start, min(start + LANES, stop)):
                    mask = table[np.uint8(codes[row, column] - zero)]
                    count = ones[mask]
                    weights_by_terms[count] += 1
                    wanted |= mask
                    largest = max(largest, count)
                union[row, step] = wanted
                most[row, step] = largest
                step += 1


# ------------------------------------------------------------------ beats of an array


def term_beats(
    qt: QuantizedTensor,
    cols: int,
    mode: Mode = "significance",
    sync: Sync = "step",
    *,
    spacing: int = SCALE_CYCLES,
) -> int:
    """Cycles that an array needs for all output channels of a tensor, for one tile of tokens.

    The exact sum over output tiles and steps; see the top of this module.

    Args:
        qt: Weights [n, k].
        cols: Output channels side by side; the last tile of n channels may have fewer.
        mode: What a column leaves out.
        sync: How far columns run apart.
        spacing: Least cycles from the end of one group to that of the next; 0: none.

    Raises:
        InputError: Unknown mode or sync, sizes out of range, or a format that the PE does not run.

    >>> from bitwright.quant import quantize
    >>> qt = quantize(np.eye(4), "int8-sym", group_size=4)  # a row has one 127 = 128 - 1
    >>> [term_beats(qt, 2, mode, spacing=0) for mode in ("fixed", "significance")]
    [8, 4]
    """
    check_modes(mode, sync)
    _check_sizes(cols, spacing)
    return _beats(step_terms(qt), cols, mode, sync, spacing)


def _beats(steps: StepTerms, cols: int, mode: Mode, sync: Sync, spacing: int) -> int:
    tiles = np.arange(0, len(steps.masks), cols)
    costs = steps.costs(mode)
    if sync in ("shared", "step"):
        costs = _array_costs(steps, tiles, mode, sync)  # [tiles, steps]
    groups = np.add.reduceat(costs, steps.group_starts, axis=1, dtype=np.int64)
    if sync == "group":
        groups = np.maximum.reduceat(groups, tiles, axis=0)  # [tiles, groups]
    lengths = np.maximum(groups, spacing).sum(axis=1)
    if sync == "tile":
        lengths = np.maximum.reduceat(lengths, tiles)
    total = int(lengths.sum())
    return -(-total // cols) if sync == "none" else total


def _array_costs(steps: StepTerms, tiles: np.ndarray, mode: Mode, sync: Sync) -> np.ndarray:
    """Cycles of every step of every output tile whose columns step together: [tiles, steps]."""
    if sync == "shared" and mode == "significance":
        return np.maximum(_ONES[np.bitwise_or.reduceat(steps.masks, tiles, axis=0)], 1)
    return np.maximum.reduceat(steps.costs(mode), tiles, axis=0)


def term_beats_reference(
    qt: QuantizedTensor,
    cols: int,
    mode: Mode = "significance",
    sync: Sync = "step",
    *,
    spacing: int = SCALE_CYCLES,
) -> int:
    """`term_beats` in plain Python, weight by weight through the PE's encoder; for small cases."""
    check_modes(mode, sync)
    _check_sizes(cols, spacing)
    total = 0
    for first in range(0, qt.n, cols):
        columns = [_wanted(qt, row) for row in range(first, min(first + cols, qt.n))]
        if sync == "none":
            for column in columns:
                total += sum(max(sum(_cost(s, mode, qt) for s in g), spacing) for g in column)
        elif sync == "tile":
            total += max(
                sum(max(sum(_cost(s, mode, qt) for s in g), spacing) for g in column)
                for column in columns
            )
        else:
            for groups in zip(*columns, strict=True):
                if sync == "group":
                    cycles = max(sum(_cost(s, mode, qt) for s in group) for group in groups)
                else:
                    cycles = sum(
                        # All lanes of all columns as if they were those of one column.
                        _cost([lane for step in side_by_side for lane in step], mode, qt)
                        if sync == "shared"
                        else max(_cost(step, mode, qt) for step in side_by_side)
                        for side_by_side in zip(*groups, strict=True)
                    )
                total += max(cycles, spacing)
    return -(-total // cols) if sync == "none" else total


def _wanted(qt: QuantizedTensor, row: int) -> list[list[list[set[int]]]]:
    """Terms that are live, by group, step and lane of one channel."""
    mode, terms = format_mode(qt.format)
    special = special_registers(qt.format)
    groups = []
    for group in range(qt.groups):
        start, stop = group * qt.group_size, min((group + 1) * qt.group_size, qt.k)
        zero = 0 if qt.zero_points is None else int(qt.zero_points[row, group])
        word = special[0 if qt.selectors is None else int(qt.selectors[row, group])]
        lanes = []
        for column in range(start, stop):
            code = int(qt.codes[row, column])
            if qt.format.kind == "int-sym" and code >> qt.format.bits - 1:
                code += 256 - (1 << qt.format.bits)
            sent = encode_terms(mode, terms, code, zero, word)
            lanes.append({t for t, term in enumerate(sent) if term.live})
        groups.append([lanes[i : i + LANES] for i in range(0, len(lanes), LANES)])
    return groups


def _cost(lanes: Sequence[set[int]], mode: Mode, qt: QuantizedTensor) -> int:
    if mode == "fixed":
        return format_mode(qt.format)[1]
    if mode == "significance":
        return max(len(set().union(*lanes)), 1)
    return max(1, *(len(lane) for lane in lanes))


# ------------------------------------------------------------------ the layers of a model


@dataclass(frozen=True, slots=True)
class TermStatistics:
    """One layer under one mode and synchronisation: the distribution, and what it comes to.

    "steps" are those of a channel on its own; "array steps" those of a whole tile of columns,
    which exist only where the columns step together.
    """

    layer: str
    n: int
    k: int
    mode: Mode
    sync: Sync
    beats: int  #: cycles for all channels and one tile of tokens
    fixed_beats: int  #: the same in the fixed schedule
    weights_by_terms: tuple[int, ...]  #: weights with 0, 1, 2, ... live terms
    steps_by_cost: tuple[int, ...]  #: steps that take 0, 1, 2, ... cycles
    array_steps_by_cost: tuple[int, ...] | None  #: the same of a tile; None: no common step
    occupancy: float  #: part of the columns' cycles spent on their own steps, not waiting
    utilisation: float  #: part of the lanes' cycles with a live term

    @property
    def ratio(self) -> Fraction:
        """Cycles over those of the fixed schedule, exactly."""
        return Fraction(self.beats, self.fixed_beats)

    @property
    def speedup(self) -> float:
        """What skipping gives: cycles of the fixed schedule over these."""
        return self.fixed_beats / self.beats

    @property
    def terms_per_weight(self) -> float:
        """Mean number of live terms."""
        return _mean(self.weights_by_terms)

    @property
    def step_mean(self) -> float:
        """Mean cycles of a step."""
        return _mean(self.steps_by_cost)

    def step_quantile(self, part: float) -> int:
        """Least cost that at least this part of the steps do not exceed (0.5: the median)."""
        return histogram_quantile(self.steps_by_cost, part)

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return {
            **asdict(self),
            "weights_by_terms": list(self.weights_by_terms),
            "steps_by_cost": list(self.steps_by_cost),
            "array_steps_by_cost": None
            if self.array_steps_by_cost is None
            else list(self.array_steps_by_cost),
            "terms_per_weight": self.terms_per_weight,
            "step_mean": self.step_mean,
            "step_p50": self.step_quantile(0.5),
            "step_p95": self.step_quantile(0.95),
            "step_max": self.step_quantile(1.0),
            "speedup": self.speedup,
        }


def histogram_quantile(counts: Sequence[int], part: float) -> int:
    """Least index such that the counts up to it make at least this part of all.

    >>> [histogram_quantile((0, 5, 4, 1), part) for part in (0.5, 0.9, 0.95, 1.0)]
    [1, 2, 3, 3]
    """
    wanted, seen = Fraction(str(part)) * sum(counts), 0
    for index, count in enumerate(counts):
        seen += count
        if seen >= wanted and seen:
            return index
    raise InputError(f"part is {part}; above 0 and at most 1, of a histogram that is not empty")


def _mean(counts: Sequence[int]) -> float:
    return sum(index * count for index, count in enumerate(counts)) / sum(counts)


@dataclass(frozen=True, slots=True)
class TermReport:
    """The layers of one model under one recipe."""

    model: str
    recipe: str
    cols: int
    spacing: int
    layers: tuple[TermStatistics, ...]  #: layer by layer, and for each mode and sync in turn

    def select(self, mode: Mode, sync: Sync) -> tuple[TermStatistics, ...]:
        """The layers under one mode and synchronisation.

        Raises:
            InputError: The report does not have it.
        """
        check_modes(mode, sync)
        found = tuple(row for row in self.layers if (row.mode, row.sync) == (mode, sync))
        if not found:
            raise InputError(f"the report has no {mode} terms with sync {sync}; ask for it")
        return found

    def product_ratios(self, mode: Mode, sync: Sync) -> dict[str, Fraction]:
        """Cycles over those of the fixed schedule by product of a workload.

        Layers "blocks.0.attn.q", "blocks.1.attn.q", ... are the repetitions of product "attn.q".
        """
        sums: dict[str, list[int]] = {}
        for row in self.select(mode, sync):
            total = sums.setdefault(re.sub(r"^blocks\.\d+\.", "", row.layer), [0, 0])
            total[0] += row.beats
            total[1] += row.fixed_beats
        return {name: Fraction(beats, fixed) for name, (beats, fixed) in sums.items()}

    def totals(self) -> list[dict[str, Any]]:
        """All layers together, one row per mode and synchronisation."""
        rows = []
        for mode, sync in dict.fromkeys((row.mode, row.sync) for row in self.layers):
            chosen = self.select(mode, sync)
            count = sum(row.beats for row in chosen)
            fixed = sum(row.fixed_beats for row in chosen)
            lane_cycles = sum(row.beats for row in chosen) * self.cols
            rows.append(
                {
                    "mode": mode,
                    "sync": sync,
                    "beats": count,
                    "fixed_beats": fixed,
                    "speedup": fixed / count,
                    "speedup_least": min(row.speedup for row in chosen),
                    "speedup_most": max(row.speedup for row in chosen),
                    "terms_per_weight": _mean(_added(row.weights_by_terms for row in chosen)),
                    "step_mean": _mean(_added(row.steps_by_cost for row in chosen)),
                    "occupancy": sum(row.occupancy * row.beats for row in chosen) / count,
                    "utilisation": sum(_live(row.weights_by_terms) for row in chosen)
                    / (lane_cycles * LANES),
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The document: totals, and a row per layer, mode and synchronisation."""
        return {
            "model": self.model,
            "recipe": self.recipe,
            "cols": self.cols,
            "spacing": self.spacing,
            "totals": self.totals(),
            "layers": [row.to_dict() for row in self.layers],
        }


def term_statistics(
    qt: QuantizedTensor,
    layer: str = "",
    *,
    cols: int = 32,
    modes: Sequence[Mode] = ("significance", "lanes"),
    syncs: Sequence[Sync] = get_args(Sync),
    spacing: int = SCALE_CYCLES,
) -> tuple[TermStatistics, ...]:
    """The statistics of one tensor for every mode and synchronisation asked for.

    Raises:
        InputError: As `term_beats`.
    """
    _check_sizes(cols, spacing)
    for mode in modes:
        for sync in syncs:
            check_modes(mode, sync)
    steps = step_terms(qt)
    fixed = _beats(steps, cols, "fixed", "step", spacing)
    tiles = np.arange(0, qt.n, cols)
    weights = tuple(int(count) for count in steps.weights_by_terms)
    rows = []
    for mode in modes:
        own = _histogram(steps.costs(mode), steps.terms)
        for sync in syncs:
            cycles = _beats(steps, cols, mode, sync, spacing)
            together = sync in ("shared", "step")
            rows.append(
                TermStatistics(
                    layer=layer,
                    n=qt.n,
                    k=qt.k,
                    mode=mode,
                    sync=sync,
                    beats=cycles,
                    fixed_beats=fixed,
                    weights_by_terms=weights,
                    steps_by_cost=own,
                    array_steps_by_cost=_histogram(
                        _array_costs(steps, tiles, mode, sync), steps.terms
                    )
                    if together
                    else None,
                    occupancy=_live(own) / (cycles * cols),
                    utilisation=_live(weights) / (cycles * cols * LANES),
                )
            )
    return tuple(rows)


def layer_term_statistics(
    model: "LanguageModel | Mapping[str, QuantizedTensor]",
    recipe: "Recipe | str",
    *,
    cols: int = 32,
    modes: Sequence[Mode] = ("significance", "lanes"),
    syncs: Sequence[Sync] = get_args(Sync),
    spacing: int = SCALE_CYCLES,
    progress: "Progress | None" = None,
) -> TermReport:
    """Term statistics of every block linear layer of a model.

    Args:
        model: A model, quantised here layer by layer; or its quantised tensors by name.
        recipe: The recipe, or its name; with tensors it only names them.
        cols: Output channels side by side.
        modes: What a column leaves out.
        syncs: How far columns run apart.
        spacing: Least cycles between the ends of two groups.
        progress: Called after each layer as progress(layers done, layers, layer name).

    Raises:
        InputError: As `term_beats`; a recipe that leaves the weights as they are; no tensors.
    """
    from bitwright.quant import quantize, resolve_recipe

    recipe = resolve_recipe(recipe)
    if recipe.format_obj is None:
        raise InputError(f"recipe {recipe.name!r} has no terms; take one that quantises, bitmod4")
    format_mode(recipe.format_obj)
    tensors = model if isinstance(model, Mapping) else None
    names = list(tensors) if tensors is not None else list(model.linear_names())  # type: ignore[union-attr]
    if not names:
        raise InputError("no tensors; give at least one quantised layer")
    rows: list[TermStatistics] = []
    for done, name in enumerate(names, start=1):
        qt = (
            tensors[name] if tensors is not None else quantize(model.weight(name), recipe)  # type: ignore[union-attr]
        )
        rows += term_statistics(qt, name, cols=cols, modes=modes, syncs=syncs, spacing=spacing)
        if progress is not None:
            progress(done, len(names), name)
    title = "tensors" if tensors is not None else model.name  # type: ignore[union-attr]
    return TermReport(title, recipe.name, cols, spacing, tuple(rows))


def _histogram(costs: np.ndarray, terms: int) -> tuple[int, ...]:
    return tuple(int(count) for count in np.bincount(costs.reshape(-1), minlength=terms + 1))


def _live(counts: Sequence[int]) -> int:
    return sum(index * count for index, count in enumerate(counts))


def _added(histograms: Any) -> tuple[int, ...]:
    return tuple(sum(counts) for counts in zip(*histograms, strict=True))
