"""A point's results are those of the simulator, its bits those of the recipe, its key all of it."""

import itertools
from dataclasses import replace
from importlib import import_module

import pytest

from bitwright.experiments import sweep
from bitwright.quant import load_model, quantize, resolve_recipe
from bitwright.sim import (
    SHAPES,
    PEArea,
    default_accelerator,
    simulate_generation,
    simulate_model,
)

points = import_module("bitwright.experiments.sweep.point")

FIXED = {"shape": "smollm2-135m"}


def planned_of(fixed, **parts):
    """A sweep of one point."""
    name = next(iter(fixed))
    axes = {name: [fixed[name]]}
    rest = {key: value for key, value in fixed.items() if key != name}
    return sweep.plan_sweep(sweep.parse_sweep({"version": 1, "axes": axes, "fixed": rest, **parts}))


def row_of(fixed, **parts):
    planned = planned_of(fixed, **parts).prepared()
    (row,) = sweep.run_chunk(
        planned.plan, list(zip(planned.keys, planned.settings, strict=True)), 9
    )
    return dict(zip(sweep.COLUMNS, row, strict=True))


@pytest.fixture
def known_area(monkeypatch):
    area = PEArea(1500.0, "by hand", encoder_um2=100.0, leakage_uw=2.0, encoder_leakage_uw=1.0)
    monkeypatch.setattr(points, "_area", lambda pe, technology: area)
    return area


CASES = [
    {},
    {"recipe": "fp16", "batch": 3, "prompt": 40, "context": 77},
    {"recipe": "bitmod3", "rows": 16, "cols": 24, "dram": "hbm2", "clock_ps": 1500.5},
    {"recipe": "w4a8-dint", "pe": "dint4", "kv": "dint4-sym", "weight_buffer_kib": 128},
    {"shape": "mixtral-8x7b", "banks": 4, "sram_ports": "1rw"},
]


@pytest.mark.parametrize("case", CASES, ids=[str(i) for i in range(len(CASES))])
def test_prefill_and_decode_are_the_simulators(case, known_area):
    row = row_of({**FIXED, **case})
    assert row["status"] == "ok", row["error"]
    recipe = resolve_recipe(case.get("recipe", "bitmod4"))
    pe = case.get("pe") or ("fp16" if recipe.format is None else "bitmod")
    changes = {k: v for k, v in case.items() if k in points._ARRAY}
    for phase in ("prefill", "decode"):
        result = simulate_model(
            case.get("shape", "smollm2-135m"),
            recipe,
            phase,
            tokens=case.get("prompt", 256),
            context=case.get("context", 256),
            batch=case.get("batch", 1),
            kv_format=case.get("kv"),
            accelerator=replace(default_accelerator(pe), **changes),
            pe_area=known_area,
        ).to_dict()
        for name in (
            *("cycles", "busy_cycles", "stall_cycles", "vector_cycles", "dram_bytes"),
            *("latency_s", "tokens_per_s"),
        ):
            assert row[f"{phase}_{name}"] == result[name], name
        for part in ("logic", "sram", "dram", "leakage"):
            assert row[f"{phase}_{part}_uJ"] == result["energy_uJ"][part]
        for cause, cycles in result["stalls"].items():
            assert row[f"{phase}_stall_{cause}_cycles"] == cycles
        assert row[f"{phase}_energy_uJ"] is None
        assert row["area_mm2"] == result["area_mm2"]
    memory = [
        row[f"{phase}_{part}_uJ"] for phase in ("prefill", "decode") for part in ("sram", "dram")
    ]
    assert row["memory_energy_uJ"] == pytest.approx(sum(memory), rel=1e-15)
    assert row["energy_uJ"] is None and row["latency_s"] is None and row["perplexity"] is None


