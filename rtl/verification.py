"""All realisations of a PE against each other, in values and in clock cycles.

The numba model runs every vector and is what the others are compared with; the plain-Python
reference, the definition, is compared with it too, on fewer vectors because it is slow.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyrtl

from bitwright.quant import InputError, Progress, list_models, load_model

from .bench_runs import run_bench
from .bulk import build_driver, run_stream
from .emission import bench_files, bench_traces, trace_files
from .netlist_models import cell_models
from .pe import Design, TensorCase, find_design
from .synth import synthesise
from .technology import resolve_technology
from .vectors import (
    Stream,
    Trace,
    TraceRecorder,
    count_mismatches,
    results_of,
)
from .verilator import find
from .yosys import yosys_version

Kernel = Callable[..., np.ndarray]
Results = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Effort:
    """How many dot products a level of verification takes, per mode."""

    random: int  #: random ones, in the fast realisations
    slow: int  #: of each kind, in the plain-Python reference and PyRTL's simulation
    bench: int  #: random ones with gaps and resets, in the cocotb bench
    model: str  #: language model whose layers give real rows
    rows: int  #: rows of each of its layers
    overflow: bool = True  #: whether accumulators are made to wrap, where that takes long


LEVELS: Mapping[str, Effort] = {
    "quick": Effort(random=2_000, slow=100, bench=60, model="tiny", rows=4, overflow=False),
    "standard": Effort(random=100_000, slow=1_000, bench=500, model="smollm2", rows=32),
    "full": Effort(random=100_000, slow=1_000_000, bench=2_000, model="smollm2", rows=64),
}

FORMAL = "formal"  #: the level of proofs by SAT, in place of vectors
REALISATIONS = ("reference", "model", "kernel", "pyrtl", "cocotb", "verilog", "netlist", "proof")
NETLIST_TECHNOLOGY = "nangate45"
_PROMPT = "The bit-serial processing element multiplies one power of two at a time."


@dataclass(frozen=True)
class VerifyRow:
    """One realisation in one mode."""

    pe: str
    mode: str
    level: str
    realisation: str
    against: str  #: what it was compared with
    vectors: int  #: dot products compared
    mismatches: int  #: of them; clock cycles where every cycle is compared (pyrtl, cocotb)
    kinds: Mapping[str, int] = field(default_factory=dict)  #: vectors by kind
    note: str = ""  #: what was left out, and why
    bins: int = 0  #: functional coverage bins of the mode (cocotb)
    bins_hit: int = 0
    seconds: float = 0.0  #: of a proof
    finished: bool = True  #: whether the comparison or the proof came to its end

    @property
    def cell(self) -> str:
        """The vectors, or what became of a proof."""
        if self.realisation != "proof":
            return f"{self.vectors:,}"
        return "refuted" if self.mismatches else "proved" if self.finished else "open"


def level_realisations(level: str) -> tuple[str, ...]:
    """The realisations that a level runs.

    Raises:
        InputError: There is no such level.
    """
    _known("level", level, (*LEVELS, FORMAL))
    return REALISATIONS[-1:] if level == FORMAL else REALISATIONS[:-1]


def missing_tools(realisations: Sequence[str]) -> dict[str, str]:
    """Realisation -> why it cannot be run here, for those that cannot.

    Raises:
        InputError: An unknown realisation.
    """
    needs: Mapping[str, Sequence[Callable[[], object]]] = {
        "kernel": (partial(_package, "torch"),),
        "cocotb": (find, partial(_package, "cocotb")),
        "verilog": (find,),
        "netlist": (find, yosys_version),
        "proof": (yosys_version,),
    }
    missing: dict[str, str] = {}
    for name in realisations:
        for check in needs.get(_known("realisation", name, REALISATIONS), ()):
            try:
                check()
            except InputError as error:
                missing.setdefault(name, str(error))
    return missing


def _package(name: str) -> None:
    if find_spec(name) is None:
        raise InputError(f"the package {name} is missing; install it with: pip install {name}")


def verify(
    pe: str,
    modes: Sequence[str] | None = None,
    level: str = "standard",
    seed: int = 0,
    progress: Progress | None = None,
    *,
    vectors: int | None = None,
    kernel: Kernel | None = None,
    realisations: Sequence[str] | None = None,
    verilog: str | None = None,
) -> list[VerifyRow]:
    """Run a PE's realisations on the same vectors.

    Args:
        pe: Name of the PE.
        modes: Some of the design's modes; None for all.
        level: A key of LEVELS.
        seed: Of the random vectors.
        progress: Called per realisation and mode.
        vectors: Random dot products per mode, in place of the level's.
        kernel: The PE's software kernel, of `bitwright.kernels`; without it that row is left out.
        realisations: Some of REALISATIONS but `proof`; None for all of these.
        verilog: Text to verify in place of the generator's Verilog, e.g. one edited by hand.

    Raises:
        InputError: An unknown name, or a tool is missing; the message says what to install.
        RuntimeError: A tool fails.
    """
    design = find_design(pe)
    effort = LEVELS[_known("level", level, LEVELS)]
    chosen_modes = [_known("mode", mode, design.modes) for mode in modes or design.modes]
    names = realisations or level_realisations(level)
    # Proofs are `prove`'s: taken here they would compare nothing.
    chosen = [_known("realisation", name, REALISATIONS[:-1]) for name in names]
    if kernel is None and "kernel" in chosen:
        chosen.remove("kernel")
    if vectors is not None and vectors < 1:
        raise InputError(f"vectors (={vectors}) must be 1 or more")
    if {"cocotb", "verilog", "netlist"} & set(chosen):
        find()
    text = verilog or design.verilog()

    rows: list[VerifyRow] = []
    jobs = len(chosen) * len(chosen_modes)

    def report(what: str) -> None:
        if progress:
            progress(len(rows), jobs, what)

    report("rows of a model")
    data, origin = _real_rows(effort)
    programs: dict[str, Path] = {}
    for name in ("verilog", "netlist"):
        if name in chosen:
            report(f"build {name}")
            programs[name] = build_driver(design, _sources(design, name, text))
    traces: dict[str, list[Trace]] = {}
    if {"pyrtl", "cocotb"} & set(chosen):
        report("traces from the reference")
        traces = {m: bench_traces(design, effort.bench, seed, [m]) for m in chosen_modes}
    simulation = PyrtlSimulation(design) if "pyrtl" in chosen else None

    # Simulators are processes of their own: one runs beside the work of this one.
    background = ThreadPoolExecutor(1)
    try:
        for index, mode in enumerate(chosen_modes):
            report(f"{mode} model")
            rng = np.random.default_rng([seed, index, 1])
            cases = [design.tensor(mode, x, w) for x, w in data]
            streams = {
                "corner": [design.corners(mode)],
                "random": [design.random(mode, vectors or effort.random, rng)],
                "tensor": [case.stream for case in cases],
            }
            short = _shortened(streams, effort.slow)
            overflow = design.overflow(mode) if effort.overflow else None
            if overflow is not None:  # a million steps, for the fast ones alone
                streams["overflow"] = [overflow]
            wanted = {kind: [design.model(s) for s in parts] for kind, parts in streams.items()}
            simulated = {
                name: background.submit(
                    _compare, partial(run_stream, program, design), streams, wanted
                )
                for name, program in programs.items()
            }
            row = partial(VerifyRow, design.name, mode, level)
            if "reference" in chosen:
                report(f"{mode} reference")
                compared = _compare(
                    partial(_through_reference, design),
                    short,
                    {kind: [design.model(s) for s in parts] for kind, parts in short.items()},
                )
                rows.append(row("reference", "model", *compared, _left_out(effort)))
            if "model" in chosen:
                compared = _whole_tensors(cases, wanted["tensor"])
                rows.append(row("model", "gemm", *compared, origin))
            if "kernel" in chosen:
                report(f"{mode} kernel")
                assert kernel is not None
                compared = _compare(partial(_through_kernel, design, kernel), streams, wanted)
                rows.append(row("kernel", "model", *compared, origin))
            if simulation is not None:
                report(f"{mode} pyrtl")
                compared = _through_pyrtl(design, simulation, traces[mode], short)
                rows.append(row("pyrtl", "reference", *compared, _left_out(effort)))
            for name, result in simulated.items():
                report(f"{mode} {name}")
                rows.append(row(name, "model", *result.result(), origin))
        if "cocotb" in chosen:
            report("cocotb")
            bench = [t for m in chosen_modes for t in traces[m]]
            counts, coverage = _through_cocotb(design, bench, text)
            for mode in chosen_modes:
                own = [counts[trace.name] for trace in traces[mode]]
                kinds = {t.kind: count.dots for t, count in zip(traces[mode], own, strict=True)}
                compared = _Compared(
                    sum(kinds.values()), sum(count.mismatches for count in own), kinds
                )
                hit = sum(map(bool, coverage[mode].values()))
                rows.append(
                    VerifyRow(
                        design.name,
                        mode,
                        level,
                        "cocotb",
                        "reference",
                        *compared,
                        bins=len(coverage[mode]),
                        bins_hit=hit,
                    )  # fmt: skip
                )
    finally:
        background.shutdown(cancel_futures=True)
    rows.sort(key=lambda r: (chosen_modes.index(r.mode), REALISATIONS.index(r.realisation)))
    return rows


class _Compared(NamedTuple):
    vectors: int
    mismatches: int
    kinds: dict[str, int]


def _known(what: str, name: str, known: Sequence[str] | Mapping[str, object]) -> str:
    if name not in known:
        raise InputError(f"unknown {what} {name!r}; there are: {', '.join(known)}")
    return name


def _left_out(effort: Effort) -> str:
    return f"slow: at most {effort.slow} of each kind" if effort.slow < effort.random else ""


# ------------------------------------------------------------------ vectors


def _real_rows(effort: Effort) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Activations float16 [2, k] and weights float32 [rows, k] of four layers, and their origin.

    The activations are those of the model itself on the first tokens of a fixed sentence.
    """
    name, note = effort.model, ""
    if name != "tiny" and not any(m.name == name and m.available for m in list_models()):
        name, note = "tiny", f" ({name} is not in the cache: run `bitwright models fetch`)"
    model = load_model(name)
    import torch

    last, middle = model.config.layers - 1, model.config.layers // 2
    layers = (
        "blocks.0.attn.q",
        f"blocks.{middle}.attn.o",
        f"blocks.{middle}.ffn.gate",
        f"blocks.{last}.ffn.down",
    )
    seen: dict[str, np.ndarray] = {}

    def record(layer: str, x: torch.Tensor) -> torch.Tensor:
        if layer in layers:
            seen[layer] = x.reshape(-1, x.shape[-1])[-2:].to(torch.float16).numpy()
        return x @ model.weight(layer).T

    with torch.no_grad():
        model.logits(torch.tensor([model.tokenizer.encode(_PROMPT)[:16]]), record)
    rows = [(seen[n], model.weight(n)[: effort.rows].numpy()) for n in layers]
    return rows, f"rows of {name}{note}"


