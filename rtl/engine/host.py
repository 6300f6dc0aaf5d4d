"""Host side of an engine: a product as jobs and port words, and the results that must come back.

A tile beyond the edge of the product repeats the last row or column; nobody reads its results.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bitwright.quant import QuantizedTensor
from bitwright.rtl import pe
from bitwright.sim import PES, array, bitmod, dot, fp16

from .generator import EngineDesign


@dataclass(frozen=True)
class Operands:
    """A product in a PE's terms."""

    shape: array.jobs.TileShape
    x: Mapping[str, np.ndarray]  #: field of an activation word -> [m, steps, words]
    w: Mapping[str, np.ndarray]  #: field of a weight word -> [n, steps, words]
    job: Mapping[str, int]  #: fields of the job beside `array.Job`'s
    setup: tuple[Mapping[str, int], ...]  #: cycles of set-up ports before the job
    y: np.ndarray  #: uint32 [m, n, results]: the PE model's bits
    finish: Callable[[np.ndarray], np.ndarray]  #: such bits to float32 [m, n]
    gemm: np.ndarray  #: float32 [m, n], the PE's model for whole tensors


@dataclass(frozen=True)
class EngineWork:
    """What goes through the ports for a product, in order."""

    jobs: tuple[array.Job, ...]
    job_fields: tuple[Mapping[str, int], ...]
    setup: tuple[Mapping[str, int], ...]
    x: list[int]  #: words of `x_data`
    w: list[int]
    y: list[int]  #: words of `y_data` that must come back
    y_last: list[bool]
    operands: Operands
    plan: array.jobs.JobPlan

    def results(self, words: list[int], design: EngineDesign) -> np.ndarray:
        """float32 [m, n] from words of `y_data`: what a host makes of the engine's results."""
        operands, bits = self.operands, design.cells.y_bits
        y = np.zeros_like(operands.y)
        m, n, results = y.shape
        # A tile's results: group by group, row by row.
        rows = np.array(
            [[word >> c * bits & ((1 << bits) - 1) for c in range(design.cols)] for word in words],
            np.uint32,
        ).reshape(len(self.plan.tiles), results, design.rows, design.cols)
        for (i, j), tile in zip(self.plan.tiles, rows, strict=True):
            top, left = i * design.rows, j * design.cols
            part = tile[:, : m - top, : n - left].transpose(1, 2, 0)
            y[top : top + design.rows, left : left + design.cols] = part
        return operands.finish(y)


