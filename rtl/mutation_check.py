"""The mutation check: a design is broken on purpose, and its verification has to see it.

Vectors and comparisons are those of `verify`, in the compiled Verilog: corner and random streams
against the PE's model, in values and clock cycles, and the cocotb bench's traces against its
reference, clock cycle by clock cycle. Real rows are left out: what is found is found without them.
Streams and traces come in the order of what they cost, all modes in turn, and the first that
differs has caught the mutant.

A mutant that nothing catches is either no fault or a hole in the vectors. It counts as no fault
only if it is proved that no input shows it (mutation_proof.py); then it is left out, counted apart,
and the next mutant takes its place. All others that are not caught are survivors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.quant import InputError, Progress

from .bulk import build_driver, differing_cycles, run_stream
from .emission import bench_traces
from .mutation import PORT, Mutant, mutant_order, mutants, mutated
from .mutation_proof import judge
from .pe import Design
from .pe.logic import to_verilog
from .vectors import Stream, Trace
from .verification import LEVELS
from .yosys import yosys_version

#: PEs for which the check has to pass.
CORE = ("bitmod", "dint4", "btc")


@dataclass(frozen=True)
class MutantResult:
    """What became of a mutant."""

    pe: str
    mutant: Mutant
    #: Mode and kind of the stream or trace that caught it: "int8 corner", "fp4 random".
    caught_by: str = ""
    #: Dot products compared, up to the one that differs.
    vectors: int = 0
    unobservable: bool = False  #: no input shows it, by proof
    note: str = ""  #: about one that was not caught

    @property
    def outcome(self) -> str:
        """caught, survivor or left out."""
        return "caught" if self.caught_by else "left out" if self.unobservable else "survivor"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self.mutant),
            "outcome": self.outcome,
            "caught_by": self.caught_by,
            "vectors": self.vectors,
            "note": self.note,
        }


@dataclass(frozen=True)
class MutationReport:
    """Mutants of a PE in the order in which they were tried."""

    pe: str
    seed: int
    places: int  #: mutants that the design has
    tried: Sequence[MutantResult]

    def of(self, outcome: str) -> list[MutantResult]:
        """Those with that outcome."""
        return [result for result in self.tried if result.outcome == outcome]

    @property
    def mutants(self) -> int:
        """How many count: all that are not left out."""
        return len(self.tried) - len(self.of("left out"))

    @property
    def summary(self) -> str:
        return (
            f"{self.pe}: {self.mutants} mutants, {len(self.of('caught'))} caught, "
            f"{len(self.of('survivor'))} survivors, {len(self.of('left out'))} proved equivalent "
            "and left out"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "pe": self.pe,
            "seed": self.seed,
            "places": self.places,
            "mutants": self.mutants,
            "caught": len(self.of("caught")),
            "survivors": len(self.of("survivor")),
            "left_out": len(self.of("left out")),
            "tried": [result.to_dict() for result in self.tried],
        }


def check_mutants(
    design: Design,
    count: int = 40,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    timeout_s: float = 10,
) -> MutationReport:
    """Break a design in `count` places that can be observed, one at a time, and verify each.

    Args:
        design: Its generator, vectors and models.
        count: Mutants that are caught or survive.
        seed: Which ones; the vectors are the same for every seed.
        progress: Called per mutant.
        timeout_s: Of each proof about a mutant that was not caught.

    Raises:
        InputError: `count` is not 1 or more or exceeds what the design has, or a tool is missing.
        RuntimeError: The unbroken design fails, or a tool does.
    """
    if count < 1:
        raise InputError(f"count (={count}) must be 1 or more")
    yosys_version()
    candidates = mutants(design.block())
    order = mutant_order(candidates, seed)
    stages = list(_stages(design))
    tried: list[MutantResult] = []
    counted = 0
    while counted < count:
        left = count - counted
        # Some turn out to be no faults: a build is worth a few spare ones.
        batch = order[len(tried) : len(tried) + left + max(left // 4, 4)]
        if not batch:
            raise InputError(
                f"count (={count}) exceeds the {counted} mutants of {design.name} that can be "
                "observed; ask for fewer"
            )
        if progress:
            progress(counted, count, "build")
        program = build_mutants(design, batch)
        clean: set[int] = set()
        for value, mutant in enumerate(batch, start=1):
            if progress:
                progress(counted, count, f"{mutant.kind}, {mutant.place}")
            result = _try(design, mutant, stages, clean, program, value, timeout_s)
            tried.append(result)
            counted += not result.unobservable
            if counted == count:
                break
    return MutationReport(design.name, seed, len(candidates), tried)


def build_mutants(design: Design, chosen: Sequence[Mutant]) -> Path:
    """The driver of a design with these mutants in it; its one constant is `mutant`."""
    text = to_verilog(mutated(design.block(), chosen), design.top)
    return build_driver(design, [text], [PORT])


def _try(
    design: Design,
    mutant: Mutant,
    stages: "Sequence[_Stage]",
    clean: set[int],
    program: Path,
    value: int,
    timeout_s: float,
) -> MutantResult:
    """`clean` holds the stages in which the unbroken design was seen to be right."""
    before = 0
    for index, stage in enumerate(stages):
        if index not in clean:
            if stage.first_difference(program, 0) is not None:
                raise RuntimeError(
                    f"the unbroken {design.name} differs in {stage.name}; run `bitwright verify "
                    f"{design.name}` first"
                )
            clean.add(index)
        found = stage.first_difference(program, value)
        if found is not None:
            return MutantResult(design.name, mutant, stage.name, before + found)
        before += stage.dots()
    verdict = judge(design, mutant, timeout_s)
    return MutantResult(design.name, mutant, "", before, verdict.unobservable, verdict.note)


# ------------------------------------------------------------------ what verification shows


@dataclass(frozen=True)
class _Stage:
    """A stream or a trace."""

    name: str
    dots: Callable[[], int]
    #: Dot products up to the first that differs, None if none does, for a value of `mutant`.
    first_difference: Callable[[Path, int], int | None]


def _stages(design: Design) -> Iterator[_Stage]:
    """Corners, few random ones and traces of the quick level, the standard level's random ones.

    Drawn like those of `verify` with seed 0.
    """
    quick, standard = LEVELS["quick"], LEVELS["standard"]
    for mode in design.modes:
        yield _stream_stage(design, f"{mode} corner", partial(design.corners, mode))
    for mode in design.modes:
        yield _stream_stage(design, f"{mode} random", partial(_random, design, mode, quick.random))
    for trace in bench_traces(design, quick.bench):
        yield _trace_stage(design, trace)
    for mode in design.modes:
        make = partial(_random, design, mode, standard.random)
        yield _stream_stage(design, f"{mode} random", make)


def _random(design: Design, mode: str, dots: int) -> Stream:
    return design.random(mode, dots, np.random.default_rng([0, design.modes.index(mode), 1]))


def _stream_stage(design: Design, name: str, make: Callable[[], Stream]) -> _Stage:
    @cache
    def wanted() -> tuple[Stream, np.ndarray, np.ndarray]:
        stream = make()
        return stream, *design.model(stream)

    def first_difference(program: Path, value: int) -> int | None:
        stream, y, cycle = wanted()
        got_y, got_cycle = run_stream(program, design, stream, constants=[value])
        common = min(len(y), len(got_y))
        differ = (got_y[:common] != y[:common]) | (got_cycle[:common] != cycle[:common])
        if differ.any():
            return int(differ.argmax()) + 1
        return None if len(y) == len(got_y) else common + 1

    return _Stage(name, lambda: wanted()[0].dots, first_difference)


def _trace_stage(design: Design, trace: Trace) -> _Stage:
    def first_difference(program: Path, value: int) -> int | None:
        cycles = differing_cycles(program, design, trace, constants=[value])
        if not len(cycles):
            return None
        return sum(valid for _, valid, _ in trace.outputs[: cycles[0] + 1])

    return _Stage(f"{trace.mode} trace {trace.kind}", lambda: trace.dots, first_difference)
