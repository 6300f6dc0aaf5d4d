"""A whole generation: prompt, first token, and every later token at its own cache length.

`generate` tokens per sequence cost a prefill of `prompt` tokens, whose output layer gives the
first, and generate - 1 decode steps at contexts prompt + 1 to prompt + generate - 1 (the last token
is never read back). Nothing is extrapolated from one step: the linear layers do not depend on the
context, so they are simulated once and repeated; attention and its softmax are simulated at every
context. `stepwise=True` simulates each step whole and gives the same integers; energies agree up to
the rounding of sums in another order.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

from bitwright.quant import InputError, Recipe, resolve_recipe
from bitwright.sim import Logits, ModelShape, Workload, decode, decode_parts, load_shape, prefill

from .hardware import Accelerator, PEArea, activation_format, default_accelerator
from .logic import LogicEnergy
from .results import SimulationResult
from .simulation import output_rows, simulate_model


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """What a generation costs; all counts are those of the whole batch."""

    prefill: SimulationResult
    prompt: int  #: tokens of a sequence taken in
    generate: int  #: tokens of a sequence made
    batch: int
    step_cycles: tuple[int, ...]  #: per decode step, in order; step i attends to prompt + 1 + i
    step_dram_bytes: tuple[int, ...]
    decode_energy_uj: dict[str, float | None]  #: of all steps, by component; None: not modelled

    @property
    def cycles(self) -> int:
        """Cycles of prefill and decode."""
        return self.prefill.cycles + sum(self.step_cycles)

    @property
    def dram_bytes(self) -> int:
        """Bytes over DRAM of prefill and decode."""
        return self.prefill.dram_bytes + sum(self.step_dram_bytes)

    @property
    def energy_uj(self) -> dict[str, float | None]:
        """Energy of prefill and decode by component; None: not modelled."""
        return _sum(_energy(self.prefill), self.decode_energy_uj)

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token: the prefill and its output layer."""
        return self.prefill.latency_s

    @property
    def latency_s(self) -> float:
        """Seconds to the last token."""
        return self._seconds(self.cycles)

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per token after the first; None: there is no such token."""
        steps = len(self.step_cycles)
        return self._seconds(sum(self.step_cycles)) / steps if steps else None

    @property
    def tpot_first_s(self) -> float | None:
        """Seconds of the first decode step, at the shortest cache."""
        return self._seconds(self.step_cycles[0]) if self.step_cycles else None

    @property
    def tpot_last_s(self) -> float | None:
        """Seconds of the last decode step, at the longest cache."""
        return self._seconds(self.step_cycles[-1]) if self.step_cycles else None

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens of all sequences per second, the prefill's time included."""
        return self.batch * self.generate / self.latency_s

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Generated tokens of all sequences per second of decode; None: no decode step."""
        return None if self.tpot_s is None else self.batch / self.tpot_s

    @property
    def energy_per_token_uj(self) -> float | None:
        """Total energy, the prefill's included, per generated token; None: no total."""
        total = self.energy_uj.get("total")
        return None if total is None else total / (self.batch * self.generate)

    def _seconds(self, cycles: int) -> float:
        return cycles * self.prefill.clock_ps * 1e-12

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON; `prefill` is the document of the prefill alone."""
        energy = {**self.energy_uj, "per_token": self.energy_per_token_uj}
        prefill = self.prefill.to_dict()
        return {
            "workload": self.prefill.name,
            "phase": "generation",
            "prompt": self.prompt,
            "generate": self.generate,
            "batch": self.batch,
            "design": self.prefill.design,
            "cycles": self.cycles,
            "decode_cycles": sum(self.step_cycles),
            "latency_s": self.latency_s,
            "ttft_s": self.ttft_s,
            "tpot_s": {
                "mean": self.tpot_s,
                "first": self.tpot_first_s,
                "last": self.tpot_last_s,
            },
            "tokens_per_s": self.tokens_per_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "dram_bytes": self.dram_bytes,
            "energy_uJ": energy,
            "decode_energy_uJ": self.decode_energy_uj,
            "area_mm2": prefill["area_mm2"],
            "config": prefill["config"],
            "notes": prefill["notes"],
            "sources": prefill["sources"],
            "prefill": prefill,
            "steps": [
                {"context": self.prompt + 1 + step, "cycles": cycles, "dram_bytes": moved}
                for step, (cycles, moved) in enumerate(
                    zip(self.step_cycles, self.step_dram_bytes, strict=True)
                )
            ],
        }


def simulate_generation(
    shape: ModelShape | str,
    recipe: Recipe | str = "bitmod4",
    *,
    prompt: int = 256,
    generate: int = 256,
    batch: int = 1,
    pe: str | None = None,
    accelerator: Accelerator | None = None,
    pe_area: PEArea | None = None,
    logic: LogicEnergy | None = None,
    kv_format: str | None = None,
    kv_group_size: int | None = 128,
    logits: Logits = "last",
    causal: bool = True,
    stepwise: bool = False,
) -> GenerationResult:
    """Simulate prefill and every decode step of a generation.

    Args:
        shape: A shape or the name of one.
        recipe: A `Recipe` or its name.
        prompt: Tokens of every sequence taken in.
        generate: Tokens of every sequence made, the first by the prefill.
        batch: Sequences side by side, all of the same lengths.
        pe: PE by name; None: the accelerator's, else "fp16" for FP16 weights, else "bitmod".
        accelerator: None: the default of the PE.
        pe_area: Area of the PE, if known.
        logic: Energy of the logic, as in `simulate`.
        kv_format: Format of the key/value cache by name; the vector unit then quantises new rows.
            None: 16 bits.
        kv_group_size: Its groups, see `cache_operand`.
        logits: Positions of the prefill that go through the output layer, as in `prefill`.
        causal: As in `prefill`.
        stepwise: Simulate each decode step whole: the definition, slow.

    Raises:
        InputError: Something unknown, a size < 1, or a PE that cannot run a format.
    """
    for name, value in (("prompt", prompt), ("generate", generate), ("batch", batch)):
        if value < 1:
            raise InputError(f"{name} is {value}; at least 1")
    if isinstance(shape, str):
        shape = load_shape(shape)
    recipe = resolve_recipe(recipe)
    shape = output_rows(shape, recipe)
    if accelerator is None:
        accelerator = default_accelerator(pe or ("fp16" if recipe.format is None else "bitmod"))

    def run(workload: Workload) -> SimulationResult:
        return simulate_model(
            workload,
            recipe,
            kv_format=kv_format,
            kv_group_size=kv_group_size,
            pe=pe,
            accelerator=accelerator,
            pe_area=pe_area,
            logic=logic,
        )

    quantise = _Quantise(
        quantise_inputs=activation_format(accelerator.pe) is not None,
        quantise_cache=kv_format not in (None, "fp16"),
    )
    first = run(prefill(shape, prompt, batch=batch, causal=causal, logits=logits, **quantise))
    contexts = range(prompt + 1, prompt + generate)
    cycles, moved, energy = [], [], _scaled(_energy(first), 0)
    if stepwise:
        for context in contexts:
            step = run(decode(shape, context, batch=batch, **quantise))
            cycles.append(step.cycles)
            moved.append(step.dram_bytes)
            energy = _sum(energy, _energy(step))
    elif contexts:
        linear, attention = map(run, decode_parts(shape, contexts, batch=batch, **quantise))
        # Scores, values and the softmax of each context.
        rows = zip(attention.layers[::2], attention.layers[1::2], attention.vector, strict=True)
        for parts in rows:
            cycles.append(linear.cycles + sum(part.cycles for part in parts))
            moved.append(linear.dram_bytes + sum(part.dram_bytes for part in parts))
        energy = _sum(_scaled(_energy(linear), len(contexts)), _energy(attention))
    return GenerationResult(first, prompt, generate, batch, tuple(cycles), tuple(moved), energy)


class _Quantise(TypedDict):
    """Options of `prefill` and `decode`."""

    quantise_inputs: bool
    quantise_cache: bool


def _energy(result: SimulationResult) -> dict[str, float | None]:
    """Energy of a pass by component, in uJ."""
    energy = result.to_dict()["energy_uJ"]
    return {name: value for name, value in energy.items() if not isinstance(value, str)}


def _scaled(energy: dict[str, float | None], times: int) -> dict[str, float | None]:
    return {name: None if value is None else times * value for name, value in energy.items()}


def _sum(*energies: dict[str, float | None]) -> dict[str, float | None]:
    """Component by component; None where a part is not modelled."""
    total: dict[str, float | None] = {}
    for name in energies[0]:
        parts = [energy[name] for energy in energies]
        total[name] = None if None in parts else sum(part for part in parts if part is not None)
    return total
