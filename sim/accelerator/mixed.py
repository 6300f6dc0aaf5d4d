"""What a model whose linears have different formats costs, for many choices at once.

Products run one after another and nothing stays on chip between them, so a pass is a sum: one
repetition of a product costs the same whatever the other linears' formats are. `mixed_costs` takes
these costs from one run per format; a map of formats is then a sum of table entries. Cycles and
bytes are integers and exactly those of `simulate_generation` with a recipe that has the map;
energies agree up to the rounding of sums in another order.

What is no linear of a block (attention, output layer, vector unit) costs the same cycles and bytes
in every run. Where the energy of the logic is measured, per format, the energy of these parts may
differ; a map gets the mean of them, each format weighted by its number of linears.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitwright.quant import LINEARS, InputError, Recipe, resolve_recipe
from bitwright.sim import Logits, ModelShape, Workload, decode_parts, load_shape, prefill

from .hardware import Accelerator, PEArea, activation_format, default_accelerator
from .logic import LogicEnergy
from .results import SimulationResult
from .simulation import simulate_model


@dataclass(frozen=True, slots=True, eq=False)
class CostTable:
    """Costs of every linear in every format, and of all the rest, in some passes.

    Rows are linears, layer by layer in the order of `LINEARS`; columns are formats.
    """

    cycles: np.ndarray  #: int64 [linears, formats]
    dram_bytes: np.ndarray  #: int64 [linears, formats]
    energy_uj: np.ndarray  #: float64 [linears, formats]: SRAM, DRAM, leakage, logic if measured
    rest_cycles: int  #: attention, output layer and vector unit
    rest_bytes: int
    rest_uj: float

    def sums(self, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cycles, DRAM bytes and energy in uJ of maps [candidates, linears] of format numbers."""
        rows = np.arange(maps.shape[1])
        return (
            self.cycles[rows, maps].sum(axis=1) + self.rest_cycles,
            self.dram_bytes[rows, maps].sum(axis=1) + self.rest_bytes,
            self.energy_uj[rows, maps].sum(axis=1) + self.rest_uj,
        )


@dataclass(frozen=True, slots=True, eq=False)
class MixedCosts:
    """Costs of a generation in any map of some formats, on one accelerator."""

    recipes: tuple[str, ...]  #: of the runs with one format each; a map's numbers count them
    prefill: CostTable
    decode: CostTable  #: of all decode steps
    steps: int  #: decode steps
    tokens: int  #: generated, of all sequences
    clock_ps: float
    area_mm2: float | None
    energy: str  #: what the energy is made of
    accelerator: Accelerator
    example: SimulationResult  #: the prefill with the first format, with its notes and sources

    def of(self, maps: Any) -> dict[str, np.ndarray]:
        """Costs of maps.

        Args:
            maps: Format numbers, int [candidates, linears].

        Returns:
            Arrays [candidates]: "cycles", "dram_bytes" and "energy_uJ" of the whole generation,
            "latency_s" of it, "decode_latency_s" of a token after the first, and
            "energy_per_token_uJ" of a generated token, the prefill's share included.

        Raises:
            InputError: Maps of another length, or numbers that there are no formats for.
        """
        maps = np.atleast_2d(np.asarray(maps, np.int64))
        linears, formats = self.prefill.cycles.shape
        if maps.shape[1] != linears:
            raise InputError(f"a map has {maps.shape[1]} numbers; {linears} linears need one each")
        if maps.size and not 0 <= maps.min() <= maps.max() < formats:
            raise InputError(f"map numbers must be 0 to {formats - 1}, one of the formats")
        cycles, moved, energy = self.prefill.sums(maps)
        more_cycles, more_moved, more_energy = self.decode.sums(maps)
        seconds = self.clock_ps * 1e-12
        return {
            "cycles": cycles + more_cycles,
            "dram_bytes": moved + more_moved,
            "energy_uJ": energy + more_energy,
            "latency_s": (cycles + more_cycles) * seconds,
            "decode_latency_s": more_cycles * seconds / self.steps,
            "energy_per_token_uJ": (energy + more_energy) / self.tokens,
        }


