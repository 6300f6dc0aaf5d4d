"""The search for a tile, on the emulated machine with made-up times."""

import json
from typing import Any

import numpy as np
import pytest

from bitwright.kernels import cuda
from bitwright.quant import InputError

PROBLEM = cuda.Problem(2, 9, 256, 3, 2, w_signed=True)
SOME = (cuda.TILES[3], cuda.TILES[0], cuda.TILES[10])


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path))
    return tmp_path


def test_the_fastest_tile_wins(emulated) -> None:
    times = {3: 3e-6, 0: 1e-6, 10: 2e-6}
    launched = []

    def measure(tile, launch) -> float:
        launch(2)
        launched.append(tile)
        return times[tile.index]

    result = cuda.search_tile(PROBLEM, device=emulated, measure=measure, tiles=SOME)
    assert (result.tile, result.seconds) == (cuda.TILES[0], 1e-6)
    assert launched == list(SOME)
    assert [t.seconds for t in result.trials] == [3e-6, 1e-6, 2e-6]


def test_the_best_is_remembered_per_device(emulated, own_cache) -> None:
    cuda.search_tile(PROBLEM, device=emulated, measure=lambda tile, _: tile.index + 1.0, tiles=SOME)
    assert cuda.search.remembered_tile(PROBLEM, emulated.info) == cuda.TILES[0]
    (key,) = json.loads((own_cache / "cuda" / "tiles.json").read_text())
    assert key.startswith("emulated | 0.0 | ")
    cuda.search_tile(
        PROBLEM, device=emulated, measure=lambda tile, _: -tile.index + 99.0, tiles=SOME
    )
    assert cuda.search.remembered_tile(PROBLEM, emulated.info) == cuda.TILES[10]
    assert cuda.search.remembered_tile(cuda.Problem(1, 9, 256, 3, 2), emulated.info) is None


def test_a_damaged_memory_is_no_memory(emulated, own_cache) -> None:
    (own_cache / "cuda").mkdir()
    (own_cache / "cuda" / "tiles.json").write_text("{")
    assert cuda.search.remembered_tile(PROBLEM, emulated.info) is None


def test_the_remembered_tile_is_used(emulated, monkeypatch) -> None:
    cuda.search_tile(PROBLEM, device=emulated, measure=lambda tile, _: 1.0, tiles=(cuda.TILES[10],))
    used: list[int] = []
    status = emulated.status

    def watched(*args: Any) -> int:
        used.append(args[3])
        return status(*args)

    monkeypatch.setattr(emulated, "status", watched)
    cuda.binary_group_sums(*cuda.search.random_planes(PROBLEM, 0), w_signed=True, device=emulated)
    assert used == [10]


def test_a_wrong_tile_is_never_timed(emulated, monkeypatch) -> None:
    """A kernel that writes nothing is found out too: the result begins as a pattern."""
    status = emulated.status
    monkeypatch.setattr(emulated, "status", lambda *a: 0 if a[3] == 0 else status(*a))
    result = cuda.search_tile(
        PROBLEM, device=emulated, measure=lambda tile, _: tile.index + 1.0, tiles=SOME
    )
    assert result.tile == cuda.TILES[3]
    assert [t.refusal for t in result.trials] == [None, "wrong result", None]


def test_only_wrong_tiles_are_a_fault(emulated, monkeypatch) -> None:
    monkeypatch.setattr(emulated, "status", lambda *a: 0)
    with pytest.raises(RuntimeError, match="no tile solves m2-n9.*: wrong result"):
        cuda.search_tile(PROBLEM, device=emulated, measure=lambda tile, _: 1.0, tiles=SOME)


def test_tiles_that_cannot_run_are_told(emulated) -> None:
    tall = cuda.Problem(65536, 1, 128, 8, 1)  # one row a block, more than a grid is high
    planes = np.zeros((8, 65536, 4), np.uint32), np.zeros((1, 1, 4), np.uint32)
    with pytest.raises(InputError, match="no tile solves .*cudaErrorInvalidValue; use a smaller"):
        cuda.search_tile(tall, device=emulated, tiles=cuda.TILES[:2], operands=planes)


def test_given_operands_are_used(emulated) -> None:
    planes = (
        cuda.pack_planes(np.ones((2, 256), np.uint8), 3),
        cuda.pack_planes(np.ones((9, 256), int), 2),
    )
    result = cuda.search_tile(
        PROBLEM,
        device=emulated,
        measure=lambda *_: 1.0,
        tiles=SOME,
        operands=planes,
        remember=False,
    )
    assert result.tile == cuda.TILES[3]  # the first of equals
    assert cuda.search.remembered_tile(PROBLEM, emulated.info) is None


def test_runs_are_timed_after_warming_up(emulated, monkeypatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(emulated, "seconds", lambda launch: (launch(), 0.5)[1])
    seconds = cuda.search.device_measure(emulated)(cuda.TILES[0], calls.append)
    assert calls == [10, 1000]
    assert seconds == 0.5 / 1000


def test_copies_of_the_weights_take_turns(emulated) -> None:
    """Three launches over two copies: all read whole operands, and give the same sums."""

    x, w = cuda.search.random_planes(PROBLEM, 0)
    with cuda.gemm.Gemm(emulated, PROBLEM, x, w, w_copies=2) as gemm:
        gemm.launch(cuda.TILES[0], 3)
        np.testing.assert_array_equal(gemm.sums(), cuda.reference_sums(x, w, w_signed=True))
