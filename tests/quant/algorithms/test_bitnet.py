"""BitNet's ternary weights: codes, layouts, look-up evaluation, and packed checkpoints."""

from importlib import import_module
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.quant import (
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

bitnet = import_module("bitwright.quant.algorithms.bitnet")
_bitnet = import_module("bitwright.quant.algorithms.bitnet")
BitNetMatrix = _bitnet.BitNetMatrix
ternary = _bitnet.ternary
unpack_hf_bitnet = _bitnet.unpack_hf_bitnet

#: Worked by hand in the notes on the paper: mean magnitude 4.16 / 16 = 0.26.
W = np.array(
    [
        [0.30, -0.05, -0.09, -0.48],
        [0.04, 0.34, 0.43, -0.18],
        [-0.48, 0.32, -0.17, -0.39],
        [0.02, 0.75, -0.01, 0.11],
    ],
    np.float32,
)
CODES = np.array([[1, 0, 0, -1], [0, 1, 1, -1], [-1, 1, -1, -1], [0, 1, 0, 0]], np.int8)

#: All rows of six ternary weights.
ALL_SIX = np.array(list(product((-1, 0, 1), repeat=6)), np.int8)


def random_codes(n, k, seed=0):
    return np.random.default_rng(seed).integers(-1, 2, (n, k)).astype(np.int8)


def random_tokens(k, seed=1):
    return np.random.default_rng(seed).integers(-128, 128, k).astype(np.int8)


def naive(codes, x):
    return codes.astype(np.int32) @ x.astype(np.int32)


def test_worked_example():
    codes, gamma = ternary(W)
    assert gamma == pytest.approx(0.26, rel=1e-6)
    np.testing.assert_array_equal(codes, CODES)
    x = np.array([[0.5, -1.27, 0.02, 0.9]], np.float32)
    tokens, s = bitnet.quantize_tokens(x)
    assert tokens.tolist() == [[50, -127, 2, 90]]
    assert naive(codes, tokens[0]).tolist() == [-40, -215, -269, -127]
    y = bitnet.bitlinear(x, BitNetMatrix(codes, gamma, "tl1"))
    np.testing.assert_allclose(y, [[-0.1040, -0.5590, -0.6994, -0.3302]], atol=5e-5)


def test_a_scale_is_stored_not_derived_again():
    codes, gamma = ternary(W)
    again, smaller = ternary(codes * gamma)
    np.testing.assert_array_equal(again, codes)
    assert smaller == pytest.approx(gamma * 10 / 16)  # 10 of 16 codes are not 0


def test_weights_of_zero_take_the_smallest_gamma():
    codes, gamma = ternary(np.zeros((2, 4), np.float32))
    assert gamma == np.float32(1e-5)
    assert not codes.any()


def test_gaussian_error():
    w = np.random.default_rng(0).standard_normal((1000, 1000)).astype(np.float32)
    codes, gamma = ternary(w)
    assert float(((w - codes * gamma) ** 2).mean()) == pytest.approx(0.2635, abs=5e-4)
    assert float((codes == 0).mean()) == pytest.approx(0.310, abs=1e-3)
    fit = float((w * codes).sum() / np.abs(codes).sum())
    assert fit == pytest.approx(1.068, abs=2e-3)  # gamma is 0.798
    assert float(((w - codes * fit) ** 2).mean()) == pytest.approx(0.2131, abs=5e-4)


# ------------------------------------------------------------------------ layouts


def test_an_i2s_block_by_hand():
    codes = np.zeros((1, 128), np.int8)
    codes[0, [0, 32, 64, 96]] = [1, -1, 0, 1]  # u = 2, 0, 1, 2
    packed = bitnet.pack_i2s(codes)
    assert packed.shape == (32,)
    assert packed[0] == 0b10_00_01_10
    assert set(packed[1:]) == {0b01_01_01_01}


def test_indices_by_hand():
    pairs = np.array([[1, -1, 0, 1, -1, -1, 1, 1]], np.int8)
    assert bitnet.pack_tl1(pairs).tolist() == [0x65, 0x08]
    triples = [(1, -1, 0), (-1, 1, 1), (-1, -1, -1), (0, -1, 1), (0, 0, 0)]
    index, negative = bitnet.tl2_index(np.array([sum(triples, ())], np.int8))
    assert index.tolist() == [[6, 5, 13, 2, 0]]
    assert negative.tolist() == [[0, 1, 1, 1, 0]]


def test_tables_by_hand():
    a, b, c = 5, 17, 100
    table = bitnet.tl1_tables(np.array([a, b], np.int8))[0].tolist()
    assert table == [-a - b, -a, -a + b, -b, 0, b, a - b, a, a + b]
    table = bitnet.tl2_tables(np.array([a, b, c], np.int8))[0].tolist()
    assert table == [0, c, b - c, b, b + c, a - b - c, a - b, a - b + c, a - c, a, a + c] + [
        a + b - c,
        a + b,
        a + b + c,
    ]
    for v, triple in enumerate(bitnet.TRIPLES.tolist()):
        assert 9 * triple[0] + 3 * triple[1] + triple[2] == v


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    layout=st.sampled_from(["i2s", "tl1", "tl2"]),
    n=st.integers(1, 9),
    blocks=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_is_packed_is_unpacked(layout, n, blocks, seed):
    k = 128 * (1 + blocks % 3) if layout == "i2s" else 4 * blocks
    matrix = BitNetMatrix(random_codes(n, k, seed), np.float32(0.3), layout)
    again = BitNetMatrix.restored(matrix.settings(), matrix.entries())
    assert again == matrix
    np.testing.assert_array_equal(again.codes, matrix.codes)


@pytest.mark.parametrize("k", [48, 52, 96, 576])
@pytest.mark.parametrize("layout", ["i2s", "tl1", "tl2"])
def test_stored_bits_are_bytes_and_formula(layout, k, tmp_path):
    n = 128
    matrix = BitNetMatrix(random_codes(n, k), np.float32(0.3), layout)
    three = 48 * (k // 48)
    per_row = 5 * three // 3 + 2 * (k - three) if layout == "tl2" else 2 * k
    assert matrix.stored_bits == n * per_row + 32
    assert matrix.bits_per_weight == matrix.stored_bits / (n * k)
    assert sum(one.bits for one in matrix.passes()) == matrix.stored_bits
    assert [(one.n, one.k, one.format) for one in matrix.passes()] == [(n, k, "ternary")]
    path = tmp_path / "one.safetensors"
    save_tensors(path, {"w": matrix}, {})
    tensors, _ = load_tensors(path)
    assert tensors["w"] == matrix
    np.testing.assert_array_equal(tensors["w"].dequantize(), matrix.dequantize())


def test_tl2_takes_five_bits_for_three_weights():
    matrix = BitNetMatrix(random_codes(2560, 480), np.float32(1), "tl2")
    assert matrix.bits_per_weight == pytest.approx(5 / 3, abs=1e-4)
    assert matrix.nominal_bits == 1.58


# --------------------------------------------------------------------- look-ups


@pytest.mark.parametrize("seed", range(20))
def test_look_ups_are_exact_for_all_six_weights(seed):
    """All 3^6 rows; six weights fill a whole number of pairs and of triples."""
    for repeat in (8, 10):  # 48 columns: triples only; 60: triples and pairs
        codes = np.tile(ALL_SIX, repeat)
        x = random_tokens(codes.shape[1], seed)
        wanted = naive(codes, x)
        found = bitnet.tl1_dot(bitnet.pack_tl1(codes), len(codes), x)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(
            bitnet.tl2_dot(*bitnet.pack_tl2(codes), len(codes), x), wanted
        )
    u = (ALL_SIX + 1).astype(np.int32)  # I2_S: sum u x - sum x
    x = random_tokens(6, seed).astype(np.int32)
    np.testing.assert_array_equal(u @ x - x.sum(), naive(ALL_SIX, x))


@pytest.mark.parametrize("value", [127, -127, -128])
@pytest.mark.parametrize("k", [1024, 6912])
def test_look_ups_are_exact_at_the_extremes(value, k):
    codes = np.ones((2, k), np.int8)
    codes[1] = -1
    x = np.full(k, value, np.int8)
    wanted = naive(codes, x)
    np.testing.assert_array_equal(bitnet.tl1_dot(bitnet.pack_tl1(codes), 2, x), wanted)
    np.testing.assert_array_equal(bitnet.tl2_dot(*bitnet.pack_tl2(codes), 2, x), wanted)


def test_the_largest_tile_is_exact_and_the_next_is_refused():
    codes, x = np.ones((1, 1024), np.int8), np.full(1024, 127, np.int8)
    packed = bitnet.pack_tl1(codes)
    assert bitnet.tl1_dot(packed, 1, x, tile=129).tolist() == [1024 * 127]
    with pytest.raises(InputError) as error:
        bitnet.tl1_dot(packed, 1, x, tile=130)
    assert str(error.value) == (
        "tile is 130 pairs; 1 to 129, whose sums fit int16 with activations up to 127"
    )
    # What the limit is for: 130 pairs wrap around.
    sums = np.full((1, 512), 254, np.int16)
    assert bitnet._added(sums, 130)[0] != 1024 * 127
    with pytest.raises(InputError, match="tile is 87 triples; 1 to 86"):
        bitnet.tl2_dot(*bitnet.pack_tl2(codes), 1, x, tile=87)
    with pytest.raises(InputError, match="tile is 128 pairs; 1 to 127"):
        bitnet.tl1_dot(packed, 1, np.full(1024, -128, np.int8), tile=128)


# ------------------------------------------------------ Hugging Face checkpoints


def test_a_packed_checkpoint_by_hand():
    # Byte 0b10_01_00_01: rows 0, 1, 2, 3 (a row a quarter) are 0, -1, 0, 1.
    packed = np.array([[0b10_01_00_01, 0b00_00_10_10]], np.uint8)
    wide = np.tile(packed, 2)  # a row of TL1 has at least 4 columns
    matrix = unpack_hf_bitnet(wide, np.array([0.5], np.float32), layout="tl1")
    assert matrix.codes[:, :2].tolist() == [[0, 1], [-1, 1], [0, -1], [1, -1]]
    assert matrix.gamma == 0.5
    assert unpack_hf_bitnet(wide, 0.5, "bitlinear", "tl1").gamma == 2.0


def test_a_packed_checkpoint_round_trips():
    codes = random_codes(64, 128)
    quarters = (codes + 1).astype(np.uint8).reshape(4, 16, 128)
    packed = quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
    matrix = unpack_hf_bitnet(packed, 1.25)
    np.testing.assert_array_equal(matrix.codes, codes)
    x = random_tokens(128)
    whole = codes.astype(np.float32) @ x.astype(np.float32)
    np.testing.assert_array_equal(naive(matrix.codes, x), whole)


GOOD = np.full((1, 128), 0b01_01_01_01, np.uint8)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((GOOD.astype(np.int8), 1.0), "packed is int8 [1, 128]; needs uint8 [n / 4, k], 4 rows"),
        ((GOOD[0], 1.0), "packed is uint8 [128]; needs uint8 [n / 4, k], 4 rows in a byte"),
        ((GOOD | 0b1000, 0.0), "weight_scale is 0.0; one positive, finite number a matrix"),
        ((GOOD, float("nan")), "weight_scale is nan; one positive"),
        ((GOOD, [1.0, 2.0]), "weight_scale is [1.0, 2.0]; one positive"),
        ((GOOD | 0b1000, 1.0), "packed: weight [1, 0] has the code 3, must be 0 to 2"),
        ((GOOD, 1.0, "linear"), "linear_class is 'linear'; one of autobitlinear, bitlinear"),
        ((GOOD[:, :31], 1.0), "layout i2s cannot take k = 31 columns: 4 rows in blocks of 128"),
    ],
    ids=["type", "vector", "scale 0", "nan", "two scales", "code 3", "class", "shape"],
)
def test_bad_checkpoints(arguments, text):
    with pytest.raises(InputError) as error:
        unpack_hf_bitnet(*arguments)
    assert str(error.value).startswith(text)


