"""Super weights: planted ones are found, and what removing and restoring does is what it says."""

import json

import numpy as np
import pytest
import torch

from bitwright.experiments import find_super_weights, super_weight_study
from bitwright.quant import InputError, Text, load_model, load_text, perplexity, spikes

NAME, ROW, COLUMN = "blocks.1.ffn.down", 5, 244
SMALL = {"max_tokens": 512, "window": 128, "prompt": 64, "others": 20}


@pytest.fixture(scope="module")
def text():
    return Text("the beginning", load_text().content[:3000])


@pytest.fixture(scope="module")
def planted():
    """tiny with a weight that writes 2.5 times the largest activation into one residual row.

    That channel carries 8 times as much first and is read with an eighth of the weight:
    the same function.
    """
    model = load_model("tiny")
    up, down = (model.weight(f"blocks.1.ffn.{name}").clone() for name in ("up", "down"))
    up[COLUMN] *= 8
    down[:, COLUMN] /= 8
    down[ROW, COLUMN] = 2.5
    return model.with_weights({"blocks.1.ffn.up": up, NAME: down})


@pytest.fixture(scope="module")
def study(planted, text):
    return super_weight_study(planted, text=text, threshold=600.0, most=1, **SMALL)


def test_spikes_by_hand():
    """Inputs 100 and 60 at one token; row 1 gets 100 x 2, row 0 then 60 x 1 + 1."""
    x = torch.tensor([[100.0, 60.0, 1.0], [1.0, 1.0, 1.0]])
    down = torch.tensor([[0.0, 1.0, 1.0], [2.0, 0.0, 3.0]])
    found = spikes(x, down, 50.0, 4, 0.5)
    assert [(one.row, one.column, one.value, one.input) for one in found] == [(1, 0, 2.0, 100.0)]
    assert (found[0].before, found[0].after) == (203.0, 3.0)
    # Then row 0 spikes with 61, but the largest input, of column 0, has no part in it.
    x[0, 0] = 59.0
    first, *_ = spikes(x, down, 50.0, 4, 0.0)
    assert (first.row, first.column) == (1, 1)  # 121 from 59 x 2, and column 1 is the largest
    assert spikes(x, down, 50.0, 4, 0.5) == () == spikes(x, down, 1000.0, 4, 0.5)


def test_a_planted_one_is_found_in_one_pass(planted):
    found, largest = find_super_weights(planted, threshold=600.0, prompt=64)
    assert (found[0].layer, found[0].spike.row, found[0].spike.column) == (1, ROW, COLUMN)
    spike = found[0].spike
    # Each of the two is a float32 sum of 384 products, rounded at most 385 times, and no input is
    # larger than the spike's.
    row = planted.weight(NAME)[ROW].abs().sum().item()
    error = abs(spike.before - spike.after - 2.5 * spike.input)
    assert spike.value == 2.5 and error <= 2 * 385 * 2.0**-24 * abs(spike.input) * row
    assert len(largest) == 5 and min(largest[1]) > 600
    assert largest[1][1] == pytest.approx(abs(spike.before), rel=1e-5)


def test_the_shipped_model_has_spikes_but_none_that_matters(text):
    """A byte-level model of 1 million weights: its largest outputs change nothing when they go."""
    study = super_weight_study(load_model("tiny"), text=text, **SMALL)
    assert study.found and max(min(row) for row in study.largest) > 50
    values = [value for what, _, value in study.rows if what.startswith("without blocks")]
    assert all(value < 1.05 * study.rows[0][2] for value in values)
    found, _ = find_super_weights(load_model("tiny"), threshold=1e4, prompt=64)
    assert found == ()


def test_rows_are_the_perplexities_they_name(planted, study, text):
    where = {"text": text, "max_tokens": 512, "window": 128}
    rows = {what: (weights, value) for what, weights, value in study.rows}
    assert list(rows) == [
        "as it is",
        f"without {NAME} [{ROW}, {COLUMN}]",
        "without random ones of their size",
        "without the largest others",
        "w4-int-sym",
        "w4-int-sym, super weights in FP16",
    ]
    assert rows["as it is"] == (0, perplexity(planted, **where).perplexity)
    w = planted.weight(NAME).clone()
    w[ROW, COLUMN] = 0
    alone = perplexity(planted.with_weights({NAME: w}), **where).perplexity
    assert rows[f"without {NAME} [{ROW}, {COLUMN}]"] == (1, alone)
    assert rows["without random ones of their size"][0] == 1
    assert rows["without the largest others"][0] == 20


def test_the_random_ones_move_perplexity_less(study):
    """Their places are ordinary: one such weight more or less is nothing."""
    values = {what: value for what, _, value in study.rows}
    base = values["as it is"]
    single = abs(values[f"without {NAME} [{ROW}, {COLUMN}]"] - base)
    assert abs(values["without random ones of their size"] - base) < single


def test_the_largest_others_leave_the_super_weight_alone(planted, text):
    module = pytest.importorskip("bitwright.experiments.super_weights")
    zeros = module._largest(planted, [(NAME, ROW, COLUMN)], 20)
    flat = np.concatenate(
        [np.abs(planted.weight(name).numpy()).reshape(-1) for name in planted.linear_names()]
    )
    sizes = [
        float(abs(planted.weight(name)[row, column]))
        for name, (rows, columns) in zeros.items()
        for row, column in zip(rows, columns, strict=True)
    ]
    expected = np.sort(flat)[::-1]
    expected = np.delete(expected, int(np.argmax(expected == np.float32(2.5))))[:20]
    assert sorted(sizes, reverse=True) == expected.tolist()
    assert (ROW, COLUMN) not in zip(*map(list, zeros.get(NAME, ((), ()))), strict=True)


def test_restoring_keeps_the_value_and_the_scale(planted):
    module = pytest.importorskip("bitwright.experiments.super_weights")
    recipe = module.resolve_recipe("w4-int-sym")
    plain = module.apply_recipe(planted, recipe)
    linear = module._restored(planted, recipe, plain.linear(), [(NAME, ROW, COLUMN)])
    w = linear(NAME, torch.eye(384)).T
    rounded = plain.linear()(NAME, torch.eye(384)).T
    original = planted.weight(NAME)
    assert w[ROW, COLUMN] == 2.5
    # Half a step of the others' own scale, which is an FP16 number.
    others = [column for column in range(384) if column != COLUMN]
    half = original[ROW, others].abs().max().item() / 7 / 2 * (1 + 2.0**-10)
    assert (w - original)[ROW, others].abs().max() <= half
    assert (rounded - original)[ROW, others].abs().max() > 2 * half
    rows = [row for row in range(128) if row != ROW]
    assert torch.equal(w[rows], rounded[rows])


def test_the_document_is_json_and_repeats(planted, study, text):
    again = super_weight_study(planted, text=text, threshold=600.0, most=1, **SMALL)
    written = json.dumps(study.document(), allow_nan=False)
    assert json.dumps(again.document(), allow_nan=False) == written
    assert {"model", "text", "seed", "commit", "threshold"} <= set(study.meta)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "fp16"}, "^recipe fp16 is not plain rounding of weights; give one such as w4-"),
        ({"recipe": "w4-int-sym+awq"}, "is not plain rounding of weights"),
        ({"others": 983_040}, "^others is 983040; from 1 to 983,039, the linears' weights$"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        super_weight_study(load_model("tiny"), **options)