def mixed_costs(
    shape: ModelShape | str,
    recipes: Sequence[Recipe | str],
    *,
    prompt: int = 256,
    generate: int = 64,
    batch: int = 1,
    accelerator: Accelerator | None = None,
    kv_format: str | None = None,
    logits: Logits = "last",
    pe_area: PEArea | None = None,
    logic: Sequence[LogicEnergy] | None = None,
) -> MixedCosts:
    """Run a generation once per format and take it apart.

    Args:
        shape: A dense model, or the name of one.
        recipes: One format each.
        prompt: Tokens of every sequence taken in.
        generate: Tokens of every sequence made, at least 2.
        batch: Sequences side by side.
        accelerator: With one PE for all formats; None: the default of the bit-serial PE.
        kv_format: Of keys and values, as in `simulate_generation`.
        logits: As in `simulate_generation`.
        pe_area: Area of the PE, if known.
        logic: Energy of the logic, one per recipe; None: it is left out of the energies.

    Raises:
        InputError: A PE that cannot run a format, a model whose blocks have other linears, or a
            size that is too small.
    """
    chosen = [resolve_recipe(recipe) for recipe in recipes]
    if not chosen or (logic is not None and len(logic) != len(chosen)):
        raise InputError("mixed costs need at least one recipe, and logic energies for all or none")
    if prompt < 1 or generate < 2 or batch < 1:
        raise InputError(
            f"prompt {prompt}, generate {generate}, batch {batch}; at least 1, 2 and 1"
        )
    shape = load_shape(shape) if isinstance(shape, str) else shape
    accelerator = accelerator or default_accelerator("bitmod")
    quantise_inputs = activation_format(accelerator.pe) is not None
    quantise_cache = kv_format not in (None, "fp16")
    first = prefill(
        *(shape, prompt), batch=batch, logits=logits,
        quantise_inputs=quantise_inputs, quantise_cache=quantise_cache,
    )  # fmt: skip
    linear, attention = decode_parts(
        *(shape, range(prompt + 1, prompt + generate)), batch=batch,
        quantise_inputs=quantise_inputs, quantise_cache=quantise_cache,
    )  # fmt: skip
    passes: list[list[SimulationResult]] = [[], [], []]
    for number, recipe in enumerate(chosen):
        for runs, workload in zip(passes, (first, linear, attention), strict=True):
            runs.append(
                simulate_model(
                    workload,
                    recipe,
                    kv_format=kv_format,
                    accelerator=accelerator,
                    pe_area=pe_area,
                    logic=None if logic is None else logic[number],
                )
            )
    shown = passes[0][0]
    steps = generate - 1
    return MixedCosts(
        recipes=tuple(recipe.name for recipe in chosen),
        prefill=_table(first, shape.layers, [(passes[0], 1)]),
        decode=_table(linear, shape.layers, [(passes[1], steps), (passes[2], 1)]),
        steps=steps,
        tokens=batch * generate,
        clock_ps=accelerator.clock_ps,
        area_mm2=shown.area.total,
        energy=(
            "SRAM, DRAM and leakage; switching of the logic is not in it"
            if logic is None
            else "logic, SRAM, DRAM and leakage"
        ),
        accelerator=accelerator,
        example=shown,
    )


def _table(
    workload: Workload, layers: int, passes: list[tuple[list[SimulationResult], int]]
) -> CostTable:
    """Costs of passes, each run once per format and repeated some times."""
    names = [gemm.name for gemm in workload.gemms if gemm.kind == "block"]
    if names != list(LINEARS):
        raise InputError(
            f"{workload.name} has the linears {', '.join(names)}; formats are mixed over "
            f"{', '.join(LINEARS)}, one of each per layer"
        )
    formats = len(passes[0][0])
    cycles = np.zeros((len(names), formats), np.int64)
    moved, energy = np.zeros_like(cycles), np.zeros(cycles.shape)
    rest: list[tuple[int, int]] = []
    rest_uj = []
    for number in range(formats):
        rest_cycles, rest_bytes, rest_energy = 0, 0, 0.0
        for runs, times in passes:
            for row in runs[number].layers:
                spent = times * _layer_uj(row)
                if row.kind != "block":
                    rest_cycles += times * row.cycles
                    rest_bytes += times * row.dram_bytes
                    rest_energy += spent
                    continue
                assert row.count == layers
                assert row.cycles % layers == 0 == row.dram_bytes % layers  # equal repetitions
                place = names.index(row.name), number
                cycles[place] += times * row.cycles // layers
                moved[place] += times * row.dram_bytes // layers
                energy[place] += spent / layers
            for op in runs[number].vector:
                rest_cycles += times * op.cycles
                rest_bytes += times * op.dram_bytes
                parts = op.dram_uj + op.standing_uj + op.leakage_uj + (op.logic_uj or 0.0)
                rest_energy += times * parts
        rest.append((rest_cycles, rest_bytes))
        rest_uj.append(rest_energy)
    # Every PE that takes several formats computes the rest in the same mode beside all of them.
    assert len(set(rest)) == 1
    # Where logic is measured per format, the rest's energy is shared out over the linears.
    energy += (np.array(rest_uj) - rest_uj[0]) / (len(names) * layers)
    return CostTable(
        np.tile(cycles, (layers, 1)),
        np.tile(moved, (layers, 1)),
        np.tile(energy, (layers, 1)),
        *rest[0],
        rest_uj[0],
    )


def _layer_uj(row: Any) -> float:
    """Energy of a product, all repetitions."""
    parts = row.sram_uj + row.dram_uj + row.standing_uj + row.leakage_uj
    return float(parts + (row.logic_uj or 0.0))