# ------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("layout", "n", "k", "text"),
    [
        (
            *("i2s", 4, 100),
            "layout i2s cannot take k = 100 columns: 4 rows in blocks of 128 weights need a "
            "multiple of 32; the nearest is 96",
        ),
        (
            *("tl1", 4, 6),
            "layout tl1 cannot take k = 6 columns: 2 pairs a byte need a multiple of 4; the "
            "nearest is 8",
        ),
        (
            *("tl2", 4, 1),
            "layout tl2 cannot take k = 1 columns: 2 pairs a byte need a multiple of 4; the "
            "nearest is 4",
        ),
        ("tl3", 4, 4, "layout is 'tl3'; one of i2s, tl1, tl2"),
    ],
)
def test_shapes_that_a_layout_cannot_take(layout, n, k, text):
    with pytest.raises(InputError) as error:
        BitNetMatrix(np.zeros((n, k), np.int8), np.float32(1), layout)
    assert str(error.value) == text


def test_damaged_entries():
    matrix = BitNetMatrix(random_codes(2, 64), np.float32(1), "i2s")
    weights = matrix.entries()["weights"]
    with pytest.raises(InputError, match=r"layout i2s: uint8 \[31\]; needs uint8 \[32\]"):
        bitnet.unpack_i2s(weights[:-1], 2, 64)
    with pytest.raises(InputError, match="i2s: a weight has the code 3"):
        bitnet.unpack_i2s(weights | 3, 2, 64)
    with pytest.raises(InputError, match="layout tl1: nibble 9; the largest is 8"):
        bitnet.unpack_tl1(np.full(1, 0x19, np.uint8), 1, 4)
    triples, signs, pairs = bitnet.pack_tl2(random_codes(1, 52))
    with pytest.raises(InputError, match="layout tl2: nibble 14; the largest is 13"):
        bitnet.unpack_tl2(np.full_like(triples, 0xE0), signs, pairs, 1, 52)
    with pytest.raises(InputError, match="codes hold 2; ternary codes are -1, 0 and 1"):
        bitnet.pack_tl1(np.full((1, 4), 2, np.int8))
    with pytest.raises(InputError, match="gamma is"):
        BitNetMatrix.restored(matrix.settings(), {"weights": weights, "gamma": np.zeros(2)})


