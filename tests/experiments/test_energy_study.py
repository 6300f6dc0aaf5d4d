"""The energy study on `tiny`, with few designs: its sums, its files, its figures."""

import csv
import io
import json
from pathlib import Path

import pytest

from bitwright.experiments import energy_study, measure_layers
from bitwright.quant import InputError, load_model, resolve_recipe
from bitwright.rtl import resolve_technology, scaling, tile_energy
from bitwright.sim import PES

pytestmark = pytest.mark.slow  # with cold caches

DESIGNS = [one for one in energy_study.DESIGNS if one.label in ("dINT4", "INT8")]
PRODUCTS = [f"2.{name}" for name in ("attn.q", "attn.k", "attn.v", "attn.o")] + [
    f"2.ffn.{name}" for name in ("gate", "up", "down")
]


@pytest.fixture(scope="module")
def study() -> energy_study.EnergyStudy:
    told: list[tuple[int, int, str]] = []
    answer = energy_study.energy_study(
        load_model("tiny"),
        designs=DESIGNS,
        layers=[2],
        checked={"dint4": "w4g64-dint-sym"},
        progress=lambda *at: told.append(at),
    )
    assert told[0] == (0, 5, "dINT4") and told[-1] == (5, 5, "done")
    return answer


def test_designs_run_on_their_pes() -> None:
    for design in energy_study.DESIGNS:
        assert PES[design.pe].step_cycles(resolve_recipe(design.recipe).format_obj) >= 1
    assert len({design.label for design in energy_study.DESIGNS}) == 7


def test_own_tensors_are_block_products_weighted_by_their_macs(
    study: energy_study.EnergyStudy,
) -> None:
    (dint, _) = study.designs
    assert [row.name for row in dint.layers] == PRODUCTS
    # tiny: 128 channels, 64 of keys and values, 384 hidden.
    macs = [128 * 128, 64 * 128, 64 * 128, 128 * 128, *[384 * 128] * 3]
    assert [row.share for row in dint.layers] == pytest.approx([m / sum(macs) for m in macs])
    mean = sum(row.share * row.pj_per_mac for row in dint.layers)
    assert dint.pj_per_mac == pytest.approx(mean)
    assert sum(dint.parts.values()) == pytest.approx(dint.pj_per_mac)
    assert sum(dint.random_parts.values()) == pytest.approx(dint.random_pj_per_mac)
    hardware = tile_energy.TileHardware("dint4", resolve_technology("nangate45"))
    (q,) = measure_layers(load_model("tiny"), dint.recipe, hardware, only=[(2, "attn.q")])
    assert dint.layers[0].pj_per_cycle == q.energy.pj_per_cycle


def test_the_constant_is_the_random_data_s_energy(study: energy_study.EnergyStudy) -> None:
    for design in study.designs:
        for row in design.layers:
            constant = row.pj_per_cycle * (1 + row.deviation)
            assert constant == pytest.approx(design.random_pj_per_cycle)
        low, high, mean = design.deviations
        assert low <= mean <= high
        assert mean == pytest.approx(design.random_pj_per_cycle / design.pj_per_cycle - 1)
        assert design.idle_pj_per_cycle < design.pj_per_cycle
        assert design.pe_random_pj_per_cycle < design.pe_worst_pj_per_cycle
        assert design.random_pj_per_mac < design.worst_pj_per_mac


def test_published_numbers_stand_beside_ours(study: energy_study.EnergyStudy) -> None:
    dint, int8 = study.designs
    alone, random, whole = study.published
    assert alone.ours == int8.pe_pj_per_cycle / dint.pe_pj_per_cycle
    assert random.ours == int8.pe_random_pj_per_cycle / dint.pe_random_pj_per_cycle
    assert whole.ours == int8.pj_per_mac / dint.pj_per_mac
    assert {row.published for row in study.published} == {2.56}
    assert all(row.source.startswith("dINT (EMNLP 2023), Table 2") for row in study.published)


