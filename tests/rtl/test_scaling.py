"""Scaling from node to node: the paper's numbers, and what any such rule must obey."""

import itertools
import json
import re
from importlib.resources import files

import pytest

from bitwright.quant import InputError
from bitwright.rtl import scaling

FACTS = json.loads(
    files("bitwright.rtl").joinpath("data/scaling_stillmaker.json").read_text(encoding="utf-8")
)
PRINTED = [
    (from_nm, to_nm, ratio)
    for from_nm, row in zip(FACTS["area_nm"], FACTS["area"], strict=True)
    for to_nm, ratio in zip(FACTS["area_nm"], row, strict=True)
]
#: Where the delay fit stops falling, below the nominal supply.
DELAY_TURNS = {(45, "hp"): 0.94, (32, "hp"): 0.84}


def of(nm: int, devices: str = "hp") -> scaling.Node:
    return next(n for n in scaling.NODES if n.nm == nm and n.devices in (devices, "bulk"))


def kind(node: scaling.Node) -> str:
    return "hp" if node.devices == "bulk" else node.devices


def name(node: scaling.Node) -> str:
    return f"{node.nm}-{node.devices}"


def test_energy_of_the_authors_corrected_example() -> None:
    """1 pJ at 65 nm and 1.3 V is 0.1755 pJ (digits cut off there) at 32 nm (hp) and 0.9 V."""
    assert of(32).energy_factor(0.9) == pytest.approx(0.4571, abs=5e-5)
    assert of(65).energy_factor(1.3) == pytest.approx(2.604, abs=5e-4)
    assert scaling.energy_ratio(65, 1.3, 32, 0.9) == pytest.approx(0.17555, abs=5e-5)


def test_delay_by_hand() -> None:
    # 45 nm, 1 V: -501.6 + 1567 - 1619 + 566.1; 20 nm, 1 V: 34.63 - 66.37 + 41.15.
    assert scaling.delay_ratio(45, 1.0, 20, 1.0) == pytest.approx(9.41 / 12.5)
    # 7 nm, 0.5 V: -28.58 / 8 + 76.6 / 4 - 70.26 / 2 + 24.69.
    assert scaling.delay_ratio(45, 1.0, 7, 0.5) == pytest.approx(5.1375 / 12.5)


def test_low_power_devices_have_their_own_factors() -> None:
    # 45 nm, 1 V: 1.103 - 0.362 + 0.2767; 32 nm, 1 V: 0.9559 - 0.7823 + 0.471.
    assert scaling.energy_ratio(45, 1.0, 32, 1.0, "lstp") == pytest.approx(0.6446 / 1.0177)
    # 45 nm, 1 V: -285.7 + 1239 - 1795 + 898.8; 65 nm is bulk: -53.3 + 230.4 - 333.9 + 178.6.
    assert scaling.delay_ratio(65, 1.0, 45, 1.0, "lstp") == pytest.approx(57.1 / 21.8)


def test_28_nm_lies_between_32_and_20_nm() -> None:
    # log(28 / 20) / log(32 / 20) = 0.71589 of the way from 20 to 32 nm; at 1 V the energy factors
    # are 0.373 - 0.1582 + 0.04104 = 0.25584 and 0.8367 - 0.4341 + 0.1701 = 0.5727.
    by_hand = 0.25584 ** (1 - 0.71589) * 0.5727**0.71589
    assert scaling.energy_ratio(45, 1.0, 28, 1.0) == pytest.approx(by_hand / 0.8612, rel=1e-5)
    delay = 9.41 ** (1 - 0.71589) * 11.5**0.71589
    assert scaling.delay_ratio(45, 1.0, 28, 1.0) == pytest.approx(delay / 12.5, rel=1e-5)
    area = scaling.area_ratio(32, 20) ** (1 - 0.71589)
    assert scaling.area_ratio(32, 28) == pytest.approx(area, rel=1e-5)


@pytest.mark.parametrize(("from_nm", "to_nm", "ratio"), PRINTED)
def test_areas_are_the_printed_ratios(from_nm: int, to_nm: int, ratio: float) -> None:
    assert scaling.area_ratio(from_nm, to_nm) == pytest.approx(ratio, rel=0.04)


def test_every_node_has_a_row_and_an_area() -> None:
    sizes = [180, 130, 90, 65, 45, 32, 20, 16, 14, 10, 7]
    assert FACTS["area_nm"] == sizes
    assert [n.nm for n in scaling.NODES if n.devices != "lstp"] == sizes
    assert [n.nm for n in scaling.NODES if n.devices == "lstp"] == sizes[4:]
    for node in scaling.NODES:
        assert node.range_V[0] <= node.voltage <= node.range_V[1], name(node)


