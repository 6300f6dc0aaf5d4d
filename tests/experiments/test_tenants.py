"""Fine-tuning for a short time, and what compressed differences recover of it."""

import io
import json
from importlib import import_module

import pytest
import torch

from bitwright.quant import Calibration, InputError, Text, load_model, perplexity

fine_tuning = import_module("bitwright.experiments.fine_tune")
tenants = import_module("bitwright.experiments.tenants")

#: A domain that the model has not seen.
VERSES = "\n".join(
    f"{i} green bottles hanging on the wall, {i} green bottles hanging on the wall."
    for i in range(900, 200, -1)
)
SHORT = fine_tuning.FineTuning(steps=10, batch=2, length=96, warmup=2, rate=1e-3)


@pytest.fixture(scope="module")
def base():
    return load_model("tiny")


@pytest.fixture(scope="module")
def texts():
    return fine_tuning.split(Text("bottles", VERSES))


@pytest.fixture(scope="module")
def tuned(base, texts):
    return fine_tuning.fine_tune(base, texts[0], SHORT)


@pytest.fixture(scope="module")
def rows(base, tuned, texts):
    few = Calibration(sequences=4, length=96)
    return tenants.compare_tenants(base, tuned, *texts, tokens=512, window=128, calibration=few)


def test_a_tenth_is_held_out(texts):
    train, held = texts
    assert len(train.content) + len(held.content) == len(VERSES)
    assert held.content.startswith(VERSES[18000:20000])
    assert train.content.startswith(VERSES[:18000])
    assert train.name == "bottles, nine tenths" and held.name == "bottles, held-out tenth"


def test_fine_tuning_helps_on_its_domain(base, tuned, texts):
    scores = [perplexity(m, texts[1], window=128, max_tokens=512).perplexity for m in (base, tuned)]
    assert scores[1] < 0.7 * scores[0]
    assert tuned.weight("embed").equal(base.weight("embed"))
    for name in base.config.weight_shapes():
        assert tuned.weight(name).equal(base.weight(name)) == (name == "embed")
        assert not tuned.weight(name).requires_grad


def test_the_same_seed_gives_the_same_weights(base, texts):
    settings = [fine_tuning.FineTuning(steps=2, batch=1, length=32, seed=s) for s in (0, 0, 1)]
    a, b, c = (fine_tuning.fine_tune(base, texts[0], one) for one in settings)
    name = "blocks.0.ffn.up"
    assert torch.equal(a.weight(name), b.weight(name))
    assert not torch.equal(a.weight(name), c.weight(name))


def test_the_table(base, rows):
    names = [row.what for row in rows]
    assert names == [
        "base",
        "fine-tuned, FP16",
        "BitDelta, 1 plane",
        "BitDelta, 2 planes",
        "Delta-CoMe 1/16, nearest",
        "Delta-CoMe 1/16, GPTQ",
        "fine-tuned, w4g64-int-sym-s8",
    ]
    by = dict(zip(names, rows, strict=True))
    assert by["base"].recovered == 0 and by["base"].stored_bits == 0
    assert by["fine-tuned, FP16"].recovered == 1
    assert by["fine-tuned, FP16"].bits_per_weight == 16
    shapes = base.config.linear_shapes().values()
    weights = sum(n * k for n, k in shapes)
    norms = 16 * base.config.hidden * (2 * base.config.layers + 1)
    one = by["BitDelta, 1 plane"]
    assert one.stored_bits == weights + 32 * len(shapes) + norms
    assert one.bits_per_weight == pytest.approx(1 + 32 * len(shapes) / weights)
    two = by["BitDelta, 2 planes"]
    assert two.stored_bits - norms == 2 * (one.stored_bits - norms)
    assert 0 < one.recovered < two.recovered < 1.02
    nearest, chosen = by["Delta-CoMe 1/16, nearest"], by["Delta-CoMe 1/16, GPTQ"]
    assert nearest.stored_bits == chosen.stored_bits
    assert 0 < nearest.recovered and 0 < chosen.recovered
    assert nearest.held_out != chosen.held_out


def test_both_commands(texts, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(VERSES)
    words = ["--model", "tiny", "--text", str(tmp_path / "text.txt"), "--out", str(tmp_path / "m")]
    fine_tuning.main([*words, "--steps", "2", "--length", "32", "--batch", "1"])
    assert capsys.readouterr().out == f"{tmp_path / 'm'}\n"
    shown = ["--base", "tiny", "--tuned", str(tmp_path / "m"), "--text", str(tmp_path / "text.txt")]
    few = ["--tokens", "128", "--window", "64", "--sequences", "2"]
    tenants.main([*shown, *few, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["base"] == "tiny" and len(document["rows"]) == 7
    assert {"bitwright", "commit", "python", "seed"} == set(document["made_by"])
    assert document["calibration"]["seed"] == document["made_by"]["seed"]
    assert document["held_out"] == "text.txt, held-out tenth"
    with pytest.raises(SystemExit) as stopped:
        fine_tuning.main(words)
    assert stopped.value.code == 2
    error = f"error: --out {tmp_path / 'm'} is not empty; choose another folder\n"
    assert capsys.readouterr().err == error


def test_the_table_for_people(rows):
    from rich.console import Console

    console = Console(width=120, file=io.StringIO())
    console.print(tenants._table("title", rows))
    text = console.file.getvalue()
    assert "BitDelta, 1 plane" in text and "100.0%" in text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps is 0; at least 1 is needed"),
        ({"length": 1}, "length is 1; at least 2 tokens are needed"),
        ({"rate": 0.0}, "rate is 0.0; a positive number is needed"),
    ],
)
def test_settings_out_of_range(changed, message):
    with pytest.raises(InputError) as found:
        fine_tuning.FineTuning(**changed)
    assert str(found.value) == message


def test_texts_and_windows_that_do_not_fit(base):
    with pytest.raises(InputError, match="^text short has 5 characters; 18,001 are needed"):
        fine_tuning.split(Text("short", "words"))
    with pytest.raises(InputError, match="^text short has 40 tokens; more than 97 are needed"):
        fine_tuning.fine_tune(base, Text("short", "x" * 40), SHORT)
    long = fine_tuning.FineTuning(length=513)
    with pytest.raises(InputError, match="^length 513 exceeds the context of model tiny, which is"):
        fine_tuning.fine_tune(base, Text("short", "x" * 4000), long)