@pytest.mark.parametrize("generate", [1, 2, 9])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_generation_is_the_simulators(generate, batch, known_area):
    row = row_of(
        {**FIXED, "prompt": 30, "generate": generate, "batch": batch, "kv": "int8-sym", "rows": 16}
    )
    result = simulate_generation(
        "smollm2-135m",
        prompt=30,
        generate=generate,
        batch=batch,
        kv_format="int8-sym",
        accelerator=replace(default_accelerator("bitmod"), rows=16),
        pe_area=known_area,
    )
    assert row["decode_cycles"] == sum(result.step_cycles)
    assert row["prefill_cycles"] + row["decode_cycles"] == result.cycles
    assert row["decode_dram_bytes"] == sum(result.step_dram_bytes)
    for part in ("sram", "dram", "leakage"):
        assert row[f"decode_{part}_uJ"] == pytest.approx(result.decode_energy_uj[part], rel=1e-12)
    for name in ("ttft_s", "tpot_s", "latency_s", "tokens_per_s", "decode_tokens_per_s"):
        wanted = getattr(result, name)
        assert row[name] == (wanted if wanted is None else pytest.approx(wanted, rel=1e-12)), name
    parts = [row[f"decode_{kind}_cycles"] for kind in ("busy", "stall", "vector")]
    array = [
        row[f"decode_stall_{c}_cycles"] for c in ("fill", "port", "conflict", "scale", "drain")
    ]
    assert sum(parts) + sum(array) == row["decode_cycles"]
    assert row["context"] is None


def test_energies_are_the_simulators_and_add_up():
    """The logic's energy of the bundled model, measured on one layer (cached)."""
    from bitwright.experiments import logic_energy
    from bitwright.rtl import resolve_technology

    fixed = {"model": "tiny", "recipe": "int8-sym", "pe": "int8", "prompt": 20, "generate": 4}
    row = row_of(fixed, measure={"energy": True, "energy_layers": 1})
    assert row["status"] == "ok", row["error"]
    logic = logic_energy("tiny", "int8-sym", "int8", resolve_technology("nangate45"), layers=1)
    from bitwright.experiments import shape_of

    result = simulate_generation(
        shape_of(load_model("tiny")),
        "int8-sym",
        prompt=20,
        generate=4,
        pe="int8",
        pe_area=points._area("int8", "nangate45"),
        logic=logic,
    )
    assert row["energy_uJ"] == pytest.approx(result.energy_uj["total"], rel=1e-12)
    assert row["energy_per_token_uJ"] == pytest.approx(result.energy_per_token_uj, rel=1e-12)
    assert row["prefill_logic_uJ"] == result.prefill.logic_uj
    assert row["decode_logic_uJ"] == pytest.approx(result.decode_energy_uj["logic"], rel=1e-12)
    doubled = row_of({**fixed, "post_layout": 2}, measure={"energy": True, "energy_layers": 1})
    assert doubled["prefill_logic_uJ"] == pytest.approx(2 * row["prefill_logic_uJ"])
    lanes = row_of({**fixed, "lanes": 2}, measure={"energy": True, "energy_layers": 1})
    assert lanes["status"] == "failed" and lanes["error"].startswith(
        "lanes is 2: energy is measured"
    )


def test_bits_are_those_of_quantised_tensors():
    """Of the bundled model's own linear layers, and of shapes with experts or two matrices."""
    import numpy as np

    from bitwright.experiments import shape_of
    from bitwright.quant import apply_recipe

    tiny = load_model("tiny")
    for name in ("w4g64-bitmod", "w3g64-int-asym", "w4-int-sym", "mxfp4", "fp16"):
        recipe = resolve_recipe(name)
        counted = points._stored_bits_per_weight(shape_of(tiny), recipe)
        assert counted == pytest.approx(apply_recipe(tiny, recipe).bits_per_weight, rel=1e-12)
    # opt has two matrices in its feed-forward net; per channel, 32 bits a row or 16.
    toy = replace(SHAPES["opt-1.3b"], hidden=64, heads=4, kv_heads=4, head_dim=16, ffn=96, layers=2)
    recipe = resolve_recipe("w4g32-int-sym")
    sizes = [(64, 64)] * 4 + [(96, 64), (64, 96)]
    tensors = [quantize(np.ones(size, np.float32), "int4-sym", 32) for size in sizes]
    wanted = sum(t.bits_per_weight * t.n * t.k for t in tensors) / sum(t.n * t.k for t in tensors)
    assert points._stored_bits_per_weight(toy, recipe) == pytest.approx(wanted)
    assert 2 * sum(n * k for n, k in sizes) == toy.block_parameters


