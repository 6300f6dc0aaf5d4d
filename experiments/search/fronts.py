"""Fronts: who is beaten by nobody, how much a front covers, where it bends, what it gains.

All quantities are to be small. Rules, so that the numbers can be checked by hand:

- **Hypervolume**: the part of the box between the origin and a reference point that is no better
  than some point of the front (Zitzler and Thiele, 1998), as a share of that box; by pymoo.
- **Knee**: of the front in two quantities, their logarithms scaled to 0 .. 1, the point farthest
  below the chord between its ends (after Das, Structural Optimization 18, 1999).
- **Gain over uniform recipes**: the uniform recipes' own front, its perplexity's logarithm linear
  between neighbours in the cost. Mixed models can then be compared at equal cost and at equal
  perplexity; outside that front's range nothing is said.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bitwright.experiments import nondominated

Row = Mapping[str, Any]


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Share of the box between the origin and the reference that the points dominate.

    >>> points = np.array([[1.0, 2.0], [2.0, 1.0]])
    >>> round(hypervolume(points, np.array([4.0, 4.0])), 6)  # (3 * 2 + 2 * 1) of 16
    0.5
    """
    from pymoo.indicators.hv import HV

    inside = points[(points < reference).all(axis=1)]
    if not len(inside):
        return 0.0
    return float(HV(ref_point=np.ones(len(reference)))(inside / reference))


def knee(points: np.ndarray) -> int:
    """Number of the knee among points [points, 2], all above 0."""
    front = nondominated(points)
    logs = np.log(points[front])
    span = np.ptp(logs, axis=0)
    if len(front) < 3 or not (span > 0).all():
        return int(front[0])
    scaled = (logs - logs.min(axis=0)) / span
    # The ends are (0, 1) and (1, 0); below their chord x + y < 1.
    return int(front[np.argmax(1 - scaled.sum(axis=1))])


def gain(uniform: Sequence[Row], mixed: Sequence[Row], cost: str) -> dict[str, Any]:
    """How much better measured mixed models are than the best uniform recipes.

    Args:
        uniform: Rows with "name", "perplexity" and the cost, of uniform recipes.
        mixed: The same of mixed models.
        cost: Key of the cost.

    Returns:
        "at_equal_cost": per mixed model the uniform front's perplexity at its cost and by what
        part the model's is lower; "at_equal_perplexity": the uniform front's cost at its perplexity
        and by what part the model's is lower. "best_..." are the rows with the largest gain, None
        where no model lies in the front's range.
    """
    points = np.array([[row[cost], row["perplexity"]] for row in uniform], np.float64)
    front = points[nondominated(points)]
    front = front[np.argsort(front[:, 0])]
    costs, logs = front[:, 0], np.log(front[:, 1])
    equal_cost, equal_perplexity = [], []
    for row in mixed:
        value, perplexity = float(row[cost]), float(row["perplexity"])
        if costs[0] <= value <= costs[-1]:
            there = float(np.exp(np.interp(value, costs, logs)))
            equal_cost.append(
                {
                    "name": row["name"],
                    cost: value,
                    "perplexity": perplexity,
                    "uniform_perplexity": there,
                    "lower_by": 1 - perplexity / there,
                }
            )
        if logs[-1] <= np.log(perplexity) <= logs[0]:
            there = float(np.interp(-np.log(perplexity), -logs, costs))
            equal_perplexity.append(
                {
                    "name": row["name"],
                    "perplexity": perplexity,
                    cost: value,
                    f"uniform_{cost}": there,
                    "lower_by": 1 - value / there,
                }
            )
    return {
        "at_equal_cost": equal_cost,
        "at_equal_perplexity": equal_perplexity,
        "best_at_equal_cost": max(equal_cost, key=lambda row: row["lower_by"], default=None),
        "best_at_equal_perplexity": max(
            equal_perplexity, key=lambda row: row["lower_by"], default=None
        ),
    }


def spread(values: np.ndarray, count: int, taken: Sequence[int]) -> list[int]:
    """Numbers of `count` values as even as can be in their logarithm, none of `taken`.

    Args:
        values: All above 0.
        count: How many; fewer if there are not so many.
        taken: Numbers that are not to be chosen.
    """
    logs = np.log(values)
    free = [number for number in range(len(values)) if number not in set(taken)]
    chosen: list[int] = []
    # The inner ones of count + 2 marks: the ends of a front are nearly uniform recipes.
    for mark in np.linspace(logs.min(), logs.max(), count + 2)[1:-1]:
        left = [number for number in free if number not in chosen]
        if left:
            chosen.append(min(left, key=lambda number: (abs(logs[number] - mark), number)))
    return sorted(chosen)
