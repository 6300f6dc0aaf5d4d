"""Traces of an engine at work: every input and every output of every clock cycle.

A trace is made of sessions. A session writes the set-up ports, then offers the jobs and words of a
few products while the ports stall at random, until the last result has left; or it is cut off by a
reset. `ArrayReference` says what the engine does in which cycle, the PEs' models say the results.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitwright.quant import FORMATS, InputError, quantize
from bitwright.rtl import pe, vectors
from bitwright.sim import array, bitmod, btc

from .generator import EngineDesign
from .host import EngineWork, prepare


@dataclass
class EngineTrace:
    """Clock cycles of an engine; words have the first port in their highest bits."""

    name: str
    #: Inputs, outputs and the bits of these that are defined, cycle by cycle.
    lines: list[tuple[int, int, int]] = field(default_factory=list)
    gemms: int = 0  #: products whose last result is in the trace
    results: int = 0  #: words of `y_data` in the trace
    covers: Counter[str] = field(default_factory=Counter)

    @property
    def compared(self) -> int:
        """Clock cycles in which an output is defined."""
        return sum(mask != 0 for _, _, mask in self.lines)


#: What a check must have met at least once, whatever the PE.
BINS = (
    *(f"state {state.name.lower()}" for state in array.State),
    *(f"{port} waits" for port in ("job", "x", "w", "y")),
    *(f"order {order}" for order in array.jobs.ORDERS),
    "ragged rows", "ragged columns", "ragged group", "one step", "several groups", "several jobs",
    "products back to back", "reset at work",
)  # fmt: skip


def bins(name: str) -> tuple[str, ...]:
    """The bins that a check of a PE must meet: weights without groups have none to be ragged."""
    design = pe.find_design(name)
    grouped = isinstance(design, pe.bitmod.BitmodDesign) or (
        isinstance(design, pe.DotDesign) and FORMATS[design.unit.weight_formats[-1]].block is None
    )
    return tuple(b for b in BINS if grouped or b not in ("ragged group", "several groups"))


class EngineRecorder:
    """Drives `ArrayReference` and writes a trace down; a trace begins with a reset."""

    def __init__(self, design: EngineDesign, name: str, rng: np.random.Generator) -> None:
        self.design, self.trace, self._rng = design, EngineTrace(name), rng
        self._inputs, self._outputs = dict(design.input_widths), dict(design.output_widths)
        self._noise = random.Random(int(rng.integers(1 << 32)))
        self._idle: dict[str, int] = {}
        self.reset()

    def reset(self) -> None:
        """One cycle with `rst` high and anything on the other ports."""
        self._disturb()
        self._write({**self._idle, "rst": 1}, {}, {})
        self._engine = array.ArrayReference(self.design.config)

    def session(self, works: Sequence[EngineWork], cut: int | None = None) -> bool:
        """Products one after the other, which share their set-up.

        Args:
            works: The products.
            cut: Cycles after which a reset ends the session; None lets it end by itself.

        Returns:
            Whether it ended by itself.
        """
        rng = self._rng
        for values in works[0].setup:
            self._tick({}, {"y": True}, setup=values)
        queues: dict[str, list[Any]] = {
            "job": [
                pair for work in works for pair in zip(work.jobs, work.job_fields, strict=True)
            ],
            "x": [word for work in works for word in work.x],
            "w": [word for work in works for word in work.w],
            "y": [pair for work in works for pair in zip(work.y, work.y_last, strict=True)],
        }
        gaps = {name: self._gaps() for name in queues}
        due = {name: int(rng.integers(0, 4)) for name in queues}
        done = dict.fromkeys(queues, 0)
        cycle = 0
        while done["y"] < len(queues["y"]):
            if cut is not None and cycle >= cut:
                self.reset()
                self.trace.covers["reset at work"] += 1
                return False
            offer = {
                name: cycle >= due[name] and (name == "y" or done[name] < len(queue))
                for name, queue in queues.items()
            }
            heads = {n: queue[done[n]] for n, queue in queues.items() if done[n] < len(queue)}
            moved = self._tick(heads, offer)
            for name in queues:
                if moved[name]:
                    done[name] += 1
                    due[name] = cycle + 1 + int(rng.choice(gaps[name]))
            cycle += 1
        self.trace.gemms += len(works)
        self.trace.covers["products back to back"] += len(works) > 1
        return True

    def _gaps(self) -> list[int]:
        """How a port stalls in a session: never, a little, a lot, or seldom and long."""
        styles = ([0], [0, 0, 1, 3], [0, 2, 5, 9], [0] * 12 + [30])
        return styles[int(self._rng.integers(len(styles)))]

    def _tick(
        self,
        heads: Mapping[str, Any],
        offer: Mapping[str, bool],
        setup: Mapping[str, int] | None = None,
    ) -> dict[str, bool]:
        """One cycle; whether a word moved at each port."""
        show = {name: bool(offer.get(name)) for name in ("job", "x", "w", "y")}
        job, fields = heads["job"] if show["job"] else (None, {})
        out = self._engine.tick(job, show["x"], show["w"], show["y"])
        if self._noise.random() < 0.1:
            self._disturb()
        values = {**self._idle, "rst": 0, "job_valid": int(show["job"]), "y_ready": int(show["y"])}
        values |= {f"job_{name}": value for name, value in fields.items()}
        for port in ("x", "w"):
            values[f"{port}_valid"] = int(show[port])
            if show[port]:
                values[f"{port}_data"] = heads[port]
        for name in self.design.cells.setup_ports:
            values[name] = (setup or {}).get(name, 0 if name.endswith("_we") else values[name])
        expected = {
            "job_ready": int(out.job_ready),
            "x_ready": int(out.x_ready),
            "w_ready": int(out.w_ready),
            "state": int(out.state),
            "y_valid": int(out.y_valid),
        }
        known = {name: (1 << self._outputs[name]) - 1 for name in expected}
        if out.y_valid:
            expected["y_data"], expected["y_last"] = heads["y"]
            known["y_data"], known["y_last"] = (1 << self._outputs["y_data"]) - 1, 1
        self._write(values, expected, known)
        ready = {"job": out.job_ready, "x": out.x_ready, "w": out.w_ready, "y": out.y_valid}
        covers = self.trace.covers
        covers[f"state {out.state.name.lower()}"] += 1
        for name in ("job", "x", "w"):
            covers[f"{name} waits"] += show[name] and not ready[name]
        covers["y waits"] += out.y_valid and not show["y"]
        moved = {name: show[name] and ready[name] for name in show}
        self.trace.results += moved["y"]
        return moved

    def _disturb(self) -> None:
        """Change what ports show that offer nothing."""
        self._idle = {name: self._noise.getrandbits(bits) for name, bits in self._inputs.items()}

    def _write(
        self, inputs: Mapping[str, int], outputs: Mapping[str, int], known: Mapping[str, int]
    ) -> None:
        pack, (shown, seen) = vectors.pack, (self._inputs, self._outputs)
        self.trace.lines.append((pack(inputs, shown), pack(outputs, seen), pack(known, seen)))


# ------------------------------------------------------------------ random products


def random_operands(name: str, m: int, n: int, k: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Activations [m, k] and weights [n, k] that a PE runs; format and group drawn at random."""
    design = pe.find_design(name)
    x = (rng.standard_normal((m, k)) * 2.0 ** rng.integers(-3, 4)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = 0
    w = rng.standard_normal((n, k)).astype(np.float32)
    if isinstance(design, pe.fp16.Fp16Design):
        return x, w
    group = int(rng.integers(1, 3 * pe_lanes(name) + 4))
    if isinstance(design, pe.bitmod.BitmodDesign):
        fmt = str(rng.choice([entry.name for entry in bitmod.VERIFY_FORMATS.values()]))
        return x, quantize(w, fmt, group_size=group, scale_format="int8")
    assert isinstance(design, pe.DotDesign)
    modes = [mode for mode in design.modes if mode in FORMATS]
    fmt = str(rng.choice(modes or list(design.unit.weight_formats)))
    block = FORMATS[fmt].block
    if FORMATS[fmt].alternatives or "olive" in fmt:
        group = -(-group // 2) * 2
    if isinstance(design.unit, btc.BtcPE) and design.unit.unrolled is None:
        # Few planes end a group while the column unit is still at work.
        kind, bits = rng.choice(["sym", "asym"]), rng.choice([2, 2, 3, 8])
        return quantize(x, f"int{bits}-{kind}", group_size=k), quantize(w, fmt, group_size=group)
    return x, quantize(w, fmt, group_size=block or group)


def random_work(
    design: EngineDesign, rng: np.random.Generator
) -> tuple[EngineWork, dict[str, bool]]:
    """A random product, with edges that do not fill tiles, in a random order; bins it is in."""
    lanes = pe_lanes(design.pe)
    m = int(rng.integers(1, 3 * design.rows + 2))
    n = int(rng.integers(1, 3 * design.cols + 2))
    # A Binary-TensorCore step takes up to 64 beats.
    longest = 4 if lanes > 64 else 12 if rng.random() < 0.7 else 40
    k = int(rng.integers(1, longest * lanes + 1))
    x, w = random_operands(design.pe, m, n, k, rng)
    order = array.jobs.ORDERS[int(rng.integers(3))]
    try:
        work = prepare(design, x, w, order)
    except InputError:  # a tile that is too long for a buffer
        order = "stream"
        work = prepare(design, x, w, order)
    shape = work.operands.shape
    return work, {
        f"order {order}": True,
        "ragged rows": m % design.rows > 0,
        "ragged columns": n % design.cols > 0,
        "ragged group": shape.steps != shape.last_steps,
        "one step": shape.all_steps == 1,
        "several groups": shape.groups > 1,
        "several jobs": len(work.jobs) > 1,
    }


def pe_lanes(name: str) -> int:
    """Weights of a step, for the choice of lengths."""
    design = pe.find_design(name)
    if isinstance(design, pe.bitmod.BitmodDesign):
        return design.config.lanes
    return min(design.unit.lanes, 128) if isinstance(design, pe.DotDesign) else 1


def random_trace(
    design: EngineDesign, name: str, gemms: int, rng: np.random.Generator
) -> tuple[EngineTrace, int]:
    """A trace of so many random products, and how many of them differ from the PE's `gemm`.

    Every tenth session is cut off by a reset; its products do not count.
    """
    recorder = EngineRecorder(design, name, rng)
    wrong = 0
    while recorder.trace.gemms < gemms:
        work, found_bins = random_work(design, rng)
        found = work.results(work.y, design)
        same = np.array_equal(found.view(np.uint32), work.operands.gemm.view(np.uint32))
        wrong += not same
        works = [work] * (1 + (rng.random() < 0.2))
        cut = int(rng.integers(1, 60)) if rng.random() < 0.1 else None
        if recorder.session(works[: gemms - recorder.trace.gemms], cut):
            recorder.trace.covers.update({name: int(hit) for name, hit in found_bins.items()})
    return recorder.trace, wrong
