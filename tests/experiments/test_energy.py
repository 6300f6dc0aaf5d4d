"""Energy on a model's own tensors: caches, seeds, precision, and what scaling is called."""

import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright.experiments import (
    chosen_layers,
    join_layers,
    logic_energy,
    measure_layers,
    quantise_for,
    scaled_to,
)
from bitwright.quant import InputError, LanguageModel, QuantizedTensor, load_model, resolve_recipe
from bitwright.rtl import resolve_technology, scaling, tile_energy
from bitwright.sim import LogicEnergy

energies = import_module("bitwright.experiments.energy")
ONLY = [(0, "attn.q"), (2, "ffn.down"), (None, "lm_head")]


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return load_model("tiny")


@pytest.fixture(scope="module")
def hardware() -> tile_energy.TileHardware:
    return tile_energy.TileHardware("dint4", resolve_technology("nangate45"))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for energies alone: netlists stay."""

    def folder(name: str) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        return tmp_path / name

    for module in (tile_energy, energies):
        monkeypatch.setattr(module, "cache_folder", folder)
    return tmp_path / "energy"


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("measured again")


def test_a_second_run_simulates_nothing(
    tiny: LanguageModel,
    hardware: tile_energy.TileHardware,
    empty: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[int, int, str]] = []
    first = measure_layers(tiny, "dint4", hardware, only=ONLY, progress=lambda *at: told.append(at))
    assert len(list(empty.iterdir())) == 3
    assert [one.name for one in first] == ["0.attn.q", "2.ffn.down", "lm_head"]
    assert [at for at in told if at[2] == "lm_head"] == [(3, 3, "lm_head")]
    monkeypatch.setattr(tile_energy, "simulate", refuse)
    assert measure_layers(tiny, "dint4", hardware, only=ONLY) == first
    with pytest.raises(AssertionError, match="measured again"):
        measure_layers(tiny, "dint4", hardware, only=[(1, "attn.q")])


def test_a_run_that_was_interrupted_goes_on(
    tiny: LanguageModel,
    hardware: tile_energy.TileHardware,
    empty: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_layers(tiny, "dint4", hardware, only=ONLY, progress=stop)
    assert len(list(empty.iterdir())) == 2
    monkeypatch.setattr(tile_energy, "simulate", refuse)
    assert len(measure_layers(tiny, "dint4", hardware, only=ONLY[:2])) == 2


def test_a_damaged_cache_is_measured_again(
    tiny: LanguageModel, hardware: tile_energy.TileHardware, empty: Path
) -> None:
    first = measure_layers(tiny, "dint4", hardware, only=ONLY[:1])
    (path,) = empty.iterdir()
    path.write_text(path.read_text()[:50])
    assert measure_layers(tiny, "dint4", hardware, only=ONLY[:1]) == first


def test_the_seed_decides_which_tiles_are_drawn(
    tiny: LanguageModel,
    hardware: tile_energy.TileHardware,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.setattr(tile_energy, "cache_folder", lambda _, folder=folder: folder)
        (one,) = measure_layers(tiny, "dint4", hardware, only=ONLY[:1], seed=seed)
        found.append(one.energy)
    assert found[0] == found[1]
    assert found[0].active_pj != found[2].active_pj
    # Two samples of one product: within both their intervals, four of them to be sure.
    width = 2 * (found[0].half_width + found[2].half_width)
    assert found[0].active_pj == pytest.approx(found[2].active_pj, rel=width)


def test_every_product_is_measured_to_two_percent(
    tiny: LanguageModel, hardware: tile_energy.TileHardware
) -> None:
    measured = measure_layers(tiny, "dint4", hardware, layers=[0])
    assert len(measured) == 10
    for one in measured:
        energy = one.energy
        assert energy.half_width <= tile_energy.PRECISION == 0.02, one.name
        assert energy.tiles >= tile_energy.BATCH
        parts = sum(sum(components.values()) for components in energy.breakdown.values())
        assert parts == pytest.approx(energy.active_pj)
        assert energy.stalled_pj < energy.unused_pj < energy.active_pj
        assert energy.source == f"tiny {one.name}, w4g128-dint-sym"


def test_layers_that_stand_for_all(tiny: LanguageModel) -> None:
    assert chosen_layers(tiny) == [0, 2, 4]
    assert chosen_layers(tiny, 1) == [2]
    assert chosen_layers(tiny, 2) == [0, 4]
    assert chosen_layers(tiny, 9) == [0, 1, 2, 3, 4]


def test_weights_are_what_the_pe_gets() -> None:
    w = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    assert quantise_for(w, resolve_recipe("fp16"), "fp16") is w
    serial = quantise_for(w, resolve_recipe("w4g64-int-sym"), "bitmod")
    plain = quantise_for(w, resolve_recipe("w4g64-int-sym"), "int4")
    assert isinstance(serial, QuantizedTensor) and isinstance(plain, QuantizedTensor)
    assert (serial.scale_format, plain.scale_format) == ("int8", "fp16")


def test_a_layer_or_a_format_that_is_not_there(
    tiny: LanguageModel, hardware: tile_energy.TileHardware
) -> None:
    with pytest.raises(InputError, match=r"^layer 9: tiny has layers 0 to 4$"):
        measure_layers(tiny, "dint4", hardware, layers=[9])
    message = "the dint4 PE cannot run weight format bitmod4; it runs dint4-sym"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        measure_layers(tiny, "bitmod4", hardware, layers=[0])


# ------------------------------------------------------------------ for a simulation


@pytest.fixture
def logic() -> LogicEnergy:
    return logic_energy("tiny", "dint4", "dint4", resolve_technology("nangate45"), layers=1)


def test_logic_energy_is_cached_whole(logic: LogicEnergy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energies, "measure_layers", refuse)
    monkeypatch.setattr(energies, "load_model", refuse)
    technology = resolve_technology("nangate45")
    again = logic_energy("tiny", "dint4", "dint4", technology, layers=1, post_layout=1.3)
    assert again == replace(logic, post_layout=1.3)
    with pytest.raises(AssertionError, match="measured again"):
        logic_energy("tiny", "dint4", "dint4", technology, layers=1, voltage=1.0)


def test_a_factor_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"^post_layout is 0; above 0, 1 for no layout at all$"):
        logic_energy(
            "tiny", "dint4", "dint4", resolve_technology("nangate45"), layers=1, post_layout=0
        )


def test_products_are_the_mean_of_their_layers(
    tiny: LanguageModel, hardware: tile_energy.TileHardware
) -> None:
    recipe = resolve_recipe("dint4")
    only = [(0, "attn.q"), (4, "attn.q"), (None, "lm_head")]
    measured = measure_layers(tiny, recipe, hardware, only=only)
    joined = join_layers("tiny", recipe, hardware, measured)
    own = [one.energy.active_pj for one in measured]
    assert joined.products["attn.q"].active_pj == pytest.approx((own[0] + own[1]) / 2)
    assert joined.products["lm_head"].active_pj == own[2]
    assert "(w4g128-dint-sym, layers 0, 4, 64 tokens)" in joined.source
    head = join_layers("tiny", recipe, hardware, measured[2:])
    assert "(w4g128-dint-sym, output layer, 64 tokens)" in head.source


def test_scaled_energies_say_so(logic: LogicEnergy) -> None:
    scaled = scaled_to(logic, 45, 28, 0.9)
    ratio = scaling.energy_ratio(45, 1.1, 28, 0.9)
    assert scaled.factor == pytest.approx(ratio)
    assert scaled.source == (
        f"scaled to 28 nm at 0.9 V (x {ratio:.3g}, {scaling.RULE}), leakage not scaled; from "
        f"{logic.source}"
    )
    assert (scaled.leakage_uw, scaled.products) == (logic.leakage_uw, logic.products)
    with pytest.raises(InputError, match="^node is 5 nm; the scaling rule covers"):
        scaled_to(logic, 45, 5, 0.7)