def test_powers_of_the_bit_serial_and_the_fp16_pe_are_scaled(
    study: energy_study.EnergyStudy,
) -> None:
    """Two designs made up from the others: 4 pJ and 2 pJ a cycle."""
    from dataclasses import replace

    made = [
        replace(study.designs[0], pe=pe, label=label, pe_pj_per_cycle=pj)
        for label, pe, pj in (
            ("BitMoD-3", "bitmod", 9.0),
            ("BitMoD-4", "bitmod", 4.0),
            ("FP16", "fp16", 2.0),
        )
    ]
    bitmod, fp16, ratio = energy_study._published(made)
    factor = scaling.energy_ratio(45, 1.1, 28, 0.9)
    assert (bitmod.ours, fp16.ours) == pytest.approx((4 * factor, 2 * factor))
    assert (bitmod.published, fp16.published, ratio.ours) == (0.586, 0.770, pytest.approx(2))
    assert ratio.published == pytest.approx(0.586 / 0.770)
    assert "ours scaled to 28 nm, 0.9 V" in bitmod.quantity
    assert "PE_Area_Power.xlsx" in bitmod.source


def test_the_rule_is_checked_without_leakage(study: energy_study.EnergyStudy) -> None:
    rows = {(row.to_technology, row.stream): row for row in study.scaling}
    own = PRODUCTS[3]
    assert list(rows) == [
        (name, stream) for name in ("sky130hd", "asap7") for stream in (own, "random data")
    ]
    row = rows["asap7", own]
    energies = [
        measure_layers(
            load_model("tiny"),
            "w4g64-dint-sym",
            tile_energy.TileHardware("dint4", resolve_technology(name)),
            only=[(2, "attn.o")],
        )[0].energy.active_pj
        for name in ("nangate45", "asap7")
    ]
    assert row.measured == pytest.approx(energies[1] / energies[0])
    assert row.rule == scaling.energy_ratio(45, 1.1, 7, resolve_technology("asap7").voltage)
    assert row.error == pytest.approx(row.rule / row.measured - 1)


def test_files_hold_the_study(study: energy_study.EnergyStudy, tmp_path: Path) -> None:
    paths = energy_study.write_study(study, tmp_path / "out")
    figures = [
        f"{name}.{kind}" for name in ("energy_per_mac", "constant") for kind in ("png", "svg")
    ]
    assert list(paths) == ["study.json", "study.csv", *figures]
    document = json.loads(paths["study.json"].read_text(encoding="utf-8"))
    assert (document["model"], document["seed"]) == ("tiny", 0)
    assert document["designs"][0]["deviation"]["mean"] == study.designs[0].deviations[2]
    assert document["scaling"][0]["scaled"] == scaling.RULE
    with paths["study.csv"].open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == 2 * PRODUCTS
    for name in figures:
        assert paths[name].stat().st_size > 5000
    once = paths["constant.svg"].read_bytes()
    energy_study.write_study(study, tmp_path / "out")
    assert paths["constant.svg"].read_bytes() == once
    assert all(label in once.decode() for label in ("dINT4", "0.attn.q"[1:]))


def test_the_tables_name_designs_and_sources(study: energy_study.EnergyStudy) -> None:
    from rich.console import Console, Group

    printed = io.StringIO()
    Console(width=120, file=printed).print(Group(*study.tables()))
    text = " ".join(printed.getvalue().split())
    for words in (
        "Energy per multiply-accumulate, nangate45, tensors of tiny", "dINT4", "INT8",
        "PE alone, random data", "2.560", "published: dINT (EMNLP 2023)", "sky130hd",
        "highest of 512 pairs tried", scaling.RULE,
    ):  # fmt: skip
        assert words in text, words


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"^layer 9: tiny has layers 0 to 4$"):
        energy_study.energy_study(load_model("tiny"), designs=DESIGNS, layers=[9], checked={})
