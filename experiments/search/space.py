"""What is searched: a format for every linear, and one of some arrays.

A candidate is a row of integers: a format number per linear, layer by layer, and the number of an
array behind them. All of its costs are sums of table entries, so thousands are evaluated at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from bitwright.quant import LINEARS, FormatMap, InputError, LlamaConfig, Recipe, ScaleFormat
from bitwright.sim import Accelerator, MixedCosts

#: Objectives and budgets by their names in options -> the quantity.
QUANTITIES = {
    "perplexity": "proxy",
    "bits": "bits_per_weight",
    "latency": "latency_s",
    "decode-latency": "decode_latency_s",
    "energy": "energy_per_token_uJ",
    "dram": "dram_bytes",
    "area": "area_mm2",
}
#: How quantities are written: (unit, factor from the quantity's own).
WRITTEN = {
    "bits_per_weight": ("bits per weight", 1.0),
    "latency_s": ("ms", 1e3),
    "decode_latency_s": ("ms", 1e3),
    "energy_per_token_uJ": ("uJ per token", 1.0),
    "dram_bytes": ("bytes", 1.0),
    "area_mm2": ("mm2", 1.0),
}


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """Formats, arrays, and what every choice costs."""

    recipes: tuple[Recipe, ...]  #: one format each; a candidate's numbers count them
    linears: tuple[str, ...]  #: "0.attn.q", ...
    stored_bits: np.ndarray  #: int64 [linears, formats]
    weights: int  #: in all linears
    costs: tuple[MixedCosts, ...]  #: one per array
    #: Share of every linear and format in the proxy of accuracy, float64 [linears, formats].
    proxy: np.ndarray

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the formats."""
        return tuple(str(recipe.format) for recipe in self.recipes)

    def evaluate(self, candidates: np.ndarray) -> dict[str, np.ndarray]:
        """Every quantity of candidates, int [candidates, linears + 1].

        `area_mm2` is NaN where it is not known.
        """
        maps, arrays = candidates[:, :-1], candidates[:, -1]
        rows = np.arange(maps.shape[1])
        found = {
            "proxy": self.proxy[rows, maps].sum(axis=1),
            "bits_per_weight": self.stored_bits[rows, maps].sum(axis=1) / self.weights,
        }
        names = ("latency_s", "decode_latency_s", "energy_per_token_uJ", "dram_bytes")
        found |= {name: np.zeros(len(maps)) for name in (*names, "area_mm2")}
        for number, cost in enumerate(self.costs):
            here = arrays == number
            if not here.any():
                continue
            values = cost.of(maps[here])
            for name in names:
                found[name][here] = values[name]
            area = cost.area_mm2
            found["area_mm2"][here] = np.nan if area is None else area
        return found

    def uniform(self) -> np.ndarray:
        """The candidates with one format for all linears, on every array."""
        rows = product(range(len(self.recipes)), range(len(self.costs)))
        return np.array([[number] * len(self.linears) + [array] for number, array in rows])

    def recipe(self, candidate: Sequence[int] | np.ndarray) -> Recipe:
        """A candidate's recipe; a plain one if it has one format."""
        numbers = [int(number) for number in candidate[: len(self.linears)]]
        if len(set(numbers)) == 1:
            return self.recipes[numbers[0]]
        # The head says groups and scales for all, so it is not a format that has its own.
        free = [n for n in numbers if self.recipes[n].format_obj.block is None]  # type: ignore[union-attr]
        head = self.recipes[(free or numbers)[0]]
        return Recipe(
            format=head.format,
            group_size=head.group_size,
            scale_format=head.scale_format,
            steps=(FormatMap.of(self.formats, numbers),),
        )

    def named_formats(self, candidate: Sequence[int] | np.ndarray) -> dict[str, str]:
        """Linear -> format of a candidate."""
        return {
            linear: self.formats[int(number)]
            for linear, number in zip(self.linears, candidate[:-1], strict=True)
        }


