"""`bitwright generate`."""

import json
import sys

import pytest

from bitwright.__main__ import main
from bitwright.kernels import Decoder
from bitwright.quant import InputError, apply_recipe, load_model

RECIPE = "w4g32a8-int-asym"


def run(monkeypatch, capsys, *arguments):
    """Exit code, stdout and stderr of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["bitwright", "generate", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def test_it_writes_what_the_decoder_writes(monkeypatch, capsys):
    options = ("--model", "tiny", "--recipe", RECIPE, "--tokens", "12")
    code, printed, told = run(monkeypatch, capsys, "The value of", *options, "--json")
    document = json.loads(printed)
    model = load_model("tiny")
    ids = model.tokenizer.encode("The value of")
    written = list(Decoder(apply_recipe(model, RECIPE)).generate(ids, 12))
    assert code == 0 and document["text"] == model.tokenizer.decode(written)
    assert (document["prompt_tokens"], document["written_tokens"]) == (len(ids), 12)
    assert document["written_tokens_per_s"] > 0 and "12 written at" in told
    code, printed, _ = run(monkeypatch, capsys, "The value of", *options)
    assert code == 0 and printed.split() == ("The value of" + document["text"]).split()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("", "--model", "tiny"), "PROMPT is empty; give at least a word to continue"),
        (("a", "--model", "tiny", "--tokens", "100000"), "do not fit the model's context of"),
        (("a", "--model", "tiny", "--recipe", "bitmod4"), "a Decoder takes symmetric integers per"),
    ],
)
def test_mistakes_end_with_one_line(monkeypatch, capsys, arguments, text):
    code, printed, error = run(monkeypatch, capsys, *arguments)
    assert code == 2 and printed == ""
    assert text in error.splitlines()[-1]


def test_a_decoder_refuses_another_output_layer():
    with pytest.raises(InputError, match="^head is 'w4'; it must be float or integer$"):
        Decoder(apply_recipe(load_model("tiny"), RECIPE), head="w4")
