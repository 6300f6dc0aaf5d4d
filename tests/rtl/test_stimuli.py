"""What a tile is shown, and that its netlists compute the PE's results from it."""

from typing import Any

import numpy as np
import pytest

from bitwright.quant import ScaleFormat, quantize
from bitwright.rtl import engine, resolve_technology, stimuli, tile_energy
from bitwright.sim import PES, array, bitmod

SHAPE = array.jobs.TileShape(groups=2, steps=3, last_steps=2, terms=2)
EDGE = stimuli.EDGE


def operands(pe: str, fmt: str, k: int, tiles: int = 2, group: int | None = 32):
    """Tiles of random operands that a PE runs."""
    rng = np.random.default_rng(k)
    pairs = []
    for _ in range(tiles):
        x = (rng.standard_normal((EDGE, k)) * 2).astype(np.float32)
        w = rng.standard_normal((EDGE, k)).astype(np.float32)
        scales: ScaleFormat | None = "int8" if pe == "bitmod" else None
        pairs.append((x, w if fmt == "fp16" else quantize(w, fmt, group, scales)))
    return stimuli.tile_operands(engine.find_cells(pe), pairs)


@pytest.fixture(scope="module")
def technology():
    return resolve_technology("nangate45")


def test_beats_of_a_tile_by_hand() -> None:
    """Two groups, of three and two steps of two terms; 8 cycles between ends of groups."""
    cells = engine.find_cells("bitmod")
    plan = stimuli.schedule(SHAPE, cells, spacing=8)
    begin = plan.warmup
    assert plan.beats == 10
    # Group 1 has four beats and ends eight cycles behind group 0: its last one waits for four.
    # So does that of group 0, for the group that ended the warm-up two cycles too early.
    issued = plan.issued[begin:]
    assert issued.astype(int).tolist() == [1] * 5 + [0] * 2 + [1] * 4 + [0] * 4 + [1]
    assert np.flatnonzero(plan.ends[begin:]).tolist() == [7, 15]
    assert plan.term[begin:][issued].tolist() == [0, 1] * 5
    assert plan.step[begin:][issued].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert plan.first[begin:][issued].tolist() == [True] * 6 + [False] * 4
    assert plan.final[begin:][issued].tolist() == [False] * 6 + [True] * 4


def test_planes_go_round_with_the_weight_plane_first() -> None:
    shape = array.jobs.TileShape(groups=1, steps=1, last_steps=1, x_words=2, w_words=3)
    plan = stimuli.schedule(shape, engine.find_cells("btc"), spacing=1)
    begin = plan.warmup
    assert plan.x_word[begin:].tolist() == [0, 0, 0, 1, 1, 1]
    assert plan.w_word[begin:].tolist() == [0, 1, 2, 0, 1, 2]


def test_stalls_come_where_they_are_asked_for() -> None:
    shape = array.jobs.TileShape(groups=1, steps=6, last_steps=6)
    plan = stimuli.schedule(shape, engine.find_cells("int8"), 1, stall_every=2, stall=3)
    issued = plan.issued[plan.warmup :].astype(int).tolist()
    assert issued == [1, 1, 0, 0, 0] * 3


def test_rows_share_activations_and_columns_share_weights() -> None:
    tiles = operands("int8", "int8-sym", 32)
    plan = stimuli.schedule(tiles.shape, tiles.cells, 8)
    act = tiles.rows(plan)["act0"].reshape(-1, 2, EDGE, EDGE)
    code = tiles.columns(plan)["code0"].reshape(-1, 2, EDGE, EDGE)
    assert (act == act[..., :1]).all() and (code == code[:, :, :1]).all()
    issued = plan.issued.copy()
    issued[: plan.warmup] = False
    for number, one in enumerate(tiles.operands):
        assert (act[issued, number, :, 0].T == one.x["act0"][..., 0]).all()
        assert (code[issued, number, 0, :].T == one.w["code0"][..., 0]).all()


