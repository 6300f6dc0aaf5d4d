"""The published simulator of BitMoD against its published numbers, and the `simulate` command.

Published numbers, columns in the order of `SIX`: cycles (authors' repo: yc2367/BitMoD
figures/speedup/speedup.ipynb), energies (authors' repo: yc2367/BitMoD figures/energy/energy.ipynb);
for four of the models also in abdelfattah-lab/BitMoD-HPCA-25 bitmod_sim/plot/.
"""

import csv
import json
from dataclasses import replace
from statistics import mean

import pytest

from bitwright.commands.simulate import simulate as command
from bitwright.quant import InputError
from bitwright.sim import (
    PRESETS,
    ModelShape,
    find_preset,
    load_shape,
    port_bits,
    published_generation,
    simulate_published,
)

FOUR = ("opt-1.3b", "phi-2", "llama-2-7b", "llama-2-13b")
SIX = ("opt-1.3b", "phi-2", "yi-6b", "llama-2-7b", "llama-2-13b", "llama-3-8b")
DESIGNS = PRESETS["bitmod-hpca25"].designs
OLDER_ANT = replace(DESIGNS["ant"], pe_pj=0.613)  # energy.ipynb has this PE for ANT

CYCLES = {
    ("fp16", "prefill"): (669255680, 1399816192, 2878668800, 3156574208, 6676111360, 3969089536),
    ("ant", "prefill"): (440975360, 847773696, 1734868992, 1949564928, 4076584960, 2266234880),
    ("olive", "prefill"): (403718144, 779268096, 1575157760, 1768062976, 3648512000, 2008645632),
    ("bitmod-lossless", "prefill"): (
        336236544, 693780480, 1414209536, 1649680384, 3537397760, 1901133824,
    ),
    ("bitmod-lossy", "prefill"): (
        233070592, 515194880, 946937856, 1202921472, 2601461760, 1273233408,
    ),
    ("fp16", "decode"): (82153718, 165841248, 362970848, 413518608, 804330080, 469624976),
    ("ant", "decode"): (25779238, 51998112, 119342816, 129497936, 251907680, 132370576),
    ("olive", "decode"): (20018374, 41655712, 96691936, 97236816, 189155680, 105031744),
    ("bitmod-lossless", "decode"): (
        31220054, 62986912, 137681120, 156919888, 305157360, 178109840,
    ),
    ("bitmod-lossy", "decode"): (15857750, 31959712, 69662944, 79493200, 154552560, 90099088),
}  # fmt: skip
#: On-chip energy in uJ, and total energy in uJ, each rounded to an integer.
ENERGY = {
    ("fp16", "prefill"): (
        (656667, 1273252, 2614171, 2928682, 5742951, 3279511),
        (2549498, 6252349, 13014774, 15511220, 36365138, 18528840),
    ),
    ("ant", "prefill"): (
        (495778, 957145, 1956411, 2193548, 4287493, 2446494),
        (1396802, 3216417, 5800923, 7584598, 17242424, 8086529),
    ),
    ("olive", "prefill"): (
        (501789, 969019, 1960581, 2192068, 4285634, 2440769),
        (1308354, 2969260, 5182082, 6898215, 15557969, 7165633),
    ),
    ("bitmod-lossless", "prefill"): (
        (317887, 615118, 1255562, 1410390, 2763255, 1572255),
        (1272043, 3020095, 5452484, 7186699, 16664646, 7727074),
    ),
    ("bitmod-lossy", "prefill"): (
        (221382, 428524, 871622, 981870, 1924566, 1091548),
        (986623, 2315439, 3820005, 5388371, 12460765, 5416024),
    ),
    ("fp16", "decode"): (
        (25745, 51929, 113537, 129318, 251588, 146812),
        (419862, 847599, 1854106, 2113617, 4110960, 2399478),
    ),
    ("ant", "decode"): (
        (23815, 48050, 105332, 119718, 232973, 135318),
        (147555, 297641, 677116, 741308, 1441701, 769793),
    ),
    ("olive", "decode"): (
        (23250, 46840, 104204, 115455, 225859, 131179),
        (119339, 246787, 567264, 582192, 1133377, 624942),
    ),
    ("bitmod-lossless", "decode"): (
        (15691, 31662, 69245, 78882, 153502, 89561),
        (165547, 334000, 729367, 832097, 1618257, 943899),
    ),
    ("bitmod-lossy", "decode"): (
        (10470, 21129, 46198, 52631, 102418, 59753),
        (86588, 174535, 380148, 434198, 844271, 491953),
    ),
}
#: The ANT row of Fig. 8, on chip (authors' repo: abdelfattah-lab/BitMoD-HPCA-25
#: bitmod_sim/plot/energy_plot.ipynb), columns as `FOUR`.
ANT_ON_CHIP = {
    "prefill": (459880, 888236, 2035862, 3981122),
    "decode": (22139, 44668, 111292, 216575),
}
PHASES = list(CYCLES)