def test_an_unknown_layout_in_a_recipe():
    with pytest.raises(InputError, match="layout"):
        resolve_recipe("bitnet:layout=tl3")


def test_weights_must_be_finite():
    w = np.ones((128, 128), np.float32)
    w[1, 3] = np.nan
    with pytest.raises(InputError) as found:
        ternary(w)
    assert str(found.value) == "w[1, 3] is nan; weights must be finite float32 numbers"


# ------------------------------------------------------------------ a whole model


def test_a_model(tmp_path):
    model = load_model("tiny")
    found = {}
    for layout in ("i2s", "tl1", "tl2"):
        made = apply_recipe(model, "bitnet" if layout == "i2s" else f"bitnet:layout={layout}")
        assert made.recipe.format is None
        assert made.recipe.name.startswith("bitnet")
        assert made.nominal_bits == pytest.approx(1.58)
        score = perplexity(made.model, max_tokens=512, window=64, linear=made.linear())
        found[layout] = (made.bits_per_weight, score.perplexity)
    assert found["i2s"][0] == found["tl1"][0] == pytest.approx(2.0, abs=0.01)
    assert found["tl2"][0] < 1.8  # k = 128 is two tiles of 48 and 32 columns in pairs
    assert len({score for _, score in found.values()}) == 1  # one matrix, three layouts
    plain = perplexity(model, max_tokens=512, window=64).perplexity
    assert plain < found["i2s"][1] < float("inf")
    save_quantized(tmp_path / "model.safetensors", made)
    again = load_quantized(tmp_path / "model.safetensors", model)
    assert again.tensors == made.tensors