@pytest.mark.parametrize(
    ("pe", "fmt", "k", "group"),
    [
        ("bitmod", "bitmod3", 96, 32),
        ("bitmod", "int8-sym", 40, 32),
        ("bitmod", "int4-asym", 64, 64),
        ("dint4", "dint4-sym", 64, 32),
        ("dint4-asym", "dint4-asym", 40, 32),
        ("int8-dot16", "int8-sym", 70, 32),
        ("btc", "int2-asym", 256, 128),
        ("fp16", "fp16", 48, None),
        ("ternary", "ternary", 64, 32),
        ("nvfp4", "nvfp4", 64, None),
    ],
)
def test_netlists_of_a_tile_give_the_results_of_the_pe(pe, fmt, k, group, technology) -> None:
    """Term encoders, PEs and column units one behind the other: every result, bit for bit."""
    tiles = operands(pe, fmt, k, group=group)
    hardware = tile_energy.TileHardware(pe, technology)
    cells, rows = hardware.cells, hardware.unit_rows
    plan = stimuli.schedule(tiles.shape, cells, max(rows, cells.scale_cycles))
    # The last results leave behind the last beat: play the tile again and look at the first time.
    again: dict[str, Any] = {
        name: np.concatenate([column] + [column[plan.warmup :]] * 8)
        for name, column in plan._asdict().items()
        if isinstance(column, np.ndarray)
    }
    run = hardware.run(tiles, plan._replace(**again))
    result = run.activity["column unit"].outputs["result"].reshape(-1, 2, EDGE, EDGE)
    ends = [int(c) for c in np.flatnonzero(plan.ends) if c >= plan.warmup]
    wanted = [one.y.astype(np.uint64) for one in tiles.operands]
    results = ends if cells.per_group else ends[-1:]
    assert len(results) == wanted[0].shape[2]
    for number, end in enumerate(results):
        for row in range(EDGE):
            cycle = end + cells.latency + 1 + row % rows
            for tile, y in enumerate(wanted):
                assert result[cycle, tile, row].tolist() == y[row, :, number].tolist()


def test_control_of_the_bit_serial_pe_is_what_its_encoder_gives(technology) -> None:
    """`bitmod_control` beside the netlist of the term encoder, every signal in every cycle."""
    tiles = operands("bitmod", "bitmod4", 96)
    hardware = tile_energy.TileHardware("bitmod", technology)
    plan = stimuli.schedule(tiles.shape, hardware.cells, 8)
    setup = stimuli.ENCODER_SETUP
    control = stimuli.bitmod_control(hardware.encode(tiles, plan))
    names = tuple(control)
    encoder = hardware.parts["encoder"].run(stimuli.encoder_streams(tiles, plan), 1, names)
    term = np.concatenate([np.zeros(2, bool), plan.issued[:-2]])
    for name in names:
        got = encoder.outputs[name][setup:]
        # The significance means something while there is a term.
        where = term if name == "bsig" else np.ones_like(term)
        assert (got[where] == control[name][where]).all(), name


def test_zero_terms_are_left_out_column_by_column(technology) -> None:
    tiles = operands("bitmod", "bitmod3", 96)
    hardware = tile_energy.TileHardware("bitmod", technology)
    plan = stimuli.schedule(tiles.shape, hardware.cells, 8)
    terms, act = hardware.encode(tiles, plan), tiles.rows(plan)
    shorter, held, dropped = stimuli.without_zero_terms(terms, act, plan.warmup)
    live = np.asarray(np.stack([terms.lanes[f"live{i}"] for i in range(4)]).any(axis=0))
    ends = terms.ends
    counted = np.arange(len(live))[:, None] >= plan.warmup
    assert dropped == int((~live & ~ends & counted).sum()) > 0
    for name in ("live0", "live3"):  # no term is lost
        assert shorter.lanes[name].sum() == terms.lanes[name].sum()
    assert shorter.ends.sum() == terms.ends.sum()
    kept = shorter.issued[:, 0]
    wanted = (live | ends)[:, 0]
    wanted[: plan.warmup] = True
    first = next(iter(act))
    assert held[first][kept, 0].tolist() == act[first][wanted, 0].tolist()


def test_idle_tiles_show_nothing() -> None:
    tiles = operands("int8", "int8-sym", 32)
    plan = stimuli.schedule(tiles.shape, tiles.cells, 8)
    pause = stimuli.idle(plan, 5, drain=3)
    assert pause.cycles == 5 and pause.beats == 0
    assert not pause.issued[plan.warmup :].any()
    assert (pause.issued[: plan.warmup] == plan.issued[: plan.warmup]).all()


def test_every_pe_has_a_tile() -> None:
    for name in PES:
        assert engine.find_cells(name).pe_outputs
    assert bitmod.SCALE_CYCLES == 8
