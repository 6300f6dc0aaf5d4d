"""Any-Precision LLM: clusters by hand, twins, nesting, bits, files, and a model at all widths."""

from importlib import import_module
from statistics import NormalDist

import numpy as np
import pytest

from bitwright.quant import (
    Calibration,
    InputError,
    apply_recipe,
    load_model,
    load_quantized,
    load_tensors,
    perplexity,
    resolve_recipe,
    save_quantized,
    save_tensors,
)

module = import_module("bitwright.quant.algorithms.anyprecision")
jitted = import_module("bitwright.quant.algorithms.anyprecision_numba")
cluster, AnyPrecisionMatrix = module.cluster, module.AnyPrecisionMatrix


@pytest.fixture(scope="module")
def w():
    return np.random.default_rng(0).standard_normal((24, 600)).astype(np.float32)


@pytest.fixture(scope="module")
def matrix(w):
    return cluster(w)


def borders_of(x, weights, clusters):
    borders = np.zeros(clusters + 1, np.int32)
    jitted.seed_borders(module.prefix_sums(x[None], weights[None])[0], borders)
    return borders.tolist()


def children_of(x, weights, borders):
    children = np.zeros(2 * len(borders) - 1, np.int32)
    sums = module.prefix_sums(x[None], weights[None])[0]
    jitted.split(sums, np.array(borders, np.int32), children)
    return children.tolist()


@pytest.mark.parametrize(
    ("weights", "centres", "error"),
    [((1,) * 6, (-2.75, -0.1), 1.285), ((1, 1, 10, 1, 1, 1), (-2.75, -9.4 / 13), 3.52808)],
    ids=["alike", "heavy"],
)
def test_split_by_hand(weights, centres, error):
    x, weights = np.array([-3, -2.5, -1, 0, 0.2, 0.4]), np.array(weights, float)
    borders = children_of(x, weights, [0, 6])
    assert borders == [0, 2, 6] == module.split_reference(x, weights, [0, 6])
    parts = [slice(0, 2), slice(2, 6)]
    means = [np.average(x[part], weights=weights[part]) for part in parts]
    assert means == pytest.approx(centres)
    costs = [module.segment_cost(x[part], weights[part]) for part in parts]
    assert sum(costs) == pytest.approx(error, abs=5e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 8, 9, 31, 64])
@pytest.mark.parametrize("clusters", [1, 2, 3, 8])
def test_seed_agrees_with_its_twin(k, clusters):
    rng = np.random.default_rng([k, clusters])
    x, weights = np.sort(rng.standard_normal(k)), rng.uniform(0.1, 2, k)
    fast, slow = borders_of(x, weights, clusters), module.seed_reference(x, weights, clusters)

    def total(borders):
        pairs = zip(borders[:-1], borders[1:], strict=True)
        return sum(module.segment_cost(x[a:b], weights[a:b]) for a, b in pairs)

    assert fast[0] == 0 and fast[-1] == k and fast == sorted(fast)
    assert total(fast) == pytest.approx(total(slow), abs=1e-12)
    if k > clusters:  # fewer values leave clusters empty, and several borders are as good
        assert fast == slow
    assert children_of(x, weights, fast) == module.split_reference(x, weights, fast)