@pytest.mark.parametrize(
    ("nm", "v"), [(180, 1.8), (100, 1.2), (65, 1.1), (45, 1.1), (40, 1.0), (28, 0.9), (7, 0.7)]
)
def test_the_same_node_and_supply_change_nothing(nm: float, v: float) -> None:
    assert scaling.energy_ratio(nm, v, nm, v) == 1
    assert scaling.delay_ratio(nm, v, nm, v) == 1
    assert scaling.area_ratio(nm, nm) == 1


@pytest.mark.parametrize(
    ("a", "b"),
    list(itertools.combinations([(130, 1.3), (45, 1.1), (28, 0.9), (22, 0.8), (7, 0.7)], 2)),
)
def test_there_and_back_changes_nothing(a: tuple[float, float], b: tuple[float, float]) -> None:
    for ratio in (scaling.energy_ratio, scaling.delay_ratio):
        assert ratio(*a, *b) * ratio(*b, *a) == pytest.approx(1, rel=1e-14)
    assert scaling.energy_ratio(*a, *b) < 1
    assert scaling.area_ratio(a[0], b[0]) * scaling.area_ratio(b[0], a[0]) == pytest.approx(1)
    assert scaling.area_ratio(a[0], b[0]) < 1


@pytest.mark.parametrize("node", scaling.NODES, ids=name)
def test_energy_rises_with_the_supply(node: scaling.Node) -> None:
    low, high = node.range_V
    steps = [low + (high - low) * i / 50 for i in range(51)]
    ratios = [scaling.energy_ratio(node.nm, low, node.nm, v, kind(node)) for v in steps[:-1]]
    assert ratios[0] == 1
    assert all(a < b for a, b in itertools.pairwise(ratios))


@pytest.mark.parametrize("node", scaling.NODES, ids=name)
def test_delay_falls_with_the_supply_up_to_nominal(node: scaling.Node) -> None:
    low, high = node.range_V[0], DELAY_TURNS.get((node.nm, node.devices), node.voltage)
    steps = [low + (high - low) * i / 50 for i in range(51)]
    ratios = [scaling.delay_ratio(node.nm, low, node.nm, v, kind(node)) for v in steps]
    assert all(a > b > 0 for a, b in itertools.pairwise(ratios))


def test_130_nm_is_accepted_at_the_supply_of_the_skywater_cells() -> None:
    # 1.8 V: 7.171 x 3.24 - 6.709 x 1.8 + 2.904 = 14.0618; 45 nm at 1.1 V: 1.04391.
    assert scaling.energy_ratio(130, 1.8, 45, 1.1) == pytest.approx(1.04391 / 14.06184, rel=1e-5)
    assert scaling.delay_ratio(130, 1.3, 130, 1.8) < 1


@pytest.mark.parametrize("node", scaling.NODES, ids=name)
def test_factors_are_positive_in_the_whole_range(node: scaling.Node) -> None:
    low, high = node.range_V
    for v in (low + (high - low) * i / 100 for i in range(101)):
        assert node.delay_factor(v) > 0
        assert node.energy_factor(v) > 0


@pytest.mark.parametrize("nm", [5, 6.9, 181, 250, float("nan")])
def test_nodes_outside_the_rule_are_refused(nm: float) -> None:
    message = (
        f"node is {nm:g} nm; the scaling rule covers 7 to 180 nm, "
        "so give a node in that range or leave the result unscaled"
    )
    for call in (
        lambda: scaling.energy_ratio(45, 1.1, nm, 0.8),
        lambda: scaling.delay_ratio(nm, 0.8, 45, 1.1),
        lambda: scaling.area_ratio(45, nm),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            call()


@pytest.mark.parametrize(
    ("nm", "voltage", "low", "high"),
    [
        (130, 1.9, 0.6, 1.8),
        (45, 0.4, 0.5, 1.2),
        (28, 1.1, 0.5, 1.08),  # the narrower of 32 and 20 nm
        (150, 0.9, 1, 1.8),  # the narrower of 180 and 130 nm
        (7, float("nan"), 0.5, 0.96),
    ],
)
def test_supplies_outside_the_rule_are_refused(
    nm: float, voltage: float, low: float, high: float
) -> None:
    message = (
        f"supply is {voltage:g} V at {nm} nm; the scaling rule covers {low:g} to {high:g} V there, "
        "so give a supply in that range or leave the result unscaled"
    )
    for ratio in (scaling.energy_ratio, scaling.delay_ratio):
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            ratio(nm, voltage, 65, 1.1)
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            ratio(65, 1.1, nm, voltage)


def test_unknown_devices_are_refused() -> None:
    message = "devices is 'lp'; the scaling rule knows hp and lstp, so give one"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        scaling.energy_ratio(45, 1.1, 28, 0.9, "lp")


def test_the_rule_names_its_source() -> None:
    assert scaling.RULE.startswith("scaled by Stillmaker and Baas, Integration 58 (2017) 74-81")
