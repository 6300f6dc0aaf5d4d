"""Commands around arrays: comparisons, zero terms, engines."""

import json
import math

import pytest
from typer.testing import CliRunner

from bitwright.commands.rtl import rtl
from bitwright.commands.simulate import simulate
from bitwright.commands.terms import terms
from bitwright.commands.verify import verify
from bitwright.experiments import numbers, source_of
from bitwright.quant import InputError
from bitwright.rtl import scaling
from bitwright.sim import LogicEnergy, PEArea, ProductEnergy


@pytest.fixture
def areas(monkeypatch):
    """PEs of equal area: an array has as many of one kind as of another. And of equal energy."""
    area = PEArea(1000.0, "a test", delay_ps=900.0)
    monkeypatch.setattr("bitwright.experiments.pe_area", lambda pe, technology: area)
    energy = LogicEnergy(
        products={"attn.q": ProductEnergy(2.0, 1.0, 0.5, breakdown={"PE": 2.0})},
        leakage_uw=1.0,
        technology="paper",
        voltage=1.0,
        clock_ps=900.0,
        wires="none",
        netlists={},
        source="a test",
    )
    monkeypatch.setattr("bitwright.commands.simulate.pe_logic", lambda *settings: energy)


def test_iso_divides_by_fp16_and_takes_geometric_means(invoke, areas):
    answer = json.loads(invoke(simulate, "--iso", "area", "--shape", "opt-1.3b, phi-2", "--json"))
    assert answer["iso"] == "area" and answer["reference"] == "fp16"
    speed = {
        (row["design"], row["model"]): row["speedup"]
        for row in answer["results"]
        if row["phase"] == "decode"
    }
    assert speed["fp16", "phi-2"] == 1.0
    (mean,) = (
        row
        for row in answer["geometric_means"]
        if (row["design"], row["phase"]) == ("bitmod3", "decode")
    )
    both = speed["bitmod3", "opt-1.3b"] * speed["bitmod3", "phi-2"]
    assert mean["speedup"] == pytest.approx(math.sqrt(both))
    assert all(row["area_part"] <= 1 for row in answer["arrays"])


def test_iso_with_energy_compares_totals(invoke, areas):
    command = ("--iso", "area", "--shape", "phi-2", "--phase", "decode")
    memory = json.loads(invoke(simulate, *command, "--json"))
    everything = json.loads(invoke(simulate, *command, "--energy", "--json"))
    assert all(row["energy_gain"] is None for row in memory["geometric_means"])
    for row in everything["results"]:
        assert row["energy_uJ"]["total"] > row["energy_uJ"]["logic"] > 0
    assert all(row["energy_gain"] > 0 for row in everything["geometric_means"])
    assert "energy gain (all of it)" in invoke(simulate, *command, "--energy")
    assert "memory energy gain (SRAM and DRAM)" in invoke(simulate, *command)


def test_energy_of_the_logic_joins_the_rest(invoke, areas):
    command = ("--shape", "phi-2", "--phase", "decode")
    answer = json.loads(invoke(simulate, *command, "--json"))
    energy = answer["energy_uJ"]
    parts = [energy[name] for name in ("logic", "sram", "dram", "leakage")]
    assert energy["total"] == pytest.approx(sum(parts)) and min(parts) > 0
    rows = [*answer["layers"], *answer["vector"]]
    assert energy["logic"] == pytest.approx(sum(row["logic_uJ"] for row in rows))
    assert all(source_of(path, answer["provenance"]) for path in numbers(answer))
    assert answer["card"]["technology"] == "paper"
    text = invoke(simulate, *command)
    for words in ("logic uJ", "card: supply: 1 V", "card: post-layout factor: 1 (none)"):
        assert words in text
    without = invoke(simulate, *command, "--no-energy")
    assert "total energy  not modelled" in without and "logic uJ" not in without
    with pytest.raises(InputError) as error:
        invoke(simulate, *command, "--lanes", "8", "--energy")
    assert str(error.value) == (
        "--lanes 8: energy is measured on PEs of 4 lanes; leave --lanes or --energy out"
    )


@pytest.mark.slow
def test_energy_scaled_to_another_node_says_so(invoke, monkeypatch):
    monkeypatch.setattr(
        "bitwright.experiments.pe_area", lambda pe, technology: PEArea(1000.0, "a test")
    )
    command = ("--shape", "phi-2", "--phase", "decode", "--pe", "int8", "--weights", "tiny")
    command += ("--recipe", "w8-int-sym", "--json")
    here = json.loads(invoke(simulate, *command))
    there = json.loads(invoke(simulate, *command, "--node", "28", "--node-voltage", "0.9"))
    ratio = there["energy_uJ"]["logic"] / here["energy_uJ"]["logic"]
    assert ratio == pytest.approx(scaling.energy_ratio(45, 1.1, 28, 0.9))
    assert there["card"]["node"].startswith("scaled: energies x 0.347")
    assert there["card"]["sources"]["logic energy"].startswith("scaled to 28 nm at 0.9 V")
    said = source_of("energy_uJ.logic", there["provenance"]) or ""
    assert said.startswith("scaled to 28 nm at 0.9 V (x 0.347, scaled by Stillmaker and Baas")
    assert there["energy_uJ"]["sram"] == here["energy_uJ"]["sram"]
    with pytest.raises(InputError, match="^supply is 2 V at 28 nm; the scaling rule covers "):
        invoke(simulate, *command, "--node", "28", "--node-voltage", "2")