def test_seed_is_the_optimum():
    """All ways to cut 9 values in 3."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        x, weights = np.sort(rng.standard_normal(9)), rng.uniform(0, 2, 9)
        a, b = borders_of(x, weights, 3)[1:3]

        def cost(a, b, x=x, weights=weights):
            parts = [slice(0, a), slice(a, b), slice(b, 9)]
            return sum(module.segment_cost(x[part], weights[part]) for part in parts)

        least = min(cost(i, j) for i in range(10) for j in range(i, 10))
        assert cost(a, b) == pytest.approx(least, rel=1e-9)


def test_a_row_by_hand():
    """Four values in two clusters, then apart; columns out of order."""
    q = cluster(np.array([[5, -1, 4, -2]], np.float32), seed_bits=1, parent=2, bits=2)
    assert q.labels.tolist() == [[3, 1, 2, 0]]
    assert q.tables.tolist() == [[-1.5, 4.5, -2, -1, 4, 5]]
    assert q.dequantize().tolist() == [[5, -1, 4, -2]]
    assert q.at(1).dequantize().tolist() == [[4.5, -1.5, 4.5, -1.5]]
    assert q.entries()["planes"].tolist() == [[0b0101], [0b0011]]  # most significant first


def test_weights_move_centroids_and_zeros_do_not_count():
    w = np.array([[1, 2, 0, 0]], np.float32)
    q = cluster(w, np.array([1, 3, 100, 100]), seed_bits=1, parent=1, bits=1)
    assert q.tables.tolist() == [[1, 2]]  # the zeros weigh nothing and fall to the first
    q = cluster(np.array([[1, 2, 9]], np.float32), np.array([1, 3, 1]), 1, 1, 1)
    assert q.tables.tolist() == [[1.75, 9]]
    alone = cluster(np.zeros((2, 5), np.float32))
    assert not alone.dequantize().any()
    q = cluster(np.array([[1, 2, 9]], np.float32), np.zeros(3), 1, 1, 1)  # as with weights 1
    assert q.tables.tolist() == [[1.5, 9]]


def test_labels_nest(matrix, w):
    for bits in range(3, 9):
        labels = matrix.labels_at(bits)
        assert np.array_equal(labels, matrix.labels >> (8 - bits))
        assert labels.max() < 1 << bits
        # A narrower run is what the narrower matrix alone would be.
        alone = cluster(w, parent=bits, bits=bits)
        assert np.array_equal(alone.labels, labels)
        assert np.array_equal(alone.dequantize(), matrix.at(bits).dequantize())
        assert (np.diff(matrix.centroids(bits).astype(np.float32), axis=1) >= 0).all()


def test_error_falls_with_every_bit(w):
    weights = np.random.default_rng(1).uniform(0.1, 4, w.shape[1])
    for each in (None, weights):
        q = cluster(w, each)
        errors = [
            ((q.at(bits).dequantize() - w) ** 2 * (1 if each is None else each)).sum(axis=1)
            for bits in range(3, 9)
        ]
        assert (np.diff(errors, axis=0) < 0).all()


def test_weights_help_the_weighted_error(w, matrix):
    weights = np.random.default_rng(1).uniform(0.01, 4, w.shape[1]) ** 2
    weighted = cluster(w, weights)

    def error(q):
        return ((q.at(3).dequantize() - w) ** 2 * weights).sum()

    assert error(weighted) < error(matrix)


def test_gaussian_errors():
    """A row of 60 000 quantiles: Lloyd and Max's errors, and what splitting loses."""
    count = 60_000
    places = (np.arange(count) + 0.5) / count
    row = np.array([[NormalDist().inv_cdf(p) for p in places]], np.float32)
    grown = cluster(row, parent=5)
    # Whole-row 1-D k-means 0.0347, 0.00955, 0.00253; upscaled 0.00966, 0.00260: all to 1 %, for
    # those come from drawn numbers. To 3 digits the exact optimum of N(0, 1), Max, "Quantizing for
    # Minimum Distortion", IRE Trans. Inf. Theory 1960, table I: 0.03454, 0.009497, 0.002499.
    for bits, optimum, drawn in (
        (3, 0.03454, 0.0347),
        (4, 0.009497, 0.00955),
        (5, 0.002499, 0.00253),
    ):
        alone = cluster(row, seed_bits=bits, parent=bits, bits=bits)
        error = np.mean((alone.dequantize() - row) ** 2, dtype=float)
        assert error == pytest.approx(optimum, rel=2e-3)
        assert error == pytest.approx(drawn, rel=0.015)
    for bits, drawn in ((4, 0.00966), (5, 0.00260)):
        error = np.mean((grown.at(bits).dequantize() - row) ** 2, dtype=float)
        assert error == pytest.approx(drawn, rel=0.015)