def _shortened(streams: Mapping[str, list[Stream]], dots: int) -> dict[str, list[Stream]]:
    """About `dots` dot products of each kind, the parts in equal shares."""
    short = {}
    for kind, parts in streams.items():
        # Real rows are hundreds of steps long.
        share = -(-dots // (len(parts) * (50 if kind == "tensor" else 1)))
        short[kind] = [part.sample(share) for part in parts]
    return short


# ------------------------------------------------------------------ realisations


def _compare(
    run: Callable[[Stream], Results],
    streams: Mapping[str, list[Stream]],
    wanted: Mapping[str, list[Results]],
) -> _Compared:
    kinds, wrong = {}, 0
    for kind, parts in streams.items():
        kinds[kind] = sum(part.dots for part in parts)
        for part, results in zip(parts, wanted[kind], strict=True):
            wrong += count_mismatches(run(part), results)
    return _Compared(sum(kinds.values()), wrong, kinds)


def _whole_tensors(cases: Sequence[TensorCase], wanted: Sequence[Results]) -> _Compared:
    """The model's results for a stream against those for whole tensors."""
    wrong = sum(
        int((case.gemm != case.finish(y)).sum()) for case, (y, _) in zip(cases, wanted, strict=True)
    )
    count = sum(case.gemm.size for case in cases)
    return _Compared(count, wrong, {"tensor": count})


def _chunks(stream: Stream, dots: int = 2_000) -> Iterator[Stream]:
    """Streams of at most `dots` dot products, which fit in memory as traces."""
    ends = np.flatnonzero(stream.ends) + 1
    starts = np.concatenate([[0], ends[dots - 1 :: dots]])
    for start, stop in zip(starts, np.append(starts[1:], stream.steps), strict=True):
        if stop > start:
            ports = {name: values[start:stop] for name, values in stream.ports.items()}
            yield Stream(stream.mode, stream.setup, ports, stream.ends[start:stop])


def recorded(design: Design, stream: Stream) -> Trace:
    """The stream back to back through the reference."""
    recorder = TraceRecorder(design.reference())
    recorder.stream(stream)
    return recorder.trace("back to back", stream.mode)


def _through_reference(design: Design, stream: Stream) -> Results:
    return results_of(recorded(design, stream))


def _through_kernel(design: Design, kernel: Kernel, stream: Stream) -> Results:
    return design.kernel(kernel, stream), design.model(stream)[1]


def _through_pyrtl(
    design: Design,
    simulation: "PyrtlSimulation",
    traces: Sequence[Trace],
    streams: Mapping[str, list[Stream]],
) -> _Compared:
    """Every clock cycle of the bench's traces and of short streams in PyRTL's own simulation."""
    kinds = Counter({trace.kind: trace.dots for trace in traces})
    wrong = sum(simulation.mismatches(trace) for trace in traces)
    for kind, parts in streams.items():
        for part in (chunk for whole in parts for chunk in _chunks(whole)):
            trace = recorded(design, part)
            kinds[kind] += trace.dots
            wrong += simulation.mismatches(trace)
    return _Compared(kinds.total(), wrong, dict(kinds))


_MOST_COMPILED = 10_000  #: nets


class PyrtlSimulation:
    """A design in PyRTL's compiled simulation, or its interpreted one.

    The latter where gcc is missing, and for designs of so many nets that gcc takes minutes.
    """

    def __init__(self, design: Design) -> None:
        self._block = design.block()
        self._outputs = [*(["ready"] if design.has_ready else []), "y_valid", "y"]
        wires = [self._block.get_wirevector_by_name(name) for name in self._outputs]
        self._inputs = {wire.name: 0 for wire in self._block.wirevector_subset(pyrtl.Input)}
        self._tracer = pyrtl.SimulationTrace(wires, block=self._block)
        compiled = shutil.which("gcc") is not None and len(self._block.logic) < _MOST_COMPILED
        kind = pyrtl.CompiledSimulation if compiled else pyrtl.FastSimulation
        self._simulation = kind(tracer=self._tracer, block=self._block)

    def mismatches(self, trace: Trace) -> int:
        """Clock cycles of the trace, which starts with a reset, in which an output differs."""
        # Step by step: CompiledSimulation.run of PyRTL 1.0.3 repeats the first step's outputs.
        for inputs in trace.inputs:
            self._simulation.step({**self._inputs, **inputs})
        columns = [self._tracer.trace[name] for name in self._outputs]
        ready = columns[0] if len(columns) == 3 else [1] * len(trace.inputs)
        got = zip(ready, columns[-2], columns[-1], strict=True)
        wrong = 0
        for cycle, (values, wanted) in enumerate(zip(got, trace.outputs, strict=True)):
            shown = trace.inputs[cycle].get("valid", 0)
            y = values[2] if values[1] else 0
            wrong += cycle > 0 and (
                (values[0] & shown, values[1], y) != (wanted[0] & shown, *wanted[1:])
            )
        for column in columns:
            column.clear()
        return wrong


class _BenchCount(NamedTuple):
    dots: int
    mismatches: int


def _through_cocotb(
    design: Design, traces: Sequence[Trace], text: str, timeout_s: float = 1800
) -> tuple[dict[str, _BenchCount], dict[str, dict[str, int]]]:
    """Emit the bench with these traces, run it, and read its report.

    Returns:
        Trace name -> counts, and mode -> coverage bin -> times hit.

    Raises:
        RuntimeError: The bench fails, and not for a mismatch; or nothing differs and a coverage
            bin stays empty.
    """
    vectors = trace_files(design, traces)
    files = bench_files(design, text) | {f"vectors/{name}": t for name, t in vectors.items()}
    report, failure = run_bench(design.top, files, {trace.name for trace in traces}, timeout_s)
    coverage = report["coverage"]
    if not coverage:
        raise failure or RuntimeError("the cocotb bench gave no coverage")
    counts = {
        name: _BenchCount(count["results"], count["mismatches"])
        for name, count in report["traces"].items()
    }
    if failure is not None and not any(count.mismatches for count in counts.values()):
        empty = [f"{mode}: {b}" for mode in coverage for b, n in coverage[mode].items() if not n]
        if empty:
            raise RuntimeError(f"coverage bins that the cocotb bench never hit: {', '.join(empty)}")
        raise failure
    return counts, coverage


def _sources(design: Design, name: str, text: str) -> list[Path | str]:
    if name == "verilog":
        return [text]
    technology = resolve_technology(NETLIST_TECHNOLOGY)
    result = synthesise(text, design.top, technology)
    return [result.netlist, cell_models(technology, result.cells_by_type)]