def uniform_recipes(
    formats: Sequence[str], group_size: int, scale_format: ScaleFormat
) -> tuple[Recipe, ...]:
    """One recipe per format, all with the same groups and scales; blocks have their own.

    Raises:
        InputError: An unknown format, one named twice, or fewer than two.
    """
    from bitwright.quant import FORMATS
    from bitwright.sim import pick

    rows = [pick(FORMATS, name, "--formats") for name in formats]
    if len(rows) < 2 or len(set(formats)) < len(rows) or len(rows) > 36:
        raise InputError(
            f"--formats names {', '.join(formats)}; 2 to 36 formats, each of them once"
        )
    return tuple(
        Recipe(format=row.name)
        if row.block is not None
        else Recipe(format=row.name, group_size=group_size, scale_format=scale_format)
        for row in rows
    )


def bit_table(config: LlamaConfig, recipes: Sequence[Recipe]) -> tuple[np.ndarray, int]:
    """Stored bits of every linear under every recipe, int64 [linears, recipes]; weights of all."""
    shapes = list(config.linear_shapes().values())
    bits = [[recipe.stored_bits(n, k) for recipe in recipes] for n, k in shapes]
    return np.array(bits, np.int64), sum(n * k for n, k in shapes)


def linear_labels(config: LlamaConfig) -> tuple[str, ...]:
    """ "0.attn.q" and so on, layer by layer."""
    return tuple(f"{layer}.{name}" for layer in range(config.layers) for name in LINEARS)


def arrays(base: Accelerator, options: Mapping[str, Sequence[Any]]) -> tuple[Accelerator, ...]:
    """Every combination of an array's parameters.

    Args:
        base: Parameters that are not named.
        options: Field of `Accelerator` -> its values.

    Raises:
        InputError: A value that an accelerator cannot have.
    """
    from dataclasses import replace

    names = list(options)
    return tuple(
        replace(base, **dict(zip(names, values, strict=True)))
        for values in product(*options.values())
    )


def refuse_infeasible(space: Space, budgets: Mapping[str, float]) -> None:
    """Refuse budgets that no candidate can hold, one at a time.

    Args:
        space: What there is.
        budgets: Quantity -> the most of it.

    Raises:
        InputError: Says the least that is possible.
    """
    for quantity, most in budgets.items():
        least = np.inf
        for array in range(len(space.costs)):
            cheapest = least_candidate(space, quantity, array)
            value = space.evaluate(cheapest[None])[quantity][0]
            if np.isnan(value):
                raise InputError(f"{quantity} is not known here; leave its budget out")
            least = min(least, float(value))
        if least > most:
            unit, factor = WRITTEN[quantity]
            raise InputError(
                f"budget of {most * factor:.6g} {unit} cannot be held; the least that is possible "
                f"with these formats and arrays is {least * factor:.6g}"
            )


def least_candidate(space: Space, quantity: str, array: int) -> np.ndarray:
    """The candidate on an array that has the least of a quantity: each linear has its least."""
    table = cost_table(space, quantity, array)
    return np.append(table.argmin(axis=1), array)


def cost_table(space: Space, quantity: str, array: int) -> np.ndarray:
    """What each linear adds to a quantity in each format, up to a constant and a factor."""
    costs = space.costs[array]
    steps = costs.decode
    if quantity == "bits_per_weight":
        return space.stored_bits
    if quantity == "decode_latency_s":
        return steps.cycles
    if quantity == "latency_s":
        return costs.prefill.cycles + steps.cycles
    if quantity == "energy_per_token_uJ":
        return costs.prefill.energy_uj + steps.energy_uj
    if quantity == "dram_bytes":
        return costs.prefill.dram_bytes + steps.dram_bytes
    if quantity == "area_mm2":  # of the array alone
        return np.zeros_like(space.stored_bits)
    return space.proxy
