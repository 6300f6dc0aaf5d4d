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
    seen = matrix.operands(delta)
    for band, (x, right), (ranks, left) in zip(matrix.bands, seen[::2], seen[1::2], strict=True):
        assert right is band.right and left is band.left and np.array_equal(x, delta)
        assert ranks.shape == (n, band.ranks) and ranks.dtype == np.float32
    scale, add = matrix.vector_work()
    assert (scale.length, add.length, add.times) == (1 + 2 + 3 + 1, n, 4)
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


# ---------------------------------------------------------------------------- GPTQ


def _correlated(k, seed=0):
    """A Hessian of inputs that depend on each other."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * k, k)) @ rng.standard_normal((k, k)) / np.sqrt(k)
    return (x.T @ x / len(x)).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [(5, 40), (3, 200)])
@pytest.mark.parametrize("c", [1.0, 0.25, 16.0])
def test_equal_inputs_round_to_nearest(bits, size, c):
    w = np.random.default_rng(bits).standard_normal(size).astype(np.float32)
    hessian = c * np.eye(size[1], dtype=np.float32)
    nearest = _deltacome.rounded_factor(w, bits)
    chosen = _deltacome.rounded_factor(w, bits, hessian)
    np.testing.assert_array_equal(chosen.codes, nearest.codes)
    np.testing.assert_array_equal(chosen.dequantize(), nearest.dequantize())


def test_with_equal_inputs_the_right_factor_is_rounded_to_nearest():
    """And the left one too where a band has one rank: its Hessian is a number."""
    delta = np.random.default_rng(1).standard_normal((48, 64)).astype(np.float32)
    plan = [(8, 1), (3, 4), (2, 6)]
    nearest = _deltacome.compress_low_rank(delta, plan)
    chosen = _deltacome.compress_low_rank(delta, plan, np.eye(64, dtype=np.float32))
    for one, other in zip(chosen.bands, nearest.bands, strict=True):
        np.testing.assert_array_equal(one.right.codes, other.right.codes)
        np.testing.assert_array_equal(one.values, other.values)
    assert chosen.bands[0].left == nearest.bands[0].left or np.array_equal(
        chosen.bands[0].left.codes, nearest.bands[0].left.codes
    )
    assert chosen.stored_bits == nearest.stored_bits


@pytest.mark.parametrize("seed", range(4))
def test_outputs_come_nearer_with_the_inputs_known(seed):
    """tr(E H E^T) against the kept singular vectors, which neither can exceed."""
    delta = np.random.default_rng(seed).standard_normal((60, 80)).astype(np.float32)
    hessian = _correlated(80, seed)
    plan = [(3, 12), (2, 20)]
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    kept = (u[:, :32] * s[:32]) @ vt[:32]
    errors = []
    for given in (None, hessian):
        e = kept - _deltacome.compress_low_rank(delta, plan, given).dequantize()
        errors.append(float(np.trace(e @ hessian @ e.T)))
    assert errors[1] < 0.9 * errors[0]


def test_bands_in_fp16_need_no_choice():
    delta = np.random.default_rng(2).standard_normal((12, 16)).astype(np.float32)
    plain = _deltacome.compress_low_rank(delta, [(16, 12)])
    assert _deltacome.compress_low_rank(delta, [(16, 12)], _correlated(16)) == plain


@pytest.mark.parametrize("hessian", [None, np.ones((1, 1), np.float32)], ids=["nearest", "gptq"])
def test_spreads_below_half_precision_are_zero(hessian):
    """An element of a single vector is a group of its own, and can be as small as it likes."""
    w = np.array([[1.0], [1e-5], [-2e-6], [3e-5]], np.float32)
    factor = _deltacome.rounded_factor(w, 8, hessian)
    assert factor.dequantize()[1:3].tolist() == [[0], [0]]
    np.testing.assert_allclose(factor.dequantize()[[0, 3]], w[[0, 3]], rtol=0.3)
