"""NSGA-II over maps of formats and arrays, by pymoo (Deb et al., IEEE Trans. EC 6, 2002).

Numbers stand for formats in no order, so crossover exchanges genes as they are and mutation draws
new ones. The population starts from candidates that are known already (uniform maps and the
heuristic's); the rest of it are mutations of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bitwright.quant import InputError, Progress

from .space import Space


def need_pymoo() -> None:
    """Refuse to go on without pymoo.

    Raises:
        InputError: It is not installed; says how it can be.
    """
    try:
        import pymoo  # noqa: F401
    except ImportError:
        raise InputError(
            "the search needs pymoo, which is not installed; install it with "
            "pip install 'bitwright[search]'"
        ) from None


def nsga2(
    space: Space,
    objectives: Sequence[str],
    budgets: Mapping[str, float],
    start: np.ndarray,
    *,
    population: int = 100,
    generations: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> np.ndarray:
    """The last generation's candidates, int [candidates, linears + 1]; the same for equal seeds.

    Args:
        space: What is searched.
        objectives: Quantities to make small.
        budgets: Quantity -> the most of it.
        start: Candidates to begin with.
        population: Candidates in a generation.
        generations: How many.
        seed: Of everything that is drawn.
        progress: Called per generation.

    Raises:
        InputError: pymoo is not installed, or a population or number of generations that is too
            small.
    """
    need_pymoo()
    if population < 4 or generations < 1:
        raise InputError(
            f"population {population}, generations {generations}; at least 4 candidates and 1 "
            "generation"
        )
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.callback import Callback
    from pymoo.core.mutation import Mutation
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.optimize import minimize

    highest = np.array([len(space.recipes) - 1] * len(space.linears) + [len(space.costs) - 1])

    class Maps(Problem):
        def __init__(self) -> None:
            super().__init__(
                n_var=len(highest),
                n_obj=len(objectives),
                n_ieq_constr=len(budgets),
                xl=0,
                xu=highest,
                vtype=int,
            )

        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *_: Any, **__: Any) -> None:
            found = space.evaluate(x.astype(np.int64))
            out["F"] = np.stack([found[name] for name in objectives], axis=1)
            if budgets:
                # Relative, so that no budget outweighs another.
                over = [found[name] / most - 1 for name, most in budgets.items()]
                out["G"] = np.stack(over, axis=1)

    class Redraw(Mutation):
        def _do(self, problem: Any, x: np.ndarray, *_: Any, **more: Any) -> np.ndarray:
            return redrawn(x, highest, more["random_state"])

    class Tell(Callback):
        def update(self, algorithm: Any) -> None:
            if progress:
                progress(algorithm.n_gen, generations, f"generation {algorithm.n_gen}")

    rng = np.random.default_rng(seed)
    algorithm = NSGA2(
        pop_size=population,
        sampling=first_generation(start, highest, population, rng),
        crossover=UniformCrossover(),
        mutation=Redraw(),
        eliminate_duplicates=True,
    )
    done = minimize(
        Maps(), algorithm, ("n_gen", generations), seed=seed, callback=Tell(), verbose=False
    )
    return np.asarray(done.pop.get("X"), np.int64)


def redrawn(candidates: np.ndarray, highest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Candidates with about one gene in each drawn anew, sometimes more."""
    odds = rng.choice([1.0, 2.0, 8.0], size=(len(candidates), 1)) / candidates.shape[1]
    fresh = rng.integers(0, highest + 1, size=candidates.shape)
    return np.where(rng.random(candidates.shape) < odds, fresh, candidates)


def first_generation(
    start: np.ndarray, highest: np.ndarray, population: int, rng: np.random.Generator
) -> np.ndarray:
    """The known candidates, evenly chosen if there are too many, and mutations of them."""
    start = np.unique(start, axis=0)
    if len(start) > population:
        return start[np.linspace(0, len(start) - 1, population).round().astype(int)]
    parents = start[rng.integers(0, len(start), population - len(start))]
    return np.concatenate([start, redrawn(parents, highest, rng)])
