"""`bitwright energy`: its JSON and files, and one line for each mistake."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bitwright.commands.energy import NATURAL_RECIPES, energy
from bitwright.experiments import opensta
from bitwright.quant import InputError, ModelUnavailable, load_model, resolve_recipe
from bitwright.rtl import scaling, technology
from bitwright.sim import PES

TINY = ["--model", "tiny", "--layer", "3.ffn.down", "--layer", "lm_head"]
Invoke = Callable[..., str]


def document(invoke: Invoke, *arguments: str) -> Any:
    return json.loads(invoke(energy, *arguments, "--json"))


def test_json_has_the_keys_others_rely_on(invoke: Invoke) -> None:
    answer = document(invoke, "dint4", *TINY)
    assert (answer["pe"], answer["technology"], answer["clock_ps"]) == ("dint4", "nangate45", 3000)
    assert (answer["model"], answer["recipe"], answer["seed"]) == ("tiny", "w4g128-dint-sym", 0)
    assert (answer["voltage"], answer["scaled"], answer["post_layout"]) == (1.1, None, 1)
    rows = answer["results"]
    assert [row["stream"] for row in rows] == ["3.ffn.down", "lm_head"]
    for key in ("pj_per_cycle", "pj_per_mac"):
        assert answer[key] == pytest.approx(sum(row[key] for row in rows) / 2)
    assert sum(answer["breakdown"].values()) == pytest.approx(answer["pj_per_cycle"])
    assert {"PE multiply", "PE accumulate", "wires", "leakage"} <= answer["breakdown"].keys()
    for part, components in answer["breakdown_components"].items():
        assert sum(components.values()) == pytest.approx(answer["breakdown"][part])
    for row in rows:
        assert row["half_width"] <= 0.02 and row["tiles"] >= 8
        assert row["stalled_pj"] < row["unused_pj"] < row["pj_per_cycle"]
    idle, random, pe_idle, pe_random, worst = answer["bounds"]["rows"]
    assert idle["pj_per_cycle"] == pytest.approx(random["stalled_pj"])
    assert idle["pj_per_cycle"] < rows[0]["pj_per_cycle"]
    assert pe_idle["pj_per_cycle"] < pe_random["pj_per_cycle"] < worst["pj_per_cycle"]
    assert worst["stream"] == "worst: highest of 512 pairs tried"
    assert answer["card"]["post_layout"] == "1 (none)"
    assert answer["card"]["technology"] == "nangate45"


def test_the_table_shows_streams_parts_and_card(invoke: Invoke) -> None:
    text = invoke(energy, "dint4", *TINY)
    for words in (
        "dint4 on nangate45, w4g128-dint-sym, tensors of tiny: pJ per PE",
        "3.ffn.down", "random data", "random data (PE alone)",
        "worst: highest of 512 pairs tried (PE alone)", "PE multiply", "column unit", "switching",
        "mean of the products: ", "card: post-layout factor: 1 (none)", "card: supply: 1.1 V",
        "card: not modelled: glitches",
    ):  # fmt: skip
        assert words in text
    assert max(map(len, text.splitlines())) <= 120 and "…" not in text
    assert "scaled to" not in text


def test_the_bit_serial_pe_has_an_encoder_and_terms_to_skip(invoke: Invoke) -> None:
    answer = document(invoke, "bitmod", *TINY[:4])
    (row,) = answer["results"]
    assert row["macs_per_cycle"] == 2 and row["skipped_pj"] < row["pj_per_cycle"]
    assert "encoder" in answer["breakdown"]


def test_layout_factor_and_scaling_reach_every_number_and_say_so(
    invoke: Invoke, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    plain = document(invoke, "dint4", *TINY)
    options = ["--post-layout", "1.5", "--node", "28", "--node-voltage", "0.9"]
    scaled = document(invoke, "dint4", *TINY, *options, "--csv", str(path))
    factor = 1.5 * scaling.energy_ratio(45, 1.1, 28, 0.9)
    assert scaled["factor"] == pytest.approx(factor)
    streams = [(answer["results"] + answer["bounds"]["rows"]) for answer in (plain, scaled)]
    for before, after in zip(*streams, strict=True):
        leakage = before["leakage_pj"]
        for key in ("pj_per_cycle", "unused_pj", "stalled_pj"):
            if before[key] is not None:
                wanted = (before[key] - leakage) * factor + leakage
                assert after[key] == pytest.approx(wanted), (before["stream"], key)
        assert after["scaled"] == "scaled to 28 nm at 0.9 V" and before["scaled"] is None
        assert after["source"].startswith("scaled to 28 nm at 0.9 V, from ")
    assert sum(scaled["breakdown"].values()) == pytest.approx(scaled["pj_per_cycle"])
    assert scaled["card"]["node"].startswith("scaled: energies x ")
    assert scaled["card"]["post_layout"] == "1.5"
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["stream"] for row in rows][:3] == ["3.ffn.down", "lm_head", "idle"]
    assert {row["scaled"] for row in rows} == {"scaled to 28 nm at 0.9 V"}
    text = " ".join(invoke(energy, "dint4", *TINY, *options).split())
    assert text.count("scaled to 28 nm at 0.9 V") >= 4  # both tables, the mean, the source


def test_a_lower_supply_costs_its_square(invoke: Invoke) -> None:
    usual, low = (
        document(invoke, "dint4", *TINY[:4], *options) for options in ([], ["--voltage", "0.55"])
    )
    for part, energy_pj in usual["breakdown"].items():
        factor = 0.5 if part == "leakage" else 0.25
        assert low["breakdown"][part] == pytest.approx(factor * energy_pj, rel=1e-6), part
    assert low["card"]["voltage"] == "0.55 V"


@pytest.mark.slow
def test_a_liberty_file_of_one_s_own(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "mine.lib"
    single = opensta.single_energies(technology.TECHNOLOGIES["nangate45"])
    path.write_text(opensta.energy_liberty(single))
    options = ["--node", "28", "--node-voltage", "0.9"]
    own = ["--liberty", str(path), "--from-node", "45", "--clock-ps", "3000"]
    answer = document(invoke, "dint4", *TINY[:4], *options, *own)
    shipped = document(invoke, "dint4", *TINY[:4], *options)
    assert answer["technology"] == "mine"
    assert "netlists of a tile of dint4 PEs on mine" in answer["card"]["sources"]["logic energy"]
    # That file has half the energy at clock pins, one energy a pin and no wire load.
    assert 0.5 < answer["pj_per_cycle"] / shipped["pj_per_cycle"] < 1


def test_without_the_default_model_tiny_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, progress: Any = None) -> Any:
        if name == "smollm2":
            raise ModelUnavailable("smollm2 is not cached and cannot be fetched")
        return load_model(name)

    monkeypatch.setattr("bitwright.quant.load_model", offline)
    app = typer.Typer()
    app.command()(energy)
    answer = CliRunner().invoke(app, ["dint4", "--layer", "lm_head", "--json"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["model"] == "tiny"
    assert answer.stderr == (
        "bitwright: smollm2 is not cached and cannot be fetched; using the bundled model tiny "
        "instead\n"
    )


def test_every_pe_has_a_recipe_that_it_runs() -> None:
    assert list(NATURAL_RECIPES) == list(PES)
    for pe, name in NATURAL_RECIPES.items():
        assert PES[pe].step_cycles(resolve_recipe(name).format_obj) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bitmot"], f"unknown PE 'bitmot'; did you mean bitmod? there are: {', '.join(PES)}"),
        (["dint6"], f"dint6 is a variant; energy is measured on {', '.join(PES)}"),
        (
            ["dint4", "--recipe", "bitmood4"],
            "unknown recipe 'bitmood4'; nearest: bitmod4, bitmod3, w4g128-bitmod",
        ),
        (
            ["dint4", "--recipe", "fp16"],
            "the dint4 PE cannot run weight format fp16; it runs dint4-sym",
        ),
        (
            ["dint4", "--model", "tiny", "--layer", "9.ffn.down"],
            "--layer is '9.ffn.down'; tiny has layers 0 to 4",
        ),
        (
            ["dint4", "--model", "tiny", "--layer", "3.ffn.dwon"],
            "--layer is '3.ffn.dwon'; did you mean 3.ffn.down? Write LAYER.PRODUCT, such as "
            "3.ffn.down, or lm_head; products: attn.q, attn.k, attn.v, attn.scores, attn.values, "
            "attn.o, ffn.gate, ffn.up, ffn.down",
        ),
        (["dint4", "--model", "tiny", "--layers", "9"], "--layers 9: tiny has 5 layers"),
        (["dint4", "--layers", "0"], "--layers 0: give at least 1"),
        (
            ["dint4", "--layers", "1", "--layer", "lm_head"],
            "--layer and --layers exclude each other; give one of them",
        ),
        (["dint4", "--voltage", "0"], "--voltage 0: give a number above 0"),
        (["dint4", "--voltage", "nan"], "--voltage nan: give a number above 0"),
        (["dint4", "--post-layout", "0"], "--post-layout 0: give a number above 0"),
        (["dint4", "--clock-ps", "-1"], "--clock-ps -1: give a number above 0"),
        (["dint4", "--seed", "-1"], "--seed -1: give 0 or more"),
        (
            ["dint4", "--node", "5", "--node-voltage", "0.7"],
            "node is 5 nm; the scaling rule covers 7 to 180 nm, so give a node in that range or "
            "leave the result unscaled",
        ),
        (
            ["dint4", "--node", "28", "--node-voltage", "2"],
            "supply is 2 V at 28 nm; the scaling rule covers 0.5 to 1.08 V there, so give a "
            "supply in that range or leave the result unscaled",
        ),
        (
            ["dint4", "--node", "28"],
            "--node and --node-voltage go together; give both or none",
        ),
        (
            ["dint4", "--from-node", "45"],
            "--from-node 45 is for --liberty; nangate45 has its own",
        ),
        (
            ["dint4", "--technology", "nangate"],
            "unknown technology 'nangate'; did you mean 'nangate45'? (known: nangate45, sky130hd, "
            "asap7; other libraries through --liberty FILE)",
        ),
        (
            ["dint4", "--technology", "asap7", "--liberty", "cells.lib"],
            "--technology and --liberty exclude each other; give one of them",
        ),
        (["dint4", "--out", "x"], "--out x goes with all; for one PE give --csv FILE or --json"),
        (
            ["all", "--post-layout", "0"],
            "--post-layout does not go with all, whose designs are fixed",
        ),
    ],
)
def test_mistakes_are_one_line(invoke: Invoke, arguments: list[str], message: str) -> None:
    assert "\n" not in message
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        invoke(energy, *arguments)


def test_mistakes_in_a_liberty_file(invoke: Invoke, tmp_path: Path) -> None:
    text = technology.TECHNOLOGIES["nangate45"].liberty_texts[0]
    path = tmp_path / "mine.lib"
    path.write_text(text)
    with pytest.raises(InputError, match=r"^--node 28 needs --from-node NM, the node of mine$"):
        invoke(energy, "dint4", "--liberty", str(path), "--node", "28", "--node-voltage", "0.9")
    path.write_text(re.sub(r"^.*voltage_unit.*\n", "", text, count=1, flags=re.M))
    message = f"{path} states no voltage_unit, so its energies have no unit; add the line"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        invoke(energy, "dint4", "--model", "tiny", "--liberty", str(path))
