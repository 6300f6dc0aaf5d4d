"""Figures of simulated passes: what they show adds up, and the same results give the same bytes."""

import pytest

from bitwright.experiments import (
    energy_bars,
    energy_parts,
    latency_bars,
    latency_parts,
    peak_ops_per_s,
    roofline,
    write_figures,
)
from bitwright.quant import InputError
from bitwright.sim import Accelerator, simulate_model, simulate_published


@pytest.fixture(scope="module")
def passes():
    array = Accelerator(dram="ddr4-3200")
    return [
        simulate_model("smollm2-135m", "bitmod4", phase, accelerator=array)
        for phase in ("prefill", "decode")
    ]


def test_parts_of_the_latency_add_up(passes):
    for result in passes:
        rows = latency_parts(result)
        assert [name for name, _ in rows] == [
            *(layer.name for layer in result.layers),
            "vector unit",
        ]
        total = sum(value for _, parts in rows for value in parts.values())
        assert total == pytest.approx(result.latency_s * 1e3)


def test_parts_of_the_energy_add_up(passes):
    for result in passes:
        total = sum(value for _, parts in energy_parts(result) for value in parts.values())
        known = result.sram_uj + result.dram_uj + result.leakage_uj
        assert total == pytest.approx(known * 1e-3)
        refresh = sum(parts["DRAM refresh and background"] for _, parts in energy_parts(result))
        assert refresh == pytest.approx(result.standing_uj * 1e-3) and refresh > 0


def test_the_roof_is_what_all_lanes_do(passes):
    # 32 x 32 PEs of 4 lanes, 2 cycles a step at 1 GHz: 2048 multiply-accumulates a cycle.
    assert peak_ops_per_s(passes[0]) == pytest.approx(2 * 2048 * 1e9)


def test_no_point_lies_above_its_roof(passes):
    figure = roofline(passes)
    (axes,) = figure.axes
    (roof,) = [line for line in axes.lines if "TOPS" in line.get_label()]
    (low, high), peak = roof.get_xdata()[:2], max(roof.get_ydata())
    slope = roof.get_ydata()[0] / low
    points = [point for points in axes.collections for point in points.get_offsets()]
    assert len(points) == sum(len(result.layers) for result in passes)
    for x, y in points:
        assert y <= min(peak, slope * x) * (1 + 1e-9)
    assert low < high


def test_bars_have_a_panel_per_pass_and_a_label_per_part(passes):
    for draw, unit, parts in ((latency_bars, "ms", 4), (energy_bars, "mJ", 5)):
        figure = draw(passes)
        assert [axes.get_ylabel() for axes in figure.axes] == [unit, unit]
        labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        looks = {(bar[0].get_facecolor(), bar[0].get_hatch()) for bar in figure.axes[0].containers}
        assert len(labels) == len(set(labels)) == len(looks) == parts


def test_the_same_passes_give_the_same_bytes(passes, tmp_path):
    first, second = (write_figures(passes, tmp_path / name) for name in ("a", "b"))
    assert sorted(first) == sorted(
        f"{name}.{kind}"
        for name in ("roofline", "latency", "energy")
        for kind in ("svg", "pdf", "png")
    )
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes(), name
    assert b"prefill of 256 tokens" in first["latency.svg"].read_bytes()
    assert first["roofline.png"].read_bytes()[:4] == b"\x89PNG"
    assert first["energy.pdf"].read_bytes()[:4] == b"%PDF"


def test_published_results_are_drawn_too(tmp_path):
    result = simulate_published("phi-2", "bitmod-lossy", "decode")
    assert peak_ops_per_s(result) == pytest.approx(2 * 64 * 16 * 4 / 2 * 1e9)
    assert len(write_figures([result], tmp_path)) == 9


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(InputError, match="no results to draw; simulate at least one pass"):
        write_figures([], tmp_path)
