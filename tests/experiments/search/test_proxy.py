"""The proxy of accuracy: nothing for nothing, rising, and true to the layer errors."""

from importlib import import_module

import numpy as np
import pytest

from bitwright.quant import (
    Calibration,
    InputError,
    agreement,
    apply_recipe,
    calibration_tokens,
    load_calibration_text,
    load_model,
    quantize,
    resolve_recipe,
)

proxies, sensing = (
    import_module(f"bitwright.experiments.search.{name}") for name in ("proxy", "sensitivity")
)
RECIPES = tuple(map(resolve_recipe, ("w3g64-bitmod", "w4g64-bitmod", "w8g64-int-sym-s8")))
CALIBRATION = Calibration(sequences=8, length=64)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def tables(tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        text = load_calibration_text()
        first = sensing.sensitivity(tiny, RECIPES, CALIBRATION, text)
        patch.setattr(sensing, "output_errors", None)  # a second run measures nothing
        again = sensing.sensitivity(tiny, RECIPES, CALIBRATION, text)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    return first


def test_relative_errors_are_those_of_the_pipelines_report(tiny, tables):
    # With one candidate, `mixed` rounds to nearest and reports output errors; its inputs are those
    # of the quantised stream, which in the first stage is the float one.
    recipe = "w3g64-bitmod+mixed:formats=bitmod3"
    report = apply_recipe(tiny, recipe, calibration=CALIBRATION).report
    for row in range(3):  # q, k and v of the first block
        assert tables["relative"][row, 0] == pytest.approx(report[row].relative_output_mse, 1e-4)


@pytest.mark.parametrize("name", ["relative", "energy", "loss"])
def test_more_bits_err_less_in_every_linear(tables, name):
    assert (np.diff(tables[name], axis=1) < 0).all()
    assert (tables[name] > 0).all()


def test_nothing_quantised_is_no_error(tiny):
    w = tiny.weight("blocks.0.attn.q").numpy()
    gram = np.eye(w.shape[1], dtype=np.float32)
    assert not sensing.row_errors(w - w, gram).any()
    errors = quantize(w, RECIPES[0]).dequantize() - w
    expected = np.square(errors, dtype=np.float64).sum(axis=1)
    assert sensing.row_errors(errors, gram) == pytest.approx(expected, rel=1e-6)


def test_the_loss_measure_estimates_the_divergence(tiny, tables):
    """One linear quantised alone: the estimate has the order and size of the KL measured."""
    import torch

    ids = calibration_tokens(tiny, CALIBRATION, load_calibration_text()).flatten().tolist()
    names = tiny.linear_names()
    measured, estimated = [], []
    for number in range(0, len(names), 6):
        for column, recipe in enumerate(RECIPES):
            w = torch.from_numpy(quantize(tiny.weight(names[number]), recipe).dequantize())
            changed = tiny.with_weights({names[number]: w})
            measured.append(agreement(tiny, changed, tokens=ids, window=CALIBRATION.length).kl)
            estimated.append(tables["loss"][number, column])
    assert proxies.rank_correlation(np.array(estimated), np.array(measured)) > 0.9
    assert 1 / 2 < np.median(np.array(estimated) / np.array(measured)) < 2


def test_a_fit_finds_the_rule_it_was_made_with():
    values = np.array([0.0, 0.1, 0.2, 0.5, 1.0])
    found = proxies.fit("made up", values, 0.5 * values + 0.25 * values**2, 20.0)
    assert (found.linear, found.square) == pytest.approx((0.5, 0.25))
    assert found.residual == pytest.approx(0, abs=1e-12)
    assert found.rank_correlation == 1.0
    assert found.perplexity(0.0) == 20.0  # nothing quantised, nothing lost
    assert found.perplexity(1.0) == pytest.approx(20 * np.exp(0.75))


@pytest.mark.parametrize("seed", range(5))
def test_a_fit_rises_whatever_was_measured(seed):
    rng = np.random.default_rng(seed)
    found = proxies.fit("noise", rng.random(9), rng.normal(size=9), 10.0)
    predicted = found.perplexity(np.linspace(0, 2, 50))
    assert predicted[0] == 10.0
    assert (np.diff(predicted) >= 0).all()


def test_the_best_measure_is_told_by_its_residual_or_by_what_it_found():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 3, (10, 7))
    true, other = rng.random((7, 3)), rng.random((7, 3))
    nats = proxies.sums(true, maps)
    chosen, fits = proxies.best_proxy({"other": other, "true": true}, maps, nats, 5.0)
    assert chosen.measure == "true"
    assert [one.measure for one in fits] == ["other", "true"]
    # Guided maps overrule it: the measure whose own maps lose least guides the search.
    nats[:2] = 0.0
    guided = {"other": [0, 1], "true": [2, 3]}
    chosen, fits = proxies.best_proxy({"other": other, "true": true}, maps, nats, 5.0, guided)
    assert chosen.measure == "other"
    assert chosen.found == 0.0
    assert fits[1].found == pytest.approx(nats[2:4].mean())


def test_too_few_maps_are_refused():
    with pytest.raises(InputError, match="2 maps calibrate the proxy; at least 3"):
        proxies.fit("relative", np.ones(2), np.ones(2), 1.0)


def test_rank_correlation_by_hand():
    # Ranks 1 2 3 and 3 1 2: 1 - 6 * (4 + 1 + 1) / (3 * 8) = -0.5.
    assert proxies.rank_correlation(np.array([1, 2, 3]), np.array([9, 1, 5])) == pytest.approx(-0.5)
    assert proxies.rank_correlation(np.ones(3), np.arange(3)) == 0.0


def test_maps_to_calibrate_on_are_uniform_then_guided_then_random():
    bits, table = np.tile([3, 4, 8], (7, 1)), np.tile([1.0, 0.3, 0.0], (7, 1))
    guided = proxies.guided_maps(bits, {"one": table}, 2)
    assert len(guided) == 2
    maps = proxies.sample_maps(7, 3, guided, 9, seed=1)
    assert maps.shape == (9, 7)
    assert [set(row.tolist()) for row in maps[:3]] == [{0}, {1}, {2}]
    assert np.array_equal(maps[3:5], guided)
    assert np.array_equal(maps, proxies.sample_maps(7, 3, guided, 9, seed=1))
    assert not np.array_equal(maps, proxies.sample_maps(7, 3, guided, 9, seed=2))
    assert len(proxies.sample_maps(7, 3, guided, 2, seed=1)) == 3  # the uniform ones always
