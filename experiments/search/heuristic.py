"""The sensitivity-guided heuristic: lower the linear whose saved bit costs the least accuracy.

A linear's formats are points (cost, error). Only those on the lower convex hull of that curve can
be best for a separable proxy under one budget; a step from one to the next saves cost at some rise
of the error. All linears start with their least error; the step with the least rise per saved cost
of all linears comes next, until everything is as cheap as it can be. As the rates of a hull rise,
each map on the way has the least error among all maps of its cost or less (Shoham and Gersho, IEEE
Trans. ASSP 36, 1988; Everett, Operations Research 11, 1963). Between two of them a budget can leave
room for a better map that is no point of this path: the last step is what the optimum can be missed
by.
"""

import numpy as np


def hull(costs: np.ndarray, errors: np.ndarray) -> list[int]:
    """Formats on the lower convex hull of one linear, from the least error to the least cost.

    >>> hull(np.array([8.0, 6.0, 4.0, 3.0]), np.array([0.0, 0.9, 1.0, 4.0]))
    [0, 2, 3]
    """
    order = sorted(range(len(costs)), key=lambda i: (errors[i], costs[i], i))
    points: list[int] = []
    for i in order:
        if points and costs[i] >= costs[points[-1]]:
            continue  # no cheaper, and no better
        while len(points) > 1 and _rate(costs, errors, points[-1], i) <= _rate(
            costs, errors, points[-2], points[-1]
        ):
            points.pop()
        points.append(i)
    return points


def _rate(costs: np.ndarray, errors: np.ndarray, a: int, b: int) -> float:
    """Rise of the error per saved cost from format a to format b."""
    return float((errors[b] - errors[a]) / (costs[a] - costs[b]))


def greedy_path(costs: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Every map on the way from the least error to the least cost, int [maps, linears].

    Args:
        costs: Of every linear in every format, [linears, formats].
        errors: Likewise.
    """
    hulls = [hull(c, e) for c, e in zip(costs, errors, strict=True)]
    steps = [
        (_rate(costs[linear], errors[linear], a, b), linear, place, b)
        for linear, points in enumerate(hulls)
        for place, (a, b) in enumerate(zip(points, points[1:], strict=False))
    ]
    now = np.array([points[0] for points in hulls])
    path = [now.copy()]
    for _, linear, _, lower in sorted(steps):
        now[linear] = lower
        path.append(now.copy())
    return np.array(path)