def test_the_shape_of_matrices_is_all_of_the_blocks(monkeypatch):
    """Bits of one bit a weight count the weights: they are the shape's parameters."""
    counted = []

    class Ones:
        def __hash__(self):
            return 1

        def stored_bits(self, n, k):
            counted.append(n * k)
            return n * k

    for shape in SHAPES.values():
        counted.clear()
        assert points._stored_bits_per_weight.__wrapped__(shape, Ones()) == 1
        assert sum(counted) * shape.layers == shape.block_parameters, shape.name


def test_accuracy_is_measured_once_for_points_that_share_model_and_recipe(monkeypatch):
    calls = []
    import bitwright.experiments as experiments

    real = experiments.measured_accuracy

    def counted(model, recipe, *args, **kwargs):
        calls.append(recipe.name)
        return real(model, recipe, *args, **kwargs)

    monkeypatch.setattr(experiments, "measured_accuracy", counted)
    points._accuracy.cache_clear()
    spec = {
        "version": 1,
        "fixed": {"model": "tiny"},
        "axes": {"recipe": ["w4g64-bitmod", "fp16"], "rows": [8, 16, 32]},
        "measure": {"accuracy": True, "tokens": 512, "window": 256, "area": False},
    }
    planned = sweep.plan_sweep(sweep.parse_sweep(spec))
    rows = sweep.run_chunk(planned.plan, list(zip(planned.keys, planned.settings, strict=True)), 99)
    found = [dict(zip(sweep.COLUMNS, row, strict=True)) for row in rows]
    assert calls == ["w4g64-bitmod", "fp16"]
    assert [row["error"] for row in found] == [None] * 6
    four, sixteen = ({row["perplexity"] for row in found[i : i + 3]} for i in (0, 3))
    assert len(four) == len(sixteen) == 1 and min(sixteen) < min(four)
    assert {row["area_mm2"] for row in found} == {None}


def test_points_that_cannot_run_fail_in_one_line_and_others_go_on():
    planned = sweep.plan_sweep(
        sweep.parse_sweep(
            {
                "version": 1,
                "fixed": FIXED,
                "axes": {
                    "recipe": ["fp16", "bitmod4", "w4g128-olive"],
                    "algorithm": ["", "awq", "awqq"],
                    "weight_buffer_kib": [512, 1],
                },
            }
        )
    )
    rows = sweep.run_chunk(planned.plan, list(zip(planned.keys, planned.settings, strict=True)), 99)
    found = [dict(zip(sweep.COLUMNS, row, strict=True)) for row in rows]
    assert len(found) == 18
    ok = [row for row in found if row["status"] == "ok"]
    assert {row["recipe"] for row in ok} == {"fp16", "w4g128-bitmod", "w4g128-bitmod+awq"}
    told = {row["recipe"]: row["error"] for row in found if row["weight_buffer_kib"] == 512}
    assert told["fp16+awq"] == (
        "recipe 'fp16+awq': fp16 leaves weights as they are; awq has nothing to do"
    )
    assert told["bitmod4+awqq"].startswith("recipe 'bitmod4+awqq': unknown algorithm 'awqq'")
    assert "olive" in told["w4g128-olive"]
    small = [row for row in found if row["weight_buffer_kib"] == 1]
    assert {row["status"] for row in small} == {"failed"}
    assert all("\n" not in row["error"] for row in found if row["error"])
    assert all(row["decode_cycles"] is None for row in found if row["status"] == "failed")


def test_a_fault_of_ours_is_recorded_too(monkeypatch):
    def breaks(*_):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(points, "compute", breaks)
    row = row_of(FIXED)
    assert (row["status"], row["error"]) == ("failed", "RuntimeError: first second")


def test_a_chunk_stops_when_its_time_is_over():
    planned = sweep.plan_sweep(
        sweep.parse_sweep({"version": 1, "fixed": FIXED, "axes": {"rows": [8, 16, 32]}})
    )
    chunk = list(zip(planned.keys, planned.settings, strict=True))
    assert [len(sweep.run_chunk(planned.plan, chunk, seconds)) for seconds in (0, 99)] == [1, 3]


# ------------------------------------------------------------------ keys

