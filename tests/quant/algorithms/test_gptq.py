"""GPTQ: recursion by hand, twins, round-to-nearest as a special case, properties of the error."""

from importlib import import_module

import numpy as np
import pytest

from bitwright.quant import FORMATS, InputError, quantize

_gptq = import_module("bitwright.quant.algorithms.gptq")  # not part of the face
gptq, gptq_reference = _gptq.gptq, _gptq.gptq_reference
_olive = import_module("bitwright.quant.algorithms.olive")
encode = _olive._encode

# R is upper triangular with H = R R^T, so U = R^-1 is exact:
#     1 1 0        1 -1  1                  2 1 0
# R = 0 1 1    U = 0  1 -1    H = R R^T  =  1 2 1
#     0 0 1        0  0  1                  0 1 1
H3 = np.array([[2, 1, 0], [1, 2, 1], [0, 1, 1]], np.float64)


def correlated(seed, k, samples=None):
    """2/N X^T X of inputs that share directions, one of them strong."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples or 2 * k, k)) @ (np.eye(k) + 0.4 * rng.normal(size=(k, k)))
    x += 2 * rng.normal(size=(len(x), 1))
    return 2 / len(x) * x.T @ x


def weights(seed, n, k):
    """Normal, with an outlier here and there."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(n, k)) * np.where(rng.random((n, k)) < 0.03, 8, 1)
    return w.astype(np.float32)


def scale_formats(format):
    return ("fp16", "int8") if format.block is None else (format.scale_format,)


def proxy_loss(w, q, h):
    """tr((W-Q) H (W-Q)^T) in float64."""
    error = w.astype(np.float64) - q
    return float(((error @ h) * error).sum())


# By hand


def by_hand(*w, h=H3, name="int3-sym", group_size=3, scale_format="fp16", twin=gptq, **options):
    w = np.array([w], np.float32)
    return twin(w, h, FORMATS[name], group_size, scale_format, damping=0.0, **options)


@pytest.mark.parametrize("twin", [gptq, gptq_reference])
def test_three_columns_by_hand(twin):
    # delta = 3 / 3 = 1. Column 0: 1.5 -> 2, e = -0.5; column 1: 3 - 0.5 = 2.5, column 2: 0.75.
    # Column 1: 2.5 -> 2 (even), e = 0.5; column 2: 0.75 + 0.5 = 1.25. Column 2: 1, e = 0.25.
    result = by_hand(1.5, 3, 0.25, twin=twin)
    assert result.tensor.codes.tolist() == [[2, 2, 1]]
    assert result.error == (0.25 + 0.25 + 0.0625) / 2
    assert (result.damping, result.damping_raised, result.dead) == (0.0, 0, ())


def test_scale_of_a_group_sees_earlier_errors():
    # As above, but column 2 is a group of its own: max 1.25 instead of 0.25, so it is exact.
    result = by_hand(1.5, 3, 0.25, group_size=2)
    assert result.tensor.codes.tolist() == [[2, 2, 3]]
    assert result.tensor.group_scales.tolist() == [[1, np.float16(1.25 / 3)]]


def test_columns_by_falling_diagonal():
    # diag H = 2 1 2: columns 0, 2, 1. Taken in that order, H and w are those above.
    h = H3[np.ix_([0, 2, 1], [0, 2, 1])]
    result = by_hand(1.5, 0.25, 3, h=h, act_order=True)
    assert result.tensor.codes.tolist() == [[2, 1, 2]]
    assert result.error == (0.25 + 0.25 + 0.0625) / 2


def test_act_order_has_static_groups():
    # Column 2 has reached 1.25, but its group's delta is 0.25 / 3: code 3 (clipped).
    result = by_hand(1.5, 3, 0.25, group_size=2, act_order=True)
    assert result.tensor.codes.tolist() == [[2, 2, 3]]
    assert result.tensor.group_scales.tolist() == [[1, np.float16(0.25 / 3)]]


def test_channel_scale_is_static():
    # c = 1 / 255 from the original deltas 1 and 0.25 / 3; 1.25 / 3 is 106.25 of them.
    result = by_hand(1.5, 3, 0.25, group_size=2, scale_format="int8")
    assert result.tensor.channel_scales.tolist() == [np.float32(1) / np.float32(255)]
    assert result.tensor.group_scales.tolist() == [[255, 106]]


