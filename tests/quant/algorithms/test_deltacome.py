"""Differences as bands of singular vectors: budgets, exactness in FP16, tail energy, files."""

from importlib import import_module

import numpy as np
import pytest

from bitwright.quant import InputError, load_tensors, save_tensors

_deltacome = import_module("bitwright.quant.algorithms.deltacome")
budget = _deltacome.budget
compress_low_rank = _deltacome.compress_low_rank
plan_bands = _deltacome.plan_bands


def difference(n, k, seed=0):
    """Singular values that fall, as those of fine-tuning do."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(n, k))
    u, _, vt = np.linalg.svd(w, full_matrices=False)
    return ((u * 2.0 ** -(np.arange(len(vt)) ** 0.5)) @ vt).astype(np.float32)


def error(delta, matrix):
    left = (delta - matrix.dequantize()).astype(np.float64)
    return float(np.square(left).sum() / np.square(delta.astype(np.float64)).sum())


def test_budgets_of_the_authors_plan():
    assert budget([(8, 2), (3, 32), (2, 968)], 4096, 4096) == 1 / 16
    assert budget([(8, 2), (3, 32), (2, 1428)], 11008, 4096) == pytest.approx(0.06214, abs=5e-6)


@pytest.mark.parametrize("n, k", [(4096, 4096), (11008, 4096), (576, 192), (1536, 576)])
def test_the_last_band_fills_the_budget_and_no_more(n, k):
    plan = plan_bands(n, k, 1 / 16, [(8, 2), (3, 32)], 2)
    assert plan[:2] == [(8, 2), (3, 32)]
    assert budget(plan, n, k) <= 1 / 16 < budget([*plan, (2, 1)], n, k)


def test_all_ranks_in_fp16_are_the_difference():
    delta = difference(40, 24)
    assert error(delta, compress_low_rank(delta, [(16, 24)])) < 1e-6
    assert error(delta, compress_low_rank(delta, [(16, 10), (16, 14)])) < 1e-6


@pytest.mark.parametrize("ranks", [1, 5, 23])
def test_what_bands_leave_out_is_the_energy_of_the_tail(ranks):
    delta = difference(40, 24)
    s = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
    tail = float(np.square(s[ranks:]).sum() / np.square(s).sum())
    assert error(delta, compress_low_rank(delta, [(16, ranks)])) == pytest.approx(tail, abs=1e-6)


def test_bits_go_where_the_energy_is():
    """Of two plans with the same bits the one that serves leading ranks better errs less."""
    delta = difference(256, 256)
    right = error(delta, compress_low_rank(delta, [(8, 8), (2, 64)]))
    wrong = error(delta, compress_low_rank(delta, [(2, 64), (8, 8)]))
    assert right < wrong


@pytest.mark.parametrize("n, k", [(40, 24), (300, 260), (7, 130)])
def test_bits_and_files(n, k, tmp_path):
    delta = difference(n, k)
    plan = [(16, 1), (8, 2), (3, 3), (2, 1)]
    matrix = compress_low_rank(delta, plan)
    groups = -(-k // 128)
    wanted = 0
    for bits, ranks in plan:
        wanted += 16 * ranks
        for rows, columns, held in ((n, ranks, 1), (ranks, k, groups)):
            wanted += 8 * -(-bits * rows * columns // 8)
            if bits < 16:
                wanted += 16 * rows * held + 8 * -(-bits * rows * held // 8)
    assert matrix.stored_bits == wanted
    assert sum(step.bits for step in matrix.passes()) == wanted
    assert [(p.n, p.k, p.format) for p in matrix.passes()][2:4] == [
        (2, k, "int8-asym"),
        (n, 2, "int8-asym"),
    ]
    assert matrix.nominal_bits == pytest.approx(16 * budget(plan, n, k))
    save_tensors(tmp_path / "d.safetensors", {"w": matrix}, {})
    loaded = load_tensors(tmp_path / "d.safetensors")[0]["w"]
    assert loaded == matrix and np.array_equal(loaded.dequantize(), matrix.dequantize())


@pytest.mark.parametrize(
    "make, text",
    [
        (
            lambda: plan_bands(128, 128, 1 / 16, [(8, 2), (3, 32)], 2),
            "budget 0.0625 of [128, 128] is not met: the leading bands take 0.1094 and 34 of 128 "
            "ranks; raise the budget or give them fewer ranks",
        ),
        (
            lambda: compress_low_rank(np.ones((4, 3), np.float32), [(8, 4)]),
            "bands [(8, 4)] do not fit [4, 3], which has 3 ranks",
        ),
        (
            lambda: compress_low_rank(np.ones((4, 3), np.float32), [(1, 2)]),
            "bands have 2 .. 8 or 16 bits, not 1",
        ),
        (
            lambda: compress_low_rank(np.full((4, 3), np.inf, np.float32), [(8, 2)]),
            "the difference at [0, 0] is NaN or infinite",
        ),
    ],
    ids=["budget", "ranks", "bits", "infinite"],
)
def test_bad_input_is_told_in_a_line(make, text):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == text