KEYED = [
    {"shape": "opt-1.3b"}, {"recipe": "bitmod3"}, {"algorithm": "awq"}, {"pe": "int8"},
    {"rows": 33}, {"cols": 33}, {"lanes": 8}, {"weight_buffer_kib": 256},
    {"activation_buffer_kib": 256}, {"banks": 4}, {"sram_ports": "1rw"}, {"weight_lane_bits": 8},
    {"activation_lane_bits": 4}, {"dram": "hbm2"}, {"clock_ps": 999}, {"technology": "asap7"},
    {"batch": 2}, {"prompt": 255}, {"generate": 5}, {"context": 255}, {"kv": "int8-sym"},
    {"model": "tiny"},
]  # fmt: skip


def test_every_setting_and_measurement_changes_the_key():
    keys = {planned_of({**FIXED, **case}).keys[0] for case in KEYED}
    keys |= {planned_of(FIXED).keys[0], planned_of(FIXED, measure={"area": False}).keys[0]}
    fixed = {"model": "tiny"}
    measures = [
        {"accuracy": True}, {"accuracy": True, "tokens": 1024}, {"accuracy": True, "window": 64},
        {"energy": True}, {"energy": True, "energy_layers": 1}, {"energy": True, "weights": "tiny"},
        {"energy": True, "accuracy": True},
    ]  # fmt: skip
    keys |= {planned_of(fixed, measure=measure).keys[0] for measure in measures}
    for extra in ({"voltage": 1.0}, {"post_layout": 1.5}):
        keys.add(planned_of({**fixed, **extra}, measure={"energy": True}).keys[0])
    assert len(keys) == len(KEYED) + 2 + len(measures) + 2
    tried = set().union(*KEYED, {"voltage", "post_layout"})
    assert tried == set(sweep.SETTINGS)


def test_what_says_the_same_has_the_same_key():
    key = planned_of({"shape": "smollm2-135m", "recipe": "bitmod4"}).keys[0]
    same = [
        {"recipe": "w4g128-bitmod"}, {"pe": "bitmod"}, {"rows": 32}, {"clock_ps": 1000},
        {"clock_ps": 1000.0}, {"algorithm": ""}, {"algorithm": None}, {"kv": "fp16"}, {"batch": 1},
        {"generate": None}, {"rows": None}, {"technology": "nangate45"},
    ]  # fmt: skip
    for case in same:
        assert planned_of({**FIXED, **case}).keys[0] == key, case
    # What is not measured does not count.
    assert planned_of(FIXED, measure={"tokens": 64, "window": 32}).keys[0] == key
    assert planned_of(FIXED, name="other", seed=5, objectives=["area_mm2"]).keys[0] == key
    steps = itertools.product([{"generate": 4}], [{}, {"context": 99}])
    assert len({planned_of({**FIXED, **a, **b}).keys[0] for a, b in steps}) == 1
    written = [{"recipe": "bitmod4+awq"}, {"recipe": "bitmod4", "algorithm": "awq"}]
    assert len({planned_of({**FIXED, **case}).keys[0] for case in written}) == 1


def test_other_code_is_another_point_and_no_worker_runs_it(monkeypatch):
    planned = planned_of(FIXED)
    monkeypatch.setattr(points, "code_hash", lambda: "0123456789abcdef")
    other = planned_of(FIXED)
    assert other.keys != planned.keys and other.settings == planned.settings
    with pytest.raises(
        ValueError, match="the worker runs other code .0123456789abcdef. than the sw"
    ):
        sweep.run_chunk(planned.plan, [(planned.keys[0], planned.settings[0])], 9)


def test_a_shape_or_model_in_a_file_is_known_by_its_content(tmp_path):
    config = tmp_path / "config.json"
    text = (
        '{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": '
        '4, "intermediate_size": %d, "vocab_size": 100, "rms_norm_eps": 1e-5}'
    )
    keys = []
    for ffn in (96, 96, 128):
        config.write_text(text % ffn)
        points._shape_identity.cache_clear()
        keys.append(planned_of({"shape": str(config)}).keys[0])
    assert keys[0] == keys[1] != keys[2]
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    before = points._model_identity(str(model))
    points._model_identity.cache_clear()
    model.write_bytes(b"GGUF2")
    assert points._model_identity(str(model)) != before
