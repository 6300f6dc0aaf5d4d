"""AQLM: fits that only improve, twins, table products, bits, files, and a model."""

from importlib import import_module

import numpy as np
import pytest

from bitwright.quant import (
    Calibration,
    InputError,
    apply_recipe,
    gram_error,
    load_model,
    load_quantized,
    load_tensors,
    perplexity,
    resolve_recipe,
    save_quantized,
    save_tensors,
)

module = import_module("bitwright.quant.algorithms.aqlm")
jitted = import_module("bitwright.quant.algorithms.aqlm_numba")
anyprecision = import_module("bitwright.quant.algorithms.anyprecision")
Aqlm, AqlmMatrix, fit = module.Aqlm, module.AqlmMatrix, module.fit


def layer(n, k, seed=0):
    """Weights, and the Gram matrix of inputs of unequal energy that depend on each other."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * k, k)) @ (np.eye(k) + 0.1 * rng.standard_normal((k, k)))
    x = x * rng.uniform(0.2, 3, k)
    gram = (x.T @ x / len(x)).astype(np.float32)
    return rng.standard_normal((n, k)).astype(np.float32), gram


@pytest.fixture(scope="module")
def problem():
    return layer(64, 256)


@pytest.fixture(scope="module")
def fitted(problem):
    """The small faithful version: 2 x 8 bits on a 64 x 256 layer, 3 epochs."""
    return fit(*problem, Aqlm())


def random_state(problem, codebooks, bits, g):
    w, _ = problem
    rng = np.random.default_rng(5)
    n, k = w.shape
    codes = rng.integers(0, 1 << bits, (n, k // g, codebooks)).astype(np.uint16)
    books = (0.05 * rng.standard_normal((codebooks, 1 << bits, g))).astype(np.float32)
    return codes, books, np.linalg.norm(w, axis=1).astype(np.float32)


def test_every_turn_lowers_the_loss(problem, fitted):
    w, gram = problem
    assert len(fitted.losses) == 4
    assert (np.diff(fitted.losses) < 0).all()
    assert gram_error(fitted.matrix.dequantize() - w, gram) == pytest.approx(fitted.losses[-1])
    assert fitted.losses[-1] < 0.75 * fitted.losses[0]


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize(("codebooks", "g"), [(1, 8), (2, 8), (3, 4)])
def test_search_never_raises_the_loss(problem, codebooks, g, beam):
    w, gram = problem
    codes, books, scales = random_state(problem, codebooks, 4, g)

    def loss():
        return gram_error(module.decoded(codes, books, scales) - w, gram)

    losses = [loss()]
    for turn in range(4):
        module.search(w, gram, codes, books, scales, beam, np.random.default_rng(turn))
        losses.append(loss())
    assert losses[1] < 0.9 * losses[0]
    assert (np.diff(losses) <= 1e-5 * losses[0]).all()


@pytest.mark.parametrize("beam", [1, 2, 4])
def test_search_agrees_with_its_twin(beam):
    problem = layer(6, 32, seed=2)
    codes, books, scales = random_state(problem, 3, 3, 4)
    other = codes.copy()
    module.search(*problem, codes, books, scales, beam, np.random.default_rng(0))
    twin = module.search_group_reference
    module.search(*problem, other, books, scales, beam, np.random.default_rng(0), twin)
    assert np.array_equal(codes, other)


def test_a_wide_beam_finds_the_best_codes_of_a_group():
    """One group, two codebooks of 4: with all 4 alternatives kept, the best of 16 pairs."""
    w, gram = layer(12, 4, seed=3)
    codes, books, scales = random_state((w, gram), 2, 2, 4)
    module.search(w, gram, codes, books, scales, 4, np.random.default_rng(0))
    # The first codebook gone through keeps its 4 entries, so that every pair is looked at.
    for row in range(12):
        losses = [
            gram_error(((books[0, a] + books[1, b]) * scales[row] - w[row])[None], gram)
            for a in range(4)
            for b in range(4)
        ]
        a, b = codes[row, 0]
        assert losses[4 * a + b] == pytest.approx(min(losses), rel=1e-5)


def test_codebook_fit_reaches_the_least_squares_optimum():
    w, gram = layer(10, 16, seed=4)
    codes, books, scales = random_state((w, gram), 2, 2, 4)
    found = module.fit_codebooks(w, gram, codes, books, scales, 200)
    # The same problem written out: weights = design @ entries, with a root of the Gram matrix.
    root = np.linalg.cholesky(gram.astype(float))
    design = np.stack(
        [
            module.decoded(codes, one.reshape(books.shape), scales).astype(float) @ root
            for one in np.eye(books.size, dtype=np.float32)
        ]
    ).reshape(books.size, -1)
    best = np.linalg.lstsq(design.T, (w @ root).ravel(), rcond=None)[0]
    least = np.square(best @ design - (w @ root).ravel()).sum()
    loss = gram_error(module.decoded(codes, found, scales) - w, gram)
    assert loss == pytest.approx(least, rel=1e-3)
    losses = [
        gram_error(
            module.decoded(codes, module.fit_codebooks(w, gram, codes, books, scales, s), scales)
            - w,
            gram,
        )
        for s in (1, 2, 4, 8, 16)
    ]
    assert (np.diff(losses) < 0).all()


def test_single_weights_are_plain_kmeans():
    """One codebook, groups of one, inputs alike: 1-D k-means of the scaled weights."""
    w = np.random.default_rng(6).standard_normal((8, 128)).astype(np.float32)
    q = fit(w, np.eye(128, dtype=np.float32), Aqlm(codebooks=1, group=1, bits=4, epochs=0)).matrix
    scales = q.scales.astype(np.float32)
    flat = (w / scales[:, None]).reshape(1, -1)
    plain = anyprecision.cluster(flat, None, 4, 4, 4)
    assert np.array_equal(q.codebooks.ravel(), plain.centroids(4).ravel())
    # Rounding of centroids to FP16 can move a weight that lies at a border.
    assert (q.codes.ravel() == plain.labels.ravel()).mean() > 0.995
    full = fit(w, np.eye(128, dtype=np.float32), Aqlm(codebooks=1, group=1, bits=8)).matrix
    assert full.codes.shape == (8, 128, 1) and full.codebooks.shape == (1, 256, 1)
    assert np.abs(full.dequantize() - w).max() < 0.1


def test_residual_kmeans_improves_with_every_codebook():
    points = np.random.default_rng(7).standard_normal((4000, 8)).astype(np.float32)
    errors = []
    for count in (1, 2, 3, 4):
        codes, books = module.residual_kmeans(points, count, 4, 20, np.random.default_rng(0))
        total = sum(books[m][codes[:, m]] for m in range(count))
        errors.append(np.square(total - points).mean())
    assert (np.diff(errors) < 0).all()


def test_nearest_by_search_of_all():
    rng = np.random.default_rng(8)
    points = rng.standard_normal((300, 5)).astype(np.float32)
    words = rng.standard_normal((16, 5)).astype(np.float32)
    distances = np.square(points[:, None].astype(float) - words).sum(axis=2)
    assert np.array_equal(module.nearest_entries(points, words), distances.argmin(axis=1))


@pytest.mark.parametrize("seed", range(5))
def test_table_product_and_decoded_product_stay_in_their_bound(fitted, seed):
    q = fitted.matrix
    n, k = q.shape
    x = np.random.default_rng(seed).standard_normal(k).astype(np.float32)
    books, scales = q.codebooks.astype(float), q.scales.astype(float)
    count = len(books)
    exact, sizes = np.zeros(n), np.zeros(n)
    for m in range(count):
        words = books[m][q.codes[:, :, m]].reshape(n, k)
        exact += words @ x.astype(float) * scales
        sizes += np.abs(words) @ np.abs(x).astype(float) * scales
    bound = (k * count + 2) * 2.0**-24 * sizes
    tables, decoded = q.by_tables(x), q.dequantize() @ x
    assert (np.abs(tables - exact) <= bound).all()
    assert (np.abs(decoded - exact) <= bound).all()
    assert np.abs(tables - decoded).max() <= 1e-5 * sizes.max()


@pytest.mark.parametrize(
    ("codebooks", "bits", "group", "square", "tall"),
    [
        (1, 16, 8, 2.504, 2.190),
        (2, 8, 8, 2.008, 2.005),
        (8, 8, 32, 2.066, 2.027),
        (1, 8, 8, 1.006, 1.005),
        (1, 16, 16, 2.004, 1.376),
    ],
)
def test_bits_of_the_papers_sizes(codebooks, bits, group, square, tall):
    way = (codebooks, bits, group)
    assert module.nominal_bits(4096, 4096, *way) == pytest.approx(square, abs=6e-4)
    assert module.nominal_bits(11008, 4096, *way) == pytest.approx(tall, abs=6e-4)


@pytest.mark.parametrize(
    ("shape", "codebooks", "bits", "group"),
    [((64, 64), 2, 8, 8), ((64, 64), 1, 9, 8), ((16, 24), 3, 5, 4), ((256, 512), 1, 12, 8)],
)
def test_bits_and_files(tmp_path, shape, codebooks, bits, group):
    n, k = shape
    rng = np.random.default_rng(9)
    q = AqlmMatrix(
        rng.integers(0, 1 << bits, (n, k // group, codebooks)).astype(np.uint16),
        rng.standard_normal((codebooks, 1 << bits, group)).astype(np.float16),
        rng.uniform(0.1, 2, n).astype(np.float16),
    )
    items = n * k // group * codebooks
    assert (items * bits) % 8 == 0  # so that no entry is rounded up
    assert q.stored_bits == items * bits + 16 * codebooks * 2**bits * group + 16 * n
    assert q.bits_per_weight == pytest.approx(q.nominal_bits)
    (only,) = q.passes()
    assert (only.n, only.k, only.format, only.bits) == (n, k, None, q.stored_bits)
    save_tensors(tmp_path / "a.safetensors", {"x": q}, {})
    back = load_tensors(tmp_path / "a.safetensors")[0]["x"]
    assert back == q and np.array_equal(back.codes, q.codes)
    assert np.array_equal(back.dequantize(), q.dequantize())


def test_zero_rows_stay_zero(problem):
    w, gram = problem
    w = w.copy()
    w[3] = 0
    q = fit(w, gram, Aqlm(epochs=1)).matrix
    assert q.scales[3] == 0 and not q.dequantize()[3].any()


def test_the_same_bits_every_time(problem, fitted):
    assert fit(*problem, Aqlm()).matrix == fitted.matrix
    assert fit(*problem, Aqlm(seed=1)).matrix != fitted.matrix


def test_bad_input(problem):
    w, gram = problem
    with pytest.raises(InputError) as error:
        fit(w[:, :250], gram[:250, :250], Aqlm())
    assert str(error.value) == (
        "k (=250, the columns) must be a multiple of group (=8); the nearest group that divides "
        "it is 10"
    )
    with pytest.raises(InputError) as error:
        fit(w, gram, Aqlm(codebooks=1, bits=16))
    assert str(error.value) == (
        "a codebook of bits=16 has 65536 entries, but [64, 256] has only 2048 groups of 8; use "
        "bits=11 at most"
    )
    with pytest.raises(InputError, match="only 1 groups of 8; use a smaller group"):
        fit(w[:1, :8], gram[:8, :8], Aqlm(bits=1))
    with pytest.raises(InputError, match="the norm of row 2 is .*; scales are FP16"):
        fit(w * np.where(np.arange(64) == 2, 1e5, 1)[:, None].astype(np.float32), gram, Aqlm())
    with pytest.raises(InputError, match="option bits of aqlm is '17'"):
        resolve_recipe("aqlm:bits=17")
    codes, books = np.zeros((2, 3, 1), np.uint16), np.zeros((1, 4, 8), np.float16)
    with pytest.raises(InputError, match=r"need \(2, groups, 1\)"):
        AqlmMatrix(codes[:1], books, np.ones(2, np.float16))
    with pytest.raises(InputError, match="codes hold 4, outside 0 .. 3"):
        AqlmMatrix(codes + np.uint16(4), books, np.ones(2, np.float16))
    with pytest.raises(InputError, match="codebooks have 3 entries; a power of two is needed"):
        AqlmMatrix(codes, books[:, :3], np.ones(2, np.float16))


def test_a_model(tmp_path):
    model = load_model("tiny")
    full = perplexity(model, max_tokens=1024, window=128).perplexity
    read = Calibration(sequences=4, length=64)
    with pytest.raises(InputError, match=r"layer blocks.0.attn.q: a codebook of bits=16"):
        apply_recipe(model, "aqlm:codebooks=1,bits=16", calibration=read)
    found = []
    for recipe in ("aqlm:bits=5,epochs=1", "aqlm:codebooks=4,group=4,bits=5,epochs=1"):
        q = apply_recipe(model, recipe, calibration=read)
        result = perplexity(q.model, max_tokens=1024, window=128, linear=q.linear())
        found.append(result.perplexity)
    assert full < found[1] < found[0]
    assert q.nominal_bits == pytest.approx(q.bits_per_weight)
    save_quantized(tmp_path / "q", q)
    assert load_quantized(tmp_path / "q", model).tensors == q.tensors