@pytest.mark.parametrize(
    ("shape", "seed_bits", "parent"),
    [((3, 5), 3, 8), ((4, 64), 3, 4), ((7, 33), 2, 5), ((2, 1), 1, 1)],
)
def test_bits_and_files(tmp_path, shape, seed_bits, parent):
    w = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    q = cluster(w, seed_bits=seed_bits, parent=parent, bits=seed_bits)
    n, k = shape
    tables = sum(2**b for b in range(seed_bits, parent + 1))
    assert q.stored_bits == 8 * parent * -(-n * k // 8) + 16 * n * tables
    for bits in range(seed_bits, parent + 1):
        assert q.traffic_bits(bits) == 8 * bits * -(-n * k // 8) + 16 * n * 2**bits
    (only,) = q.passes()
    assert (only.n, only.k, only.format, only.bits) == (n, k, None, q.traffic_bits())
    save_tensors(tmp_path / "a.safetensors", {"x": q}, {})
    back = load_tensors(tmp_path / "a.safetensors")[0]["x"]
    assert back == q and back.bits == seed_bits
    assert np.array_equal(back.dequantize(), q.dequantize())
    assert q.at(parent) == q or seed_bits != parent  # the width is part of what it is


def test_bits_of_the_papers_sizes():
    """Of i = 4096 columns: 9.97 bits stored for 3 .. 8, 4.094 for 3 .. 4; 3.031 and 4.0625 read."""
    labels = np.zeros((2, 4096), np.uint8)
    whole = AnyPrecisionMatrix(3, 8, 4, labels, np.zeros((2, 504), np.float16))
    small = AnyPrecisionMatrix(3, 4, 4, labels, np.zeros((2, 24), np.float16))
    assert whole.bits_per_weight == pytest.approx(9.97, abs=0.005)
    assert small.bits_per_weight == pytest.approx(4.094, abs=0.0005)
    assert whole.traffic_bits(3) / labels.size == pytest.approx(3.031, abs=0.0005)
    assert whole.traffic_bits() / labels.size == 4.0625
    assert whole.nominal_bits == 4


def test_bad_input(matrix):
    with pytest.raises(InputError) as error:
        resolve_recipe("anyprecision:bits=2")
    assert str(error.value) == (
        "recipe 'anyprecision:bits=2': bits (=2) must be in seed_bits .. parent (=3 .. 8), the "
        "widths that are stored"
    )
    with pytest.raises(InputError, match=r"parent \(=3\) must be at least seed_bits \(=4\)"):
        resolve_recipe("anyprecision:seed_bits=4,parent=3")
    with pytest.raises(InputError, match="option sensitivity of anyprecision is 'loss'"):
        resolve_recipe("anyprecision:sensitivity=loss")
    with pytest.raises(InputError, match=r"bits \(=9\) must be in 3 .. 8, which are stored"):
        matrix.traffic_bits(9)
    with pytest.raises(InputError, match=r"bits \(=2\) must be in seed_bits .. parent"):
        matrix.at(2)
    with pytest.raises(InputError, match="largest weight is 70000; centroids are FP16"):
        cluster(np.full((1, 4), 70000, np.float32))
    with pytest.raises(InputError, match="must be 4 finite numbers, not negative"):
        cluster(np.ones((1, 4), np.float32), np.array([1, 1, -1, 1]))
    with pytest.raises(InputError, match=r"tables are float16 \(24, 500\)"):
        AnyPrecisionMatrix(3, 8, 4, matrix.labels, matrix.tables[:, :500])
    entries = matrix.entries()
    with pytest.raises(InputError, match="8 rows are needed"):
        AnyPrecisionMatrix.restored(matrix.settings(), entries | {"planes": entries["planes"][:7]})


def test_the_same_bits_every_time(w, matrix):
    assert cluster(w) == matrix


def test_a_model_at_all_widths(tmp_path):
    model = load_model("tiny")
    full = perplexity(model, max_tokens=1024, window=128).perplexity
    read = Calibration(sequences=4, length=64)
    found = {}
    for recipe in ("anyprecision:bits=3", "anyprecision", "anyprecision:bits=8"):
        q = apply_recipe(model, recipe, calibration=read)
        found[recipe] = perplexity(
            q.model, max_tokens=1024, window=128, linear=q.linear()
        ).perplexity
    assert found["anyprecision:bits=8"] == pytest.approx(full, rel=2e-3)
    assert full < found["anyprecision"] < found["anyprecision:bits=3"] < 1.3 * full
    assert q.nominal_bits == 8 and q.recipe.name == "anyprecision:bits=8"
    save_quantized(tmp_path / "q", q)
    assert load_quantized(tmp_path / "q", model).tensors == q.tensors


def test_no_data_without_sensitivity():
    model = load_model("tiny")
    q = apply_recipe(model, "anyprecision:bits=6,sensitivity=none")
    assert q.calibration is None and q.nominal_bits == 6
    name = "blocks.0.attn.q"
    assert q.tensors[name] == cluster(model.weight(name).numpy(), bits=6)