def test_group_scale_saturates_at_255_channel_scales():
    # U = R^-1 with -4 at [0, 2]. Column 0: 0.5 -> 0, e = 0.5; column 2: 0 + 2, twice the largest
    # original delta.
    r = np.array([[1, 0, 4], [0, 1, 0], [0, 0, 1]], np.float64)
    result = by_hand(0.5, 1, 0, h=r @ r.T, name="int2-sym", group_size=2, scale_format="int8")
    assert result.tensor.codes.tolist() == [[0, 1, 1]]
    assert result.tensor.group_scales.tolist() == [[255, 255]]


@pytest.mark.parametrize("twin", [gptq, gptq_reference])
def test_pair_is_coded_before_its_errors_move(twin):
    # U is the identity but for U[0, 1] = U[0, 2] = -1 and U[1, 2] = 1. Delta is close to 1:
    # 1.25 -> 1, 4.5 -> 4; with the error of column 0 first, 4.5 + 0.25 would be 5.
    w = np.float32([[1.25, 4.5, 3, 1] + [3, -3, 3, -3] * 7])
    k = w.shape[1]
    r = np.eye(k)
    r[0, 1], r[1, 2] = 1, -1
    delta = _olive.olive(w, k).deltas[0, 0]
    result = twin(w, r @ r.T, FORMATS["olive4"], k, "fp16", damping=0.0)
    assert result.tensor.codes[0, :2].tolist() == [1, 4]
    q = result.tensor.dequantize()[0]
    e0 = w[0, 0] - q[0]
    assert encode(np.float32([1.25, 4.5 + e0]), delta)[0].tolist() == [1, 5]
    e1 = w[0, 1] + e0 - q[1]  # (e0, e1) U_pair = (w - q) of both
    moved = np.float32([w[0, 2] + e0 - e1, w[0, 3]])  # 3 + 0.25 - 0.75, nearly
    assert result.tensor.codes[0, 2:4].tolist() == encode(moved, delta)[0].tolist()


# Round-to-nearest is a special case


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_multiple_of_the_identity_gives_round_to_nearest(name, act_order):
    format = FORMATS[name]
    w = weights(1, 6, 70)
    for scale_format in scale_formats(format):
        for group_size in (format.block,) if format.block else (24, 70):
            result = gptq(
                w,
                3.7 * np.eye(70),
                format,
                group_size,
                scale_format,
                act_order=act_order,
                block_columns=16,
            )
            assert result.tensor == quantize(w, format, group_size, scale_format)
            mean_square = np.square(w - result.tensor.dequantize(), dtype=np.float64).sum()
            # U_jj = 1 / sqrt(3.7 * 1.01); float32 rounds e_j, U_jj and w - q once each.
            assert result.error == pytest.approx(mean_square * 3.7 * 1.01 / 2, rel=6 * 2**-24)


# Twins

