"""`bitwright synth`: its JSON, and one line for each mistake."""

import json

import pytest
import typer
from typer.testing import CliRunner

from bitwright.commands.synth import synth
from bitwright.quant import InputError
from bitwright.rtl import technology

APP = typer.Typer()
APP.command()(synth)


def test_json_has_a_row_per_block_and_the_keys_others_rely_on() -> None:
    answer = CliRunner().invoke(APP, ["fp16acc16", "--technology", "nangate45", "--json"])
    assert answer.exit_code == 0, answer.output
    document = json.loads(answer.stdout)
    rows = document["results"]
    assert {"pe", "block", "technology", "area_um2", "cells", "delay_ps", "clock_ps"} <= set(
        rows[0]
    )
    assert [row["block"] for row in rows][-1] == "total"
    assert {row["technology"] for row in rows} == {"nangate45"}
    assert document["ratios"] == []  # no bitmod PE in this run


@pytest.mark.slow
def test_bitmod_is_compared_with_both_baselines_and_the_paper() -> None:
    command = ["bitmod", "--technology", "nangate45"]
    answer = CliRunner().invoke(APP, [*command, "--json"])
    document = json.loads(answer.stdout)
    totals = [row for row in document["results"] if row["block"] == "total"]
    shared = [row["block"] for row in document["results"] if row["shared"]]
    assert (len(totals), shared) == (1, ["encoder", "column"])
    assert [row["baseline"] for row in document["ratios"]] == ["fp16", "fp16acc16"]
    for row in document["ratios"]:
        assert (row["published"], row["reached"]) == (0.7625, True)
        assert row["clock_ps"] == technology.TECHNOLOGIES["nangate45"].clock_ps
        assert 0.3 < row["area_ratio"] < 3
    text = CliRunner().invoke(APP, command).stdout
    assert f"nangate45: {document['ratios'][0]['area_ratio']:.2f} (published: 0.76)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bitmot"], r"unknown PE 'bitmot'; did you mean bitmod\?"),
        (["bitmod", "--technology", "nangate"], r"unknown technology 'nangate'; did you mean"),
        (["bitmod", "--liberty", "absent.lib"], r"Liberty file absent\.lib cannot be read"),
        (["bitmod", "--clock-ps", "0"], r"--clock-ps 0: give a period in ps above 0"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    answer = CliRunner().invoke(APP, arguments)
    assert isinstance(answer.exception, InputError)
    assert "\n" not in str(answer.exception)
    with pytest.raises(InputError, match=message):
        raise answer.exception
