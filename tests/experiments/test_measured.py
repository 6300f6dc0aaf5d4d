"""Caches of accuracies and quantised tensors: the same answers, made once."""

from importlib import import_module

import pytest

from bitwright.experiments import measured_accuracy, quantised
from bitwright.quant import Text, apply_recipe, load_calibration_text, load_model, resolve_recipe

measured = import_module("bitwright.experiments.measured")


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    """How often a model was quantised."""
    made = []
    real = measured.apply_recipe

    def counted(model, recipe, **options):
        made.append(recipe.name)
        return real(model, recipe, **options)

    monkeypatch.setattr(measured, "apply_recipe", counted)
    return made


@pytest.mark.slow
def test_tensors_of_an_algorithm_are_made_once_and_are_the_same(tiny, empty, calls):
    recipe = resolve_recipe("w4g64-int-asym+gptq")
    first, second = quantised(tiny, recipe), quantised(tiny, recipe)
    assert calls == [recipe.name]
    plain = apply_recipe(tiny, recipe)
    for other in (first, second):
        assert other.bits_per_weight == plain.bits_per_weight
        for name, tensor in plain.tensors.items():
            assert (other.tensors[name].codes == tensor.codes).all(), name
    # Two evaluations that differ in what they read share the tensors.
    text = Text("some", load_calibration_text().content[:6000])
    answers = [
        measured_accuracy(tiny, recipe, text, max_tokens=tokens, window=128)
        for tokens in (256, 512, 256)
    ]
    assert calls == [recipe.name] and answers[0] == answers[2] != answers[1]
    assert len(list((empty / "accuracy").iterdir())) == 2


@pytest.mark.slow
def test_another_recipe_or_damage_is_made_anew(tiny, empty, calls):
    recipe = resolve_recipe("w4g64-int-asym+awq:clip=false")
    first = quantised(tiny, recipe).tensors
    quantised(tiny, resolve_recipe("w3g64-int-asym+awq:clip=false"))
    assert len(calls) == 2 and len(list((empty / "quantised").iterdir())) == 2
    for block in (empty / "quantised").rglob("block-0001*"):
        block.write_bytes(block.read_bytes()[:-9])
    again = quantised(tiny, recipe).tensors
    assert len(calls) == 3
    assert {name: tensor.codes.tobytes() for name, tensor in again.items()} == {
        name: tensor.codes.tobytes() for name, tensor in first.items()
    }


def test_plain_rounding_is_not_kept(tiny, empty, calls):
    quantised(tiny, resolve_recipe("bitmod4"))
    assert calls == ["w4g128-bitmod"] and not (empty / "quantised").exists()