def test_published_rules_have_a_card_and_sources(invoke):
    command = ("--shape", "phi-2", "--preset", "bitmod-hpca25", "--design", "fp16")
    answer = json.loads(invoke(simulate, *command, "--json"))
    assert answer["card"]["post_layout"] == "1.5 on the PEs, as published"
    assert [p for p in numbers(answer) if not source_of(p, answer["provenance"])] == []


def test_iso_shows_what_each_design_runs(invoke, areas):
    text = invoke(simulate, "--iso", "bandwidth", "--shape", "phi-2", "--phase", "decode")
    assert "equal operand bits into the array a cycle" in text
    assert "dint4: w4g128-dint-sym weights, int8-sym inputs" in text
    assert "prefill" not in text.splitlines()[2]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--iso", "power"), "--iso is 'power'; one of area, throughput, bandwidth"),
        (
            ("--iso", "area", "--shape", "phi-2,,opt-1.3b"),
            "--shape is 'phi-2,,opt-1.3b'; names separated by single commas",
        ),
        (("--iso", "area", "--rows", "3"), "--rows does not go with --iso area, which fixes it"),
        (
            ("--iso", "area", "--weight-port", "3"),
            "--weight-port does not go with --iso area, which fixes it",
        ),
        (
            ("--skip-terms", "never"),
            "--skip-terms is 'never'; one of shared, step, group, tile",
        ),
        (
            ("--skip-terms", "step", "--recipe", "dint4", "--pe", "dint4"),
            "--skip-terms step is for the bitmod PE; dint4 has no terms",
        ),
        (
            ("--skip-terms", "step", "--generate", "4"),
            "--skip-terms step takes a --phase, not --generate",
        ),
        (("--node", "28"), "--node and --node-voltage go together; give both or none"),
        (("--dim", "seq=4"), "--dim seq=4 is for an ONNX file, not for phi-2"),
        (("--dim", "seq"), "--dim is 'seq'; name and size, such as seq=256"),
    ],
)
def test_one_line_for_each_mistake(invoke, areas, arguments, text):
    with pytest.raises(InputError) as error:
        invoke(simulate, "--shape", "phi-2", *arguments)
    assert str(error.value) == text


def test_zero_terms_left_out_make_a_wide_port_faster(invoke, areas):
    common = ("--shape", "smollm2-135m", "--recipe", "bitmod3", "--weights", "tiny", "--json")
    # The names of tiny's layers are those of the shape's products.
    fixed, group, narrow = (
        json.loads(invoke(simulate, *common, *more))
        for more in (
            ("--activation-port", "16"),
            ("--activation-port", "16", "--skip-terms", "group"),
            ("--skip-terms", "group"),
        )
    )
    shares = group["config"]["term_shares"]
    assert set(shares) >= {"attn.q", "ffn.up"} and all(0.5 < part < 1 for part in shares.values())
    busy = {row["name"]: row["busy_cycles"] for row in fixed["layers"]}
    for row in group["layers"]:
        part = row["busy_cycles"] / busy[row["name"]]
        assert part == pytest.approx(shares.get(row["name"], 1.0), abs=0.02)
    assert group["cycles"] < fixed["cycles"]
    # Through the published port an FP16 activation takes both cycles of a step anyway.
    assert narrow["stalls"]["port"] > 0


def test_terms_of_a_model(invoke, tmp_path):
    path = tmp_path / "terms.csv"
    arguments = ("--model", "tiny", "--recipe", "bitmod4", "--csv", str(path))
    text = invoke(terms, *arguments)
    assert "every group" in text and "steps of one column by itself" in text
    assert path.read_text().startswith("layer,")
    answer = json.loads(invoke(terms, *arguments, "--json"))
    assert {row["mode"] for row in answer["totals"]} == {"significance", "lanes"}
    assert all(row["speedup"] >= 1 for row in answer["totals"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("--engine", "--mode", "int8"),
            "--engine goes with --gemms and --seed alone; leave --level, --vectors, --mode, "
            "--realisation and --verilog out",
        ),
        (("--gemms", "5"), "--gemms 5 needs --engine"),
        (("--engine", "--gemms", "1"), "gemms is 1; at least 2, one for each engine"),
    ],
)
def test_verify_engine_options(invoke, arguments, text):
    with pytest.raises(InputError) as error:
        invoke(verify, "dint4", *arguments)
    assert str(error.value) == text


@pytest.mark.simulator
def test_verify_engine_counts(invoke):
    answer = json.loads(invoke(verify, "dint4", "--engine", "--gemms", "6", "--json"))
    assert answer["mismatches"] == 0
    verilog = [row for row in answer["results"] if row["realisation"] == "verilog"]
    assert sum(row["gemms"] for row in verilog) == 6
    assert answer["coverage"]["dint4"]["state compute"] > 0


def test_emit_engine(tmp_path):
    result = CliRunner().invoke(
        rtl, ["dint4", "--out", str(tmp_path / "e"), "--engine", "2x3", "--vectors", "2", "--json"]
    )
    assert result.exit_code == 0, result.output
    files = {path.rpartition("/")[2] for path in json.loads(result.stdout)["files"]}
    assert "engine_dint4_2x3.v" in files
    text = (tmp_path / "e" / "engine_dint4_2x3.v").read_text()
    assert text.count("engine_dint4_2x3_pe pe_r") == 6
    with pytest.raises(InputError) as error:
        CliRunner().invoke(
            rtl, ["dint4", "--out", str(tmp_path), "--engine", "2"], catch_exceptions=False
        )
    assert str(error.value) == "--engine is '2'; rows x columns, such as 4x4"