LAYOUTS = {  # k, group_size, block_columns
    "groups of two blocks": (70, 32, 16),
    "groups across block ends": (70, 24, 32),
    "one group": (33, 33, 8),
    "small groups, one block": (40, 4, 128),
    "blocks of three": (26, 6, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", FORMATS)
def test_twins_are_equal(name, layout):
    format = FORMATS[name]
    k, group_size, block_columns = layout
    w, h = weights(2, 4, k), correlated(3, k)
    for scale_format in scale_formats(format):
        for act_order in (False, True):
            size = min(format.block, k) if format.block else group_size
            given = (w, h, format, size, scale_format)
            options = {"act_order": act_order, "block_columns": block_columns}
            fast, slow = gptq(*given, **options), gptq_reference(*given, **options)
            assert fast == slow
            assert fast.tensor != quantize(w, format, size, scale_format)


@pytest.mark.parametrize("name", ["int4-asym", "bitmod4", "nvfp4"])
def test_twins_are_equal_on_many_threads(name):
    format = FORMATS[name]
    w, h = weights(4, 600, 160), correlated(5, 160)
    given = (w, h, format, format.block or 64, format.scale_format)
    assert gptq(*given) == gptq_reference(*given)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("scale_format", ["fp16", "int8"])
def test_compensated_weights_far_outside_their_group(scale_format, act_order):
    # Groups of zeros and of tiny weights beside large ones; strong correlation moves much into them
    w = weights(6, 5, 48)
    w[:, 8:16], w[:, 16:24], w[2] = 0, w[:, 16:24] * 1e-3, 0
    h = correlated(7, 48, samples=20)
    for name in ("int4-sym", "int4-asym", "dint4-asym", "bitmod3", "binary", "ternary", "olive4"):
        given = (w, h, FORMATS[name], 8, scale_format)
        fast = gptq(*given, act_order=act_order)
        assert fast == gptq_reference(*given, act_order=act_order)
        if name != "binary":
            assert not fast.tensor.codes[2].any()  # a row of zeros has no error to move


# Properties


def test_columns_behind_take_the_best_value():
    # Without U: once columns 0 .. j - 1 are fixed with errors d = w - q, the loss of all is least
    # with the others at w + d H_fixed,others H_others^-1 (set its derivative to 0).
    k = 24
    w, h = weights(26, 8, k), correlated(27, k)
    tensor = gptq(w, h, FORMATS["int4-sym"], k, "fp16").tensor
    h += 0.01 * np.diagonal(h).mean() * np.eye(k)
    delta = np.abs(w).max(axis=1) / 7
    error = w - tensor.dequantize().astype(np.float64)
    for j in range(k):
        moved = w[:, j:] + error[:, :j] @ h[:j, j:] @ np.linalg.inv(h[j:, j:])
        expected = np.clip(np.rint(moved[:, 0] / delta), -7, 7).astype(int)
        assert ((expected & 15) == tensor.codes[:, j]).all()


@pytest.mark.parametrize("group_size", [1, 3, 5, 8, 24])
def test_block_ends_change_nothing_in_exact_arithmetic(group_size):
    # U = +-1, weights in eighths, and FP3 has delta = max / 4: float32 holds every number exactly,
    # so a group that saw only a part of the errors would show.
    k = 24
    r = np.eye(k) + np.eye(k, k=1)
    w = np.random.default_rng(8).integers(-24, 25, (5, k)).astype(np.float32) / 8
    given = (w, r @ r.T, FORMATS["fp3"], group_size, "fp16")
    one_block = gptq_reference(*given, damping=0.0, block_columns=k)
    for block_columns in range(1, k):
        assert gptq(*given, damping=0.0, block_columns=block_columns) == one_block


def test_blocks_end_where_a_group_would_be_cut():
    assert list(_gptq._blocks(300, 128, 64)) == [(0, 128), (128, 256), (256, 300)]
    assert list(_gptq._blocks(300, 128, 96)) == [(0, 96), (96, 192), (192, 300)]
    assert list(_gptq._blocks(300, 128, 200)) == [(0, 128), (128, 200), (200, 300)]
    assert list(_gptq._blocks(300, 128, 300)) == [(0, 128), (128, 256), (256, 300)]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_error_is_half_the_proxy_loss(name, act_order):
    # W - Q = E U, so tr((W-Q) H (W-Q)^T) = sum of squares of E with the damped H.
    format = FORMATS[name]
    w, h = weights(9, 6, 70), correlated(10, 70)
    size = format.block or 32
    result = gptq(w, h, format, size, format.scale_format, act_order=act_order, block_columns=16)
    damped = h + 0.01 * np.diagonal(h).mean() * np.eye(70)
    loss = proxy_loss(w, result.tensor.dequantize(), damped)
    # Each of up to 70 updates rounds w to within 2**-25 |w|; errors of 8-bit codes are 2**-9 |w|
    # or so: off by 70 * 2**-16 = 1.1e-3 at worst, and twice that when squared.
    assert result.error == pytest.approx(loss / 2, rel=2.2e-3)


@pytest.mark.parametrize(
    ("name", "scale_format"),
    [("int3-asym", "fp16"), ("bitmod3", "int8"), ("mxfp4", "e8m0"), ("olive4", "fp16")],
)
def test_loss_is_below_that_of_round_to_nearest(name, scale_format):
    format = FORMATS[name]
    ratios = []
    for trial in range(200):
        w, h = weights(100 + trial, 16, 64), correlated(1000 + trial, 64)
        plain = quantize(w, format, format.block or 32, scale_format)
        tensor = gptq(w, h, format, format.block or 32, scale_format).tensor
        ratios.append(proxy_loss(w, tensor.dequantize(), h) / proxy_loss(w, plain.dequantize(), h))
    assert sum(ratio <= 1 for ratio in ratios) == 200
    assert 0.3 < np.mean(ratios) < 0.5


def test_order_of_calibration_samples_changes_nothing():
    rng = np.random.default_rng(11)
    x = rng.integers(-9, 10, (128, 24)).astype(np.float64)  # sums of products are exact
    first, second = (2 / 128 * s.T @ s for s in (x, rng.permutation(x)))
    given = (weights(12, 6, 24), FORMATS["int4-sym"], 8, "fp16")
    assert gptq(given[0], first, *given[1:]) == gptq(given[0], second, *given[1:])


@pytest.mark.parametrize("factor", [4.0**-300, 0.25, 1024.0, 4.0**300])
def test_power_of_four_times_the_hessian_changes_nothing(factor):
    w, h = weights(13, 6, 24), correlated(14, 24)
    result = gptq(w, h, FORMATS["int4-sym"], 8, "fp16")
    scaled = gptq(w, factor * h, FORMATS["int4-sym"], 8, "fp16")
    assert scaled == result._replace(error=result.error * factor)


def test_multiple_of_the_hessian_gives_the_same_codes():
    w, h = weights(13, 6, 24), correlated(14, 24)
    result = gptq(w, h, FORMATS["int4-sym"], 8, "fp16")
    scaled = gptq(w, (3 * h).astype(np.float32), FORMATS["int4-sym"], 8, "fp16")
    assert np.array_equal(scaled.tensor.codes, result.tensor.codes)
    assert scaled.error == pytest.approx(3 * result.error, rel=1e-4)


def test_inputs_are_left_alone():
    w, h = weights(15, 4, 16), correlated(16, 16)
    w_before, h_before = w.copy(), h.copy()
    gptq(w, h, FORMATS["int4-sym"], 8, "fp16", act_order=True)
    assert np.array_equal(w, w_before) and np.array_equal(h, h_before)


@pytest.mark.parametrize("act_order", [False, True])
def test_tensor_scale_is_static(act_order):
    w, h = weights(17, 6, 64), correlated(18, 64)
    tensor = gptq(w, h, FORMATS["nvfp4"], 16, "e4m3", act_order=act_order).tensor
    plain = quantize(w, "nvfp4")
    assert tensor.tensor_scale == plain.tensor_scale
    assert np.array_equal(tensor.group_scales, plain.group_scales) == act_order


# The Hessian


def without_input(h, columns):
    h = h.copy()
    h[columns] = 0
    h[:, columns] = 0
    return h


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_dead_columns_become_zero(name, act_order):
    format = FORMATS[name]
    w, h = weights(19, 5, 48), without_input(correlated(20, 48), [3, 40])
    size = format.block or 16
    result = gptq(w, h, format, size, format.scale_format, act_order=act_order)
    assert result.dead == (3, 40)
    if name == "binary":  # has no zero: +1
        assert (result.tensor.codes[:, [3, 40]] == 1).all()
    else:
        assert not result.tensor.dequantize()[:, [3, 40]].any()
    damped = h + 0.01 * np.diagonal(h).sum() / 46 * np.diag(np.diagonal(h) > 0)
    loss = proxy_loss(w, result.tensor.dequantize(), damped)
    assert result.error == pytest.approx(loss / 2, rel=2.2e-3)  # as above


def test_live_columns_do_not_notice_dead_ones():
    w, h = weights(21, 5, 17), correlated(22, 17)
    live = np.delete(np.arange(17), 7)
    small = gptq(w[:, live], h[np.ix_(live, live)], FORMATS["int4-sym"], 16, "fp16")
    w[:, 7] = 1e30  # whatever was there
    large = gptq(w, without_input(h, [7]), FORMATS["int4-sym"], 17, "fp16")
    assert np.array_equal(large.tensor.codes[:, live], small.tensor.codes)
    assert not large.tensor.codes[:, 7].any()
    assert large.error == pytest.approx(small.error, rel=1e-6)  # U is split elsewhere


def test_no_input_at_all():
    result = gptq(weights(23, 3, 5), np.zeros((5, 5)), FORMATS["int4-sym"], 4, "fp16")
    assert not result.tensor.codes.any()
    assert (result.error, result.dead) == (0.0, (0, 1, 2, 3, 4))


@pytest.mark.parametrize(
    ("h", "damping", "final", "raised"),
    [
        # Eigenvalues 3 and -1, mean diagonal 1: only more than 1 makes it positive definite.
        ([[1, 2], [2, 1]], 0.01, 10.0, 3),
        ([[1, 1], [1, 1]], 0.0, 1e-4, 1),  # rank 1
        ([[1, 1], [1, 1]], 0.01, 0.01, 0),
        ([[2, 1], [1, 2]], 0.0, 0.0, 0),
    ],
)
def test_singular_hessian_raises_damping(h, damping, final, raised):
    result = gptq(np.ones((1, 2)), np.array(h), FORMATS["int4-sym"], 2, "fp16", damping=damping)
    assert (result.damping, result.damping_raised) == (pytest.approx(final), raised)


def test_few_samples_need_the_damping():
    w, h = weights(24, 4, 40), correlated(25, 40, samples=10)
    assert gptq(w, h, FORMATS["int4-sym"], 8, "fp16").damping_raised == 0
    raised = gptq(w, h, FORMATS["int4-sym"], 8, "fp16", damping=1e-30)
    assert raised.damping_raised > 0
    assert np.isfinite(raised.error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hessian": np.array([[1, 0], [np.nan, 1]])},
            r"hessian\[1, 0\] is nan; it must be finite: check the calibration inputs",
        ),
        (
            {"hessian": np.array([[1, np.inf], [0, 1]])},
            r"hessian\[0, 1\] is inf; it must be finite: check the calibration inputs",
        ),
        ({"hessian": np.eye(3)}, r"hessian has shape \(3, 3\); w has 2 columns and needs \(2, 2\)"),
        (
            {"hessian": np.array([[1, 1e6], [1e6, 1]])},
            "the Hessian is not positive definite, even with 1000 times its mean diagonal added; "
            "it must be a sum of x x.T",
        ),
        ({"damping": -0.1}, r"damping \(=-0.1\) must be in 0 .. 1000; 0.01 is usual"),
        ({"damping": np.nan}, r"damping \(=nan\) must be in 0 .. 1000; 0.01 is usual"),
        ({"block_columns": 0}, r"block_columns \(=0\) must be at least 1"),
        ({"group_size": 0}, r"group_size \(=0\) must be at least 1; 128 is usual"),
        ({"scale_format": "e8m0"}, "int4-sym has no e8m0 scales; its scale_format is fp16 or int8"),
        ({"w": np.array([[1, np.nan]])}, r"w\[0, 1\] is nan; it must be finite"),
        (
            # Column 0 is stored as 2**-14, e = 2**-26, and column 1 becomes that.
            {
                "w": np.array([[2**-14 + 2**-26, 0]]),
                "hessian": np.array([[2.0, 1], [1, 1]]),
                "format": FORMATS["int2-sym"],
                "group_size": 1,
                "damping": 0.0,
            },
            r"the scale of row 0, group 1 \(=1.49e-08\), errors of other columns included, is "
            r"outside FP16 \(6e-08 .. 65504\); use scale_format='int8'",
        ),
        (
            # Column 0 -> 0, e = 1.2e38, and 100 times that goes to column 1.
            {
                "w": np.array([[1.2e38, 3e38]]),
                "hessian": np.array([[10001.0, 100], [100, 1]]),
                "format": FORMATS["int2-sym"],
                "scale_format": "int8",
                "damping": 0.0,
            },
            "the compensated weights exceed float32; scale the weights down",
        ),
    ],
)
def test_errors(change, message):
    given = {
        "w": np.ones((2, 2)),
        "hessian": np.eye(2),
        "format": FORMATS["int4-sym"],
        "group_size": 2,
        "scale_format": "fp16",
    }
    for twin in (gptq, gptq_reference):
        with pytest.raises(InputError, match=message):
            twin(**(given | change))


def test_pairs_are_not_parted():
    with pytest.raises(InputError, match=r"olive4 codes columns in pairs, so group_size \(=3\)"):
        gptq(np.ones((1, 6)), np.eye(6), FORMATS["olive4"], 3, "fp16")