def prepare(
    design: EngineDesign, x: Any, w: Any, order: array.jobs.Order = "activations"
) -> EngineWork:
    """A product y = x @ w.T for an engine.

    Args:
        design: The engine.
        x: Activations [m, k] as the PE's `gemm` takes them.
        w: Weights [n, k] as the PE's `gemm` takes them.
        order: What stays in a buffer.

    Raises:
        InputError: The PE does not run the operands, or tiles do not fit the buffers.
    """
    operands = engine_operands(design.pe, x, w)
    m, n, _ = operands.y.shape
    m_tiles, n_tiles = -(-m // design.rows), -(-n // design.cols)
    plan = array.jobs.plan_jobs(design.config, m_tiles, n_tiles, operands.shape, order)
    x_bits = _row_bits(operands.x, design.cells.x_ports)
    w_bits = _row_bits(operands.w, design.cells.w_ports)
    x_words = [_tile_words(x_bits, i, design.rows) for i in range(m_tiles)]
    w_words = [_tile_words(w_bits, j, design.cols) for j in range(n_tiles)]
    names = {entry.name for entry in fields(array.Job)}
    return EngineWork(
        jobs=plan.jobs,
        job_fields=tuple(
            {
                name: getattr(job, name) if name in names else operands.job[name]
                for name in design.job_widths
            }
            for job in plan.jobs
        ),
        setup=operands.setup,
        x=[word for i in plan.x_tiles for word in x_words[i]],
        w=[word for j in plan.w_tiles for word in w_words[j]],
        y=[word for tile in plan.tiles for word in _result_words(operands.y, tile, design)],
        y_last=[
            row == design.rows - 1
            for _ in range(len(plan.tiles) * operands.y.shape[2])
            for row in range(design.rows)
        ],
        operands=operands,
        plan=plan,
    )


def _row_bits(values: Mapping[str, np.ndarray], widths: Mapping[str, int]) -> np.ndarray:
    """Words as bits, uint8 [rows, steps, words, bits], the first field lowest."""
    parts = []
    for name, bits in widths.items():
        patterns = values[name].astype(np.uint64)
        parts.append((patterns[..., None] >> np.arange(bits, dtype=np.uint64)) & np.uint64(1))
    return np.concatenate(parts, axis=-1).astype(np.uint8)


def _tile_words(bits: np.ndarray, tile: int, edge: int) -> list[int]:
    """The port words of a tile: rows side by side, row 0 lowest; step by step."""
    rows = np.minimum(np.arange(tile * edge, (tile + 1) * edge), len(bits) - 1)
    wide = bits[rows].transpose(1, 2, 0, 3)  # [steps, words, rows, bits]
    packed = np.packbits(wide.reshape(*wide.shape[:2], -1), axis=-1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed.reshape(-1, packed.shape[-1])]


def _result_words(y: np.ndarray, tile: tuple[int, int], design: EngineDesign) -> list[int]:
    m, n, results = y.shape
    rows = np.minimum(tile[0] * design.rows + np.arange(design.rows), m - 1)
    cols = np.minimum(tile[1] * design.cols + np.arange(design.cols), n - 1)
    words = []
    for result in range(results):
        for row in y[np.ix_(rows, cols, [result])][..., 0].tolist():
            words.append(sum(value << c * design.cells.y_bits for c, value in enumerate(row)))
    return words


# ------------------------------------------------------------------ operands by kind of PE


def engine_operands(name: str, x: Any, w: Any) -> Operands:
    """A product in the terms of a PE, with the results of its model.

    Raises:
        InputError: The PE does not run the operands.
    """
    design = pe.find_design(name)
    if isinstance(design, pe.bitmod.BitmodDesign):
        return _bitmod_operands(x, w)
    if isinstance(design, pe.fp16.Fp16Design):
        return _fp16_operands(design.config, x, w)
    assert isinstance(design, pe.DotDesign)
    return _dot_operands(design.unit, x, w)


def _dot_operands(unit: dot.DotUnit, x: Any, w: QuantizedTensor) -> Operands:
    unit.check(w)
    act = unit.activations(x, w)
    stream = unit.tensor_stream(act, w)
    y, _ = dot.run_model(unit, stream)
    m, n = act.n if isinstance(act, QuantizedTensor) else len(act), w.n
    planes = (act.format.bits, w.format.bits) if "shift" in unit.ports else (1, 1)
    by_step = {port: values.reshape(m, n, -1, *planes) for port, values in stream.ports.items()}
    ends = stream.last.reshape(m, n, -1, planes[0] * planes[1])[0, 0, :, -1]
    lengths = np.diff(np.flatnonzero(ends), prepend=-1).tolist()
    job = {}
    if "shift" in unit.ports:
        job = {
            "x_signed": int(act.format.kind == "int-sym"),
            "w_signed": int(w.format.kind == "int-sym"),
        }
    return Operands(
        array.jobs.TileShape(len(lengths), lengths[0], lengths[-1], *planes),
        {port: values[:, 0, :, :, 0] for port, values in by_step.items()},
        {port: values[0, :, :, 0, :] for port, values in by_step.items()},
        job,
        (),
        y.reshape(m, n, len(lengths)),
        lambda bits: unit.finish(bits.reshape(-1), act, w),
        unit.gemm(act, w),
    )


def _bitmod_operands(x: Any, w: QuantizedTensor) -> Operands:
    unit = PES["bitmod"]
    gemm = unit.gemm(x, w)
    act = np.asarray(x).astype(np.float16).view(np.uint16)
    mode, terms = bitmod.format_mode(w.format)
    special = bitmod.special_registers(w.format)
    arrays = [bitmod.tensor_steps(row, w, range(w.n)) for row in act]
    whole = bitmod.StepArrays(*(np.concatenate(part) for part in zip(*arrays, strict=True)))
    y, _ = bitmod.run_model(whole, mode, terms, special)
    steps = arrays[0].last.reshape(w.n, -1)
    lengths = np.diff(np.flatnonzero(steps[0]), prepend=-1).tolist()
    count = steps.shape[1]
    lanes = range(arrays[0].act.shape[1])
    acts = np.stack([one.act[:count] for one in arrays])
    first = arrays[0]
    scale = bitmod.output_scale(w)
    return Operands(
        array.jobs.TileShape(len(lengths), lengths[0], lengths[-1], terms=terms),
        {f"act{i}": acts[:, :, i, None] for i in lanes},
        {f"code{i}": first.code[:, i].reshape(w.n, count, 1) for i in lanes}
        | {
            name: getattr(first, name).reshape(w.n, count, 1)
            for name in ("zero", "selector", "scale")
        },
        {"mode": mode},
        tuple({"sv_we": 1, "sv_addr": i, "sv_data": word} for i, word in enumerate(special)),
        y.reshape(len(act), w.n, 1),
        lambda bits: np.ascontiguousarray(bits[..., 0]).view(np.float32) * scale,
        gemm,
    )


def _fp16_operands(config: fp16.Fp16Config, x: Any, w: Any) -> Operands:
    act = np.asarray(x).astype(np.float16).view(np.uint16)
    weight = fp16.weight_bits(w)
    gemm = fp16.Fp16PE(config).gemm(x, w)
    y = np.stack([fp16.run_model(fp16.dot_products(row, weight), config)[0] for row in act])

    def finish(bits: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(bits[..., 0])
        if config.acc == "fp32":
            return bits.view(np.float32)
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)

    k = act.shape[1]
    return Operands(
        array.jobs.TileShape(1, k, k),
        {"act": act[..., None]},
        {"weight": weight[..., None]},
        {},
        (),
        y[..., None],
        finish,
        gemm,
    )