def on_chip(result):
    return result.logic_uj + result.sram_uj


def generation(values, tokens=20):
    """The figure for generation: 20 decode steps plus the prefill."""
    return {
        (design, model): tokens * value + values[design, "prefill", model]
        for (design, phase, model), value in values.items()
        if phase == "decode"
    }


@pytest.fixture(scope="module")
def all_results():
    return {
        (design, phase, model): simulate_published(model, design, phase)
        for design, phase in PHASES
        for model in SIX
    }


# ------------------------------------------------------------------ by hand


def test_the_rules_on_an_example_worked_by_hand():
    # A model of one layer, 2 heads of width 8 (hidden 16), FFN 24 without gate, vocabulary 40,
    # BitMoD lossless (6.0625 bits, 3 cycles a step, 4 lanes), prefill of 40 tokens on 32 x 32 PEs.
    toy = ModelShape("toy", 1, 16, 2, 2, 8, 24, 40, gated=False)
    result = simulate_published(toy, "bitmod-lossless", "prefill", tokens=40)
    found = {
        layer.name: (
            *(layer.compute_cycles, layer.dram_cycles),
            *(layer.weight_bytes + layer.cache_bytes, layer.input_bytes, layer.output_bytes),
        )
        for layer in result.layers
    }
    linear = (
        4 * 1 * 2 * 3,  # ceil(16 / 4) * ceil(16 / 32) * ceil(40 / 32) steps of 3 cycles
        (208 + 1280 + 1280) // 32,
        13 * 16,  # ceil(16 * 6.0625 / 8) = 13 bytes per row
        40 * 32,
        40 * 32,
    )
    assert {found[f"attn.{name}"] for name in "qkvo"} == {linear}
    # FFN up: 24 outputs; down: 24 inputs, ceil(24 * 6.0625 / 8) = 19 bytes per row.
    assert found["ffn.up"] == (24, (312 + 1280 + 1920) // 32, 13 * 24, 40 * 32, 40 * 48)
    assert found["ffn.down"] == (6 * 2 * 3, (304 + 1920 + 1280) // 32, 19 * 16, 40 * 48, 40 * 32)
    # Scores as published: n = 40, k = 16, m = 2 * 40; 4 * 2 * 3 steps; weights 16 * 2 * 40 bytes.
    assert found["attn.scores"] == (72, (1280 + 2560 + 6400) // 32, 1280, 80 * 32, 80 * 80)
    # Values as published: n = 2 * 40, k = 40, m = 40, inputs of 32 bytes per row.
    assert found["attn.values"] == (10 * 3 * 2 * 3, (6400 + 1280 + 6400) // 32, 6400, 1280, 6400)
    # Output layer: n = 40, so 2 rows of tiles: 4 * 2 * 2 * 3.
    assert found["lm_head"] == (48, (520 + 1280 + 3200) // 32, 13 * 40, 1280, 40 * 80)
    assert result.cycles == 4 * 86 + 109 + 109 + 320 + 440 + 156
    scores = next(layer for layer in result.layers if layer.name == "attn.scores")
    assert (scores.weight_bytes, scores.cache_bytes, scores.macs) == (0, 1280, 40 * 16 * 80)
    assert scores.utilisation == scores.macs / (320 * 32 * 32 * 4)


# ------------------------------------------------------------------ published numbers


def test_the_published_numbers_are_all_sixty():
    assert set(CYCLES) == {(design, phase) for design in DESIGNS for phase in ("prefill", "decode")}
    assert sum(len(values) for values in CYCLES.values()) == 60 == 6 * len(ENERGY)


@pytest.mark.parametrize("design", DESIGNS)
def test_generation_is_twenty_decode_steps_and_the_prefill(all_results, design):
    for position, model in enumerate(SIX):
        cost = published_generation(load_shape(model), DESIGNS[design])
        prefill, token = (CYCLES[design, phase][position] for phase in ("prefill", "decode"))
        assert cost.cycles == 20 * token + prefill
        one, other = (all_results[design, phase, model] for phase in ("prefill", "decode"))
        assert cost.total_uj == pytest.approx(20 * other.total_uj + one.total_uj, rel=1e-12)


@pytest.mark.parametrize(("design", "phase"), PHASES)
def test_published_cycles_come_out_exactly(all_results, design, phase):
    assert tuple(all_results[design, phase, model].cycles for model in SIX) == CYCLES[design, phase]


@pytest.mark.parametrize(("design", "phase"), PHASES)
def test_published_dram_energy_comes_out_to_its_last_digit(all_results, design, phase):
    # Published: total and on-chip energy, each rounded to 1 uJ; their difference is off by < 1 uJ.
    for model, chip, total in zip(SIX, *ENERGY[design, phase], strict=True):
        assert abs(all_results[design, phase, model].dram_uj - (total - chip)) <= 1.0


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("design", ["ant", "bitmod-lossless", "bitmod-lossy"])
def test_published_on_chip_energy_comes_out_without_a_fit(design, phase):
    # All SRAM constants are points of the CACTI table, so the rounding to 1 uJ is the only gap.
    for model, chip in zip(SIX, ENERGY[design, phase][0], strict=True):
        used = OLDER_ANT if design == "ant" else design
        result = simulate_published(model, used, phase)
        assert not any("fitted" in source for source in result.sources)
        assert abs(on_chip(result) - chip) <= 0.5 + 1e-6  # a half can be printed either way


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_published_on_chip_energy_of_ant_in_the_paper(all_results, phase):
    for model, chip in zip(FOUR, ANT_ON_CHIP[phase], strict=True):
        assert round(on_chip(all_results["ant", phase, model])) == chip


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("design", ["fp16", "olive"])
def test_published_on_chip_energy_comes_out_with_fitted_banks(all_results, design, phase):
    # Printed to 1 uJ; two fitted numbers per bank against five or more printed ones leave a
    # relative residual, measured 3e-6 in decode of FP16 and 6e-7 elsewhere.
    for model, chip in zip(SIX, ENERGY[design, phase][0], strict=True):
        if (design, phase, model) == ("olive", "decode", "yi-6b"):
            continue
        result = all_results[design, phase, model]
        assert any("fitted" in source for source in result.sources)
        assert abs(on_chip(result) - chip) <= 0.5 + 4e-6 * chip


def test_published_on_chip_energy_of_olive_on_yi_needs_interpolation(all_results):
    # 4.25 bits make this the only run with a port of 72 bits, between the 64 and 128 of the table.
    result = all_results["olive", "decode", "yi-6b"]
    assert any("72 bits wide" in source and "interpolation" in source for source in result.sources)
    assert on_chip(result) == pytest.approx(104204, rel=0.006)  # measured -0.51 %


def test_speed_up_over_fp16(all_results):
    cycles = {key: result.cycles for key, result in all_results.items()}
    generated = generation(cycles)
    expected = {  # prefill, then generation of 20 tokens, each over the four models
        "bitmod-lossless": ((1.99, 2.02, 1.91, 1.89), (2.41, 2.41, 2.39, 2.36)),
        "bitmod-lossy": ((2.87, 2.72, 2.62, 2.57), (4.20, 4.09, 4.09, 4.00)),
        "ant": ((1.52, 1.65, 1.62, 1.64), (2.42, 2.50, 2.52, 2.50)),
        "olive": ((1.66, 1.80, 1.79, 1.83), (2.88, 2.93, 3.08, 3.06)),
    }
    for design, (prefill, generate) in expected.items():
        for position, model in enumerate(FOUR):
            ratio = cycles["fp16", "prefill", model] / cycles[design, "prefill", model]
            assert round(ratio, 2) == prefill[position]
            ratio = generated["fp16", model] / generated[design, model]
            assert round(ratio, 2) == generate[position]


def test_average_speed_ups_of_the_paper(all_results):
    cycles = {key: result.cycles for key, result in all_results.items()}
    generated = generation(cycles)
    averages = []
    for slow, fast in (
        ("fp16", "bitmod-lossless"),
        ("ant", "bitmod-lossy"),
        ("olive", "bitmod-lossy"),
    ):
        ratios = [cycles[slow, "prefill", m] / cycles[fast, "prefill", m] for m in SIX]
        averages.append(round(mean(ratios), 2))
        averages.append(round(mean(generated[slow, m] / generated[fast, m] for m in SIX), 2))
    # (paper) lossless 1.99x and 2.41x, lossy against ANT 1.72x and 1.66x, OliVe 1.56x and 1.39x
    assert averages == [1.99, 2.41, 1.72, 1.66, 1.56, 1.39]


def test_average_energy_gains_of_the_paper(all_results):
    energy = {key: result.total_uj for key, result in all_results.items()}
    generated = generation(energy)

    def gains(design):
        """Over FP16, prefill and generation: one over the mean of the energy ratios (notebook)."""
        ratios = [energy[design, "prefill", m] / energy["fp16", "prefill", m] for m in SIX]
        return (
            1 / mean(ratios),
            1 / mean(generated[design, m] / generated["fp16", m] for m in SIX),
        )

    def lossy_gain(other):
        return mean(
            ours / theirs for ours, theirs in zip(gains("bitmod-lossy"), gains(other), strict=True)
        )

    # (paper) 2.31x over FP16, 1.48x over ANT; 1.31x over OliVe, where its data give 1.32 (derived)
    assert round(mean(gains("bitmod-lossless")), 2) == 2.31
    assert round(lossy_gain("ant"), 2) == 1.48
    assert round(lossy_gain("olive"), 2) == 1.32


@pytest.mark.parametrize(
    ("design", "bits", "phi_2", "llama_2_7b"),
    [
        ("bitmod-lossy", 3.0625, (31959712, 21129), (79493200, 52631)),
        ("bitmod-lossy", 4.0625, (42302112, 21922), (105302096, 54609)),
        ("bitmod-lossy", 5.0625, (52644512, 31259), (131110992, 77874)),
        ("bitmod-lossy", 6.0625, (62986912, 31662), (156919888, 78882)),
        ("bitmod-lossy", 8, (83025312, 41374), (206924624, 103091)),
        ("ant-older", 3, (41560192, 46556), (103530624, 115995)),
    ],
    ids=lambda value: str(value) if isinstance(value, int | float) else "",
)
def test_energy_delay_inputs_by_weight_bits(design, bits, phi_2, llama_2_7b):
    # (authors' repo: yc2367/BitMoD figures/ppl_pareto/ppl_pareto.xlsx), per token: cycles, on-chip
    # uJ. At 8 bits the group scale is left out; the ANT row has the older PE energy of 0.613 pJ.
    if design == "ant-older":
        design = OLDER_ANT
    for model, published in (("phi-2", phi_2), ("llama-2-7b", llama_2_7b)):
        result = simulate_published(model, design, "decode", weight_bits=bits)
        assert (result.cycles, round(on_chip(result))) == published


def test_port_widths_of_the_study():
    assert port_bits(DESIGNS["fp16"], "prefill", 16) == (64, 48)
    assert port_bits(DESIGNS["fp16"], "decode", 16) == (128, 24)
    assert port_bits(DESIGNS["olive"], "decode", 3.875) == (36, 32)
    assert port_bits(DESIGNS["bitmod-lossy"], "decode", 3.0625) == (64, 64)


def test_published_results_name_every_part(all_results):
    document = json.loads(json.dumps(all_results["ant", "decode", "phi-2"].to_dict()))
    assert document["energy_uJ"]["leakage"] is None
    assert document["energy_uJ"]["total"] == pytest.approx(294259, abs=1)
    assert document["area_breakdown_mm2"]["array"] == pytest.approx(1024 * 1318.6e-6)
    assert document["stall_cycles"] == document["cycles"] - document["compute_cycles"]
    assert all_results["fp16", "decode", "phi-2"].area.sram is None  # a fitted bank has no area


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("phi-2", "bitmod"), "unknown design 'bitmod'; did you mean bitmod-lossy"),
        (("phi", "fp16"), "unknown shape .*'phi'; did you mean phi-2"),
        (("phi-2", "fp16", "generate"), "phase is 'generate'"),
        (("mixtral-8x7b", "fp16"), "mixtral-8x7b is a mixture of experts"),
        (("qwen3-8b", "ant", "decode"), "design ant has no decode precision for qwen3-8b"),
    ],
)
def test_wrong_published_runs_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        simulate_published(*arguments)


def test_wrong_sizes_and_presets_are_refused():
    with pytest.raises(InputError, match="context is 0"):
        simulate_published("phi-2", "fp16", "decode", context=0)
    with pytest.raises(InputError, match="weight bits are 17"):
        simulate_published("phi-2", "fp16", "decode", weight_bits=17)
    with pytest.raises(InputError, match="unknown preset 'bitmod'; did you mean bitmod-"):
        find_preset("bitmod")
    with pytest.raises(InputError, match="preset bitwright is not a published simulator; one of"):
        simulate_published("phi-2", "fp16", preset="bitwright")


# ------------------------------------------------------------------ the command


@pytest.fixture
def run(invoke, monkeypatch):
    """Call `bitwright simulate`; no synthesis, which is tested with the RTL."""
    monkeypatch.setattr("bitwright.experiments.pe_area", lambda pe, technology: None)
    return lambda *arguments: invoke(command, *arguments)


def test_the_command_gives_the_published_cycles(run):
    answer = json.loads(
        run(
            *("--shape", "llama-2-7b", "--preset", "bitmod-hpca25", "--design", "bitmod-lossy"),
            *("--phase", "decode", "--json"),
        )
    )
    assert answer["cycles"] == 79493200 and answer["preset"] == "bitmod-hpca25"


def test_the_command_takes_the_rules_of_the_released_simulator(run):
    answer = json.loads(
        run(
            *("--shape", "llama-2-7b", "--preset", "bitmod-released", "--design", "bitmod-lossy"),
            *("--phase", "decode", "--json"),
        )
    )
    assert answer["cycles"] == 81344464 and answer["preset"] == "bitmod-released"


def test_the_command_has_the_agreed_keys(run):
    answer = json.loads(run("--shape", "smollm2-135m", "--json"))
    for key in (
        *("cycles", "compute_cycles", "stall_cycles", "latency_s", "dram_bytes", "energy_uJ"),
        *("area_mm2", "tokens_per_s", "layers"),
    ):
        assert key in answer
    assert {"logic", "sram", "dram", "leakage", "total"} <= set(answer["energy_uJ"])
    assert answer["area_mm2"] is None
    assert any("no synthesis" in note for note in answer["notes"])


def test_the_command_prints_a_table_with_sources(run):
    text = run("--shape", "smollm2-135m", "--rows", "16", "--cols", "16", "--dram", "hbm2")
    assert "16 x 16 x 4 lanes" in text and "ffn.down" in text and "not modelled" in text
    assert "card: DRAM: dram hbm2: 3.9 pJ/bit" in text and "CACTI 7" in text


def test_the_command_writes_the_products_to_csv(run, tmp_path):
    path, rows = tmp_path / "layers.csv", tmp_path / "rows.csv"
    rows.write_text("m,n,k,name,count\n4,64,128,mine,3\n", encoding="utf-8")
    answer = json.loads(run("--shape", str(rows), "--csv", str(path), "--json"))
    with path.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["name"], row["m"], row["count"]) == ("mine", "4", "3")
    assert int(row["cycles"]) == answer["cycles"] == answer["layers"][0]["cycles"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--preset bitmod-hpca25", "needs --design: fp16, ant, olive"),
        ("--design ant", "--design ant needs --preset bitmod-hpca25"),
        ("--preset bitmod-hpca25 --design ant --rows 8", "--rows does not go with --preset"),
        ("--preset bitmod-hpca25 --design ant --weight-buffer 8", "--weight-buffer does not go"),
        ("--preset bitmod-hpca25 --design ant --recipe int4", "--recipe does not go with"),
        ("--preset bitmod-hpca25 --design x", "unknown design 'x'"),
        ("--preset other", "unknown preset 'other'"),
        ("--shape x.csv --preset bitmod-hpca25 --design ant", "takes a model shape"),
        ("--rows 0", "rows is 0; at least 1"),
        ("--csv /nonexistent/a.csv", "cannot write /nonexistent/a.csv"),
    ],
)
def test_the_command_refuses_what_does_not_fit(run, arguments, message):
    with pytest.raises(InputError, match=message):
        run("--shape", "phi-2", *arguments.split())
