"""What a calibration pass gathers, and which tokens it reads."""

import re

import numpy as np
import pytest
import torch

from bitwright.quant import (
    Calibration,
    InputError,
    SiteCollector,
    SiteStats,
    Text,
    activation_ranges,
    calibration_tokens,
    load_calibration_text,
    load_model,
    load_text,
)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def collected(x, needs=("gram",), rows=None, batch=3):
    collector = SiteCollector(x.shape[1], needs, rows)
    for start in range(0, len(x), batch):
        collector.add(torch.from_numpy(x[start : start + batch]))
    return collector.stats()


def test_statistics_of_four_tokens_by_hand():
    x = np.array([[1, -2, 0], [3, 0, 0], [-5, 4, 0], [1, 2, 0]], np.float32)
    stats = collected(x)
    assert stats.tokens == 4
    assert stats.absmax.tolist() == [5, 4, 0]
    assert stats.mean_abs.tolist() == [2.5, 2, 0]
    assert (stats.low.tolist(), stats.high.tolist()) == ([-5, -2, 0], [3, 4, 0])
    # 1 + 9 + 25 + 1, -2 - 20 + 2, 4 + 16 + 4
    assert stats.gram.tolist() == [[36, -20, 0], [-20, 24, 0], [0, 0, 0]]
    assert stats.hessian.tolist() == [[18, -10, 0], [-10, 12, 0], [0, 0, 0]]
    assert stats.limits == (-5, 4)
    assert stats.dead.tolist() == [False, False, True]


def test_a_channel_that_never_changes_is_told_from_one_that_is_zero():
    stats = collected(np.array([[7, 0, 1], [7, 0, 2]], np.float32))
    assert stats.constant.tolist() == [True, False, False]
    assert stats.dead.tolist() == [False, True, False]


@pytest.mark.parametrize("k", [5, 512, 700, 1100])
def test_the_tiled_gram_matrix_is_x_transposed_x(k):
    x = np.random.default_rng(k).integers(-8, 9, (20, k)).astype(np.float32)
    stats = collected(x, batch=7)
    assert np.array_equal(stats.gram, x.T @ x)  # integers: exact in any order


def test_sampled_rows_are_those_asked_for_whatever_the_batches():
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    rows = np.array([0, 4, 5, 19])
    for batch in (1, 3, 20):
        assert np.array_equal(collected(x, ("sample",), rows, batch).sample, x[rows])


def test_rescaled_statistics_are_those_of_the_rescaled_inputs():
    rng = np.random.default_rng(1)
    x = rng.integers(-50, 51, (30, 6)).astype(np.float32)
    divisors = np.array([1, 2, 4, 0.5, 8, 0.25], np.float32)  # powers of two: exact
    rows = np.arange(0, 30, 7)
    changed = collected(x, ("gram", "sample"), rows)
    changed.rescale(divisors)
    direct = collected(x / divisors, ("gram", "sample"), rows)
    for name in SiteStats.__dataclass_fields__:
        assert np.array_equal(getattr(changed, name), getattr(direct, name)), name


def test_inputs_that_are_not_finite_are_refused():
    x = np.ones((4, 3), np.float32)
    x[2, 1] = np.nan
    with pytest.raises(InputError, match=r"^inputs of channel 1 are NaN or infinite during"):
        collected(x)


def test_calibration_never_reads_what_is_evaluated():
    assert load_calibration_text().content[:200] not in load_text().content
    assert load_text().content[-200:] not in load_calibration_text().content


def test_tokens_are_windows_of_the_text_in_its_order(tiny):
    text = Text("t", "".join(chr(97 + i % 26) for i in range(1000)))
    ids = tiny.tokenizer.encode(text.content)
    drawn = calibration_tokens(tiny, Calibration(sequences=4, length=100, seed=3), text)
    starts = [
        next(s for s in range(0, 1000, 100) if ids[s : s + 100] == row) for row in drawn.tolist()
    ]
    assert starts == sorted(set(starts))


def test_the_seed_decides_which_tokens(tiny):
    def drawn(seed):
        return calibration_tokens(tiny, Calibration(sequences=4, length=64, seed=seed))

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_a_text_that_is_too_short_says_how_many_tokens_are_missing(tiny):
    message = (
        "calibration text short has 100 tokens; 3 x 50 = 150 are needed, 50 are missing; use a "
        "longer text, fewer sequences or a shorter length"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        calibration_tokens(tiny, Calibration(sequences=3, length=50), Text("short", "a" * 100))


def test_sequences_longer_than_the_context_are_refused(tiny):
    message = (
        f"calibration length 100000 exceeds the context of model tiny, which is "
        f"{tiny.config.context}; use shorter sequences"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        calibration_tokens(tiny, Calibration(sequences=1, length=100_000), "a")


def test_ranges_by_length_are_those_of_a_plain_pass(tiny):
    rows = activation_ranges(tiny, (16, 32), tokens=64)
    assert {row.length for row in rows} == {16, 32}
    assert len(rows) == 2 * tiny.config.layers * 4
    ids = calibration_tokens(tiny, Calibration(sequences=2, length=32))
    largest = {}

    def observe(name, x, w):
        largest[name] = max(largest.get(name, 0.0), float(x.abs().max()))

    with torch.no_grad():
        tiny.logits(ids, observe=observe)
    for row in rows:
        if row.length == 32:
            name = {"attn_in": "attn.q", "attn_out": "attn.o", "ffn_in": "ffn.up"}.get(
                row.site, "ffn.down"
            )
            # The two passes differ in how many sequences they multiply at a time: a few ulp.
            expected = largest[f"blocks.{row.layer}.{name}"]
            assert row.absmax == pytest.approx(expected, rel=1e-4)
            assert row.mean_token_absmax <= row.absmax
