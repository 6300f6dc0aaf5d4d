"""Which tile of the bit-plane GEMM is fastest for a problem: all are tried on the device.

Each tile's result is compared with numpy's before it is timed, as ABQ-LLM's search does. What was
found best is remembered per device, driver and sources.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.quant import InputError, cache_folder, write_text

from .build import content_hash
from .device import Device, DeviceInfo
from .gemm import Gemm
from .planes import pack_planes, reference_sums
from .tiles import TILES, Problem, Tile

WARMUP_RUNS = 10
TIMED_RUNS = 1000

#: Seconds of one run, given the tile and a function that starts so many runs.
Measure = Callable[[Tile, Callable[[int], None]], float]


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one tile."""

    tile: Tile
    seconds: float | None  #: of one run; None if it was not timed
    refusal: str | None = None  #: why not: "wrong result", or the CUDA error


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The fastest tile of those that give the right result."""

    problem: Problem
    tile: Tile
    seconds: float  #: of one run
    trials: tuple[Trial, ...]


def search_tile(
    problem: Problem,
    *,
    device: Device | None = None,
    measure: Measure | None = None,
    tiles: Sequence[Tile] = TILES,
    operands: tuple[np.ndarray, np.ndarray] | None = None,
    remember: bool = True,
    seed: int = 0,
) -> SearchResult:
    """Try all tiles on a problem; the fastest one, also remembered for `binary_group_sums`.

    Args:
        problem: The product.
        device: Where; opened and closed here by default.
        measure: How a tile is timed; 10 runs to warm up and 1000 between two events by default.
        tiles: Which ones to try.
        operands: Planes of x and w; random ones of `seed` by default.
        remember: Whether the result goes to the cache.
        seed: Of random operands.

    Raises:
        InputError: No tile can run, or there is no CUDA device.
        RuntimeError: No tile that runs gives the right result.
    """
    if device is None:
        with Device.open() as device:
            return search_tile(
                problem,
                device=device,
                measure=measure,
                tiles=tiles,
                operands=operands,
                remember=remember,
                seed=seed,
            )
    measure = measure or device_measure(device)
    x, w = operands or random_planes(problem, seed)
    trials = []
    with Gemm(device, problem, x, w) as gemm:
        wanted = _wanted(problem, x, w)
        for tile in tiles:
            gemm.forget()
            status = gemm.launch_status(tile)
            if status != 0:
                trials.append(Trial(tile, None, device.error_text(status)))
            elif not np.array_equal(gemm.sums(), wanted):
                trials.append(Trial(tile, None, "wrong result"))
            else:
                trials.append(Trial(tile, measure(tile, partial(gemm.launch, tile))))
    timed = [(t.seconds, t.tile) for t in trials if t.seconds is not None]
    if not timed:
        reasons = sorted({str(t.refusal) for t in trials})
        message = f"no tile solves {problem.key}: {'; '.join(reasons) or 'tiles is empty'}"
        if "wrong result" in reasons:
            raise RuntimeError(message)
        raise InputError(f"{message}; use a smaller problem or other tiles")
    seconds, best = min(timed, key=lambda pair: pair[0])
    if remember:
        _remember(problem, device.info, best, seconds)
    return SearchResult(problem, best, seconds, tuple(trials))


def device_measure(device: Device, warmup: int = WARMUP_RUNS, runs: int = TIMED_RUNS) -> Measure:
    """A `Measure` that times runs in a row between two events on the device."""

    def measure(tile: Tile, launch: Callable[[int], None]) -> float:
        launch(warmup)
        return device.seconds(lambda: launch(runs)) / runs

    return measure


def random_planes(problem: Problem, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Planes of random codes, uniform over all of them."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 1 << problem.x_bits, (problem.m, problem.k), np.uint8, endpoint=False)
    w = rng.integers(0, 1 << problem.w_bits, (problem.n, problem.k), np.uint8, endpoint=False)
    return pack_planes(x, problem.x_bits), pack_planes(w, problem.w_bits)


def _wanted(problem: Problem, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    padding = ((0, 0), (0, 0), (0, problem.words - x.shape[2]))
    return reference_sums(
        np.pad(x, padding),
        np.pad(w, padding),
        group_words=problem.group_words,
        x_signed=problem.x_signed,
        w_signed=problem.w_signed,
    )


def remembered_tile(problem: Problem, info: DeviceInfo) -> Tile | None:
    """The tile that a search on this device found best; None if there was none."""
    entry = _read().get(_device_key(info), {}).get(problem.key)
    return next((t for t in TILES if entry and t.name == entry["tile"]), None)


def _path() -> Path:
    return cache_folder("cuda") / "tiles.json"


def _device_key(info: DeviceInfo) -> str:
    return f"{info.name} | {info.driver} | {content_hash()}"


def _read() -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: a cache may be lost
        return {}
    return found if isinstance(found, dict) else {}


def _remember(problem: Problem, info: DeviceInfo, tile: Tile, seconds: float) -> None:
    entries = _read()
    known = entries.setdefault(_device_key(info), {})
    known[problem.key] = {"tile": tile.name, "seconds": seconds}
    write_text(_path(), json.dumps(entries, indent=1))
