"""Loop order and double buffering: by hand, and closed form against stepping through."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bitwright.sim import layer_cost, mapping, mapping_stepped

NONE, SCORES, VALUES = layer_cost.NONE, layer_cost.SCORES, layer_cost.VALUES
SHARE = layer_cost.SHARE
ONE_GROUP, Array, Product = layer_cost.ONE_GROUP, layer_cost.Array, layer_cost.Product
KEEP_X, KEEP_W, ORDERS = mapping.KEEP_X, mapping.KEEP_W, mapping.ORDERS

# 2 x 2 PEs of 4 lanes, buffers of 1024 bits, 8 bits a cycle from DRAM.
SMALL = Array(2, 2, 4, 1, 0, 0, 1024, 1024, 8, 1, 0)


def product(m, n, k, mask=NONE, per_position=1, **more):
    """Weights of 4 bits and activations of 8 without scales, one cycle a step, results of 16."""
    plain = Product(
        *(m, n, k, mask, per_position, 1, 1, ONE_GROUP),
        *(4, ONE_GROUP, 0, 0, 0),
        *(8, ONE_GROUP, 0, 0, 0),
        *(16, 1),
    )
    return plain._replace(**more)


def best(p, array=SMALL):
    (row,) = mapping.map_products(mapping.product_rows([p]), array)
    return mapping.Mapped(*(int(value) for value in row))


# ------------------------------------------------------------------ by hand


def test_one_tile_overlaps_with_nothing():
    # 2 tokens of 8 x 8 bits = 128 bits, 2 channels of 8 x 4 = 64 bits: 24 cycles of loads. Two
    # steps of 4 lanes: 2 cycles. Results 2 x 2 x 16 = 64 bits: 8 cycles.
    waits = mapping.keep_x(product(2, 2, 8), SMALL, 1024 - 128, 1, 2, 2)
    assert waits == (24 + 8, 128, 64)


def test_the_next_tile_of_weights_comes_while_one_is_used():
    # x: 2 tokens of 16 inputs, 256 bits. Three tiles of weights of 2 x 16 x 4 = 128 bits.
    # Before the first phase 384 bits: 48 cycles. A phase computes 4 cycles; DRAM brings 128 bits
    # and takes 64 bits of results away: 24 cycles, so 20 are waited for; twice. The last phase has
    # nothing to load, its results leave behind it: 8 cycles.
    p = product(2, 6, 16)
    assert mapping.keep_x(p, SMALL, 1024 - 128, 1, 2, 2) == (48 + 20 + 20 + 8, 256, 384)


def test_what_does_not_fit_beside_the_tile_in_use_is_waited_for():
    # The weight buffer takes 1.5 tiles of 128 bits: 64 of the next tile's bits overlap. With 100
    # cycles a step (400 a phase) nothing that overlaps is waited for, the other 64 bits are.
    narrow = SMALL._replace(w_capacity=192)
    p = product(2, 6, 16, pe_step=100, step=100)
    assert mapping.keep_x(p, narrow, 1024 - 128, 1, 2, 2) == (48 + 8 + 8 + 8, 256, 384)


def test_a_kept_block_is_followed_by_what_fits_beside_it():
    # Two blocks of 2 tokens of 48 inputs, 768 bits each; beside one 1024 - 128 - 768 = 128 bits are
    # free, 16 cycles of DRAM. Weights: 2 channels of 48 x 4 = 384 bits, one tile, loaded once.
    # 144 cycles before the first phase. A step of 10 cycles: a phase lasts 12 x 10 = 120, DRAM is
    # busy with results for 8, so 16 of the next block's 96 cycles overlap. Results at the end: 8.
    p = product(4, 2, 48, pe_step=10, step=10)
    assert mapping.keep_x(p, SMALL, 1024 - 128, 1, 2, 2) == (144 + 80 + 8, 1536, 384)


def test_kept_weights_are_the_mirror_image():
    # Two blocks of 2 channels of 120 x 4 = 480 bits: 960 bits, and 64 free beside them. One tile of
    # x, 2 x 120 x 8 = 1920 bits, in a larger buffer; it is loaded once.
    array = SMALL._replace(x_capacity=4096)
    p = product(2, 4, 120, pe_step=10, step=10)
    # 960 + 1920 bits: 360 cycles; next block 120 cycles, of which 8 fit; results 8.
    assert mapping.keep_w(p, array, 4096 - 128, 1, 2, 2) == (360 + 112 + 8, 1920, 1920)


def test_streaming_fetches_both_operands_for_every_tile():
    # Four tiles of 2 x 2, each with 2 x 8 x 8 = 128 bits of x and 64 of w: 24 cycles, and 8 for
    # results. The first step, 2 x 4 x 8 + 2 x 4 x 4 = 96 bits, comes before the first tile, whose
    # 2 cycles then hide 2 of (192 - 96 + 64) / 8 = 20; two tiles wait 30 cycles each, the last one
    # 24 - 2, and its results 8.
    assert mapping.stream(product(4, 4, 8), SMALL, 2, 2) == (12 + 18 + 30 + 30 + 22 + 8, 512, 256)


def test_dram_latency_is_paid_once():
    p = product(4, 4, 8)
    slow = best(p, SMALL._replace(latency=50))
    assert (slow.latency, slow.dram) == (50, best(p).dram)


def test_causal_scores_take_the_tiles_at_and_below_the_diagonal():
    # 5 positions with 2 rows each: tiles of 2 rows hold one position. 5 x 3 tiles of 2 channels:
    # positions 0, 1 need one tile, 2, 3 two, 4 three.
    done = layer_cost.work(product(10, 5, 4, SCORES, 2), SMALL, 2, 2)
    assert (done.tiles, done.busy) == (1 + 1 + 2 + 2 + 3, 9)
    # Results: 2 rows x (2 + 2 + 4 + 4 + 5) channels.
    assert done.y_made == 2 * 17 * 16


def test_causal_values_take_the_inputs_that_the_last_row_sees():
    # Rows of tiles end at positions 1, 3, 4: sums over 2, 4, 5 inputs, 1 + 1 + 2 steps of 4 lanes.
    done = layer_cost.work(product(5, 2, 5, VALUES), SMALL, 2, 2)
    assert (done.tiles, done.busy) == (3, 4)
    assert done.x_read == 8 * (2 * 2 + 2 * 4 + 1 * 5)
    assert done.w_read == 4 * 2 * (2 + 4 + 5)


def test_the_first_group_of_a_product_does_not_wait():
    # Groups of 4 are one step; closings are 5 cycles apart: 3 groups in 4 tiles, the first free.
    p = product(4, 4, 12, group=4)
    done = layer_cost.work(p, SMALL._replace(spacing=5), 2, 2)
    assert (done.busy, done.scale) == (12, 12 * 4 - 4)


def test_a_tile_that_does_not_fit_is_cut():
    # A token of 100 inputs has 800 bits; one fits beside 128 bits of results, two do not.
    p = product(4, 2, 100)
    found = best(p)
    assert (found.high, found.wide) == (1, 2)
    assert found.tiles == 4  # twice as many as uncut


def test_a_streamed_tile_is_halved_where_its_successor_would_not_fit():
    # The weight buffer takes two channels of 64 x 4 = 256 bits. A tile of two takes 48 cycles, then
    # 64 for the next one; a tile of one takes 48 and loads the next one in 32 of them.
    array = SMALL._replace(x_capacity=4096, w_capacity=512)
    found = best(product(2, 64, 64, pe_step=3, step=3, port_step=3), array)
    assert (ORDERS[found.order], found.high, found.wide, found.tiles) == ("keep x", 2, 1, 64)
    # 2 x 64 x 8 bits of x and a channel: 160 cycles; results of the last tile, 32 bits: 4.
    assert (found.busy, found.dram) == (64 * 48, 160 + 4)


def test_the_cheaper_order_is_taken():
    # All weights fit (192 x 4 bits): they are kept, x crosses once although it does not fit.
    tall = best(product(64, 6, 32))
    assert (ORDERS[tall.order], tall.blocks) == ("keep w", 1)
    assert (tall.x_moved, tall.w_moved) == (64 * 32 * 8, 6 * 32 * 4)
    wide = best(product(2, 64, 32))
    assert (ORDERS[wide.order], wide.blocks) == ("keep x", 1)


@pytest.mark.parametrize(
    ("change", "order"),
    [({"x_capacity": 255}, mapping.X_TOO_SMALL), ({"w_capacity": 63}, mapping.W_TOO_SMALL)],
)
def test_two_steps_must_fit(change, order):
    # Two steps of 2 x 4 x 8 bits and two result tiles of 64 bits: 256 bits. Weights: 64 bits.
    p = product(2, 2, 8)
    assert best(p, SMALL._replace(**change)).order == order
    enough = {name: value + 1 for name, value in change.items()}
    assert best(p, SMALL._replace(**enough)).order >= 0


# ------------------------------------------------------------------ closed form against stepping

arrays = st.builds(
    Array,
    rows=st.integers(1, 5),
    cols=st.integers(1, 5),
    lanes=st.sampled_from([1, 2, 4]),
    spacing=st.integers(1, 12),
    fill=st.integers(0, 9),
    drain=st.integers(0, 9),
    x_capacity=st.integers(300, 6000),
    w_capacity=st.integers(300, 6000),
    rate_bits=st.sampled_from([1, 3, 8, 64, 500]),
    rate_cycles=st.sampled_from([1, 2, 7]),
    latency=st.integers(0, 60),
)
sizes = st.integers(1, 24)


@st.composite
def products(draw):
    mask = draw(st.sampled_from([NONE, NONE, SCORES, VALUES]))
    positions, width, per_position = draw(sizes), draw(sizes), draw(st.integers(1, 3))
    m, n, k = draw(sizes), width, positions
    if mask != NONE:
        m = positions * per_position
    if mask == SCORES:
        n, k = positions, width
    pe_step = draw(st.integers(1, 4))
    step = pe_step + draw(st.integers(0, 3))
    return Product(
        *(m, n, k, mask, per_position, pe_step, step),
        draw(st.sampled_from([ONE_GROUP, 3, 8])),
        *(draw(st.integers(1, 8)), draw(st.sampled_from([ONE_GROUP, 4, 7]))),
        *(draw(st.integers(0, 12)), draw(st.integers(0, 20)), draw(st.sampled_from([0, 32]))),
        *(draw(st.integers(1, 16)), draw(st.sampled_from([ONE_GROUP, 5]))),
        *(draw(st.integers(0, 9)), draw(st.integers(0, 20)), draw(st.sampled_from([0, 32]))),
        *draw(st.sampled_from([(16, 1), (8, 1), (130, 16)])),
        port_step=draw(st.sampled_from([1, step])) if step == pe_step else step,
        share=draw(st.sampled_from([SHARE, SHARE, SHARE // 2, 41000])),
    )


def room_of(p, array):
    """Bits of the activation buffer without those of two tiles of results."""
    tile = min(array.rows, p.m) * min(array.cols, p.n)
    return array.x_capacity - 2 * layer_cost.y_size(p, tile)


def check(p, array, order, block, high, wide):
    x_room = array.x_capacity - 2 * layer_cost.y_size(
        p, min(array.rows, p.m) * min(array.cols, p.n)
    )
    if order == "stream":
        waits = mapping.stream(p, array, high, wide)
    else:
        rule = mapping.keep_x if order == "keep x" else mapping.keep_w
        waits = rule(p, array, x_room, block, high, wide)
    done = layer_cost.work(p, array, high, wide)
    found = mapping_stepped.step_through(p, array, order, block, high, wide)
    assert waits == (found.dram, found.x_moved, found.w_moved)
    assert done.busy + done.port + done.scale == found.compute
    low, high_bound = mapping_stepped.bounds(p, array, found)
    assert low <= found.compute + found.dram <= high_bound
    return found


@settings(max_examples=300, deadline=None)
@given(products(), arrays)
def test_the_best_mapping_is_what_stepping_through_it_gives(p, array):
    found = best(p, array)
    assume(found.order >= 0)
    stepped = check(p, array, ORDERS[found.order], found.block, found.high, found.wide)
    assert (found.dram, found.w_moved, found.x_moved) == (
        *(stepped.dram, stepped.w_moved, stepped.x_moved),
    )
    # Results leave whole, but are rounded up to bits phase by phase.
    assert 0 <= stepped.y_moved - found.y_made <= len(stepped.phases)


@settings(max_examples=300, deadline=None)
@given(products(), arrays, st.data())
def test_every_mapping_is_what_stepping_through_it_gives(p, array, data):
    """Also those that the mapper does not take: any block that fits, uncut tiles."""
    array = array._replace(x_capacity=array.x_capacity * 4, w_capacity=array.w_capacity * 4)
    tokens = (array.x_capacity - 2 * 16 * 25) // layer_cost.x_row(p, p.k)
    channels = array.w_capacity // layer_cost.w_row(p, p.k)
    assume(tokens >= min(array.rows, p.m) and channels >= min(array.cols, p.n))
    order = data.draw(st.sampled_from(ORDERS))
    fitting, side, size = (
        (tokens, array.rows, p.m) if order == "keep x" else (channels, array.cols, p.n)
    )
    most = -(-size // side) if fitting >= size else max(fitting // side, 1)
    block = data.draw(st.integers(1, most))
    check(p, array, order, block, array.rows, array.cols)


@settings(max_examples=100, deadline=None)
@given(products(), arrays)
def test_the_mapper_takes_what_costs_least(p, array):
    """Cycles, and a sixteenth of the time that the bytes take over DRAM."""
    found = best(p, array)
    assume(found.order >= 0)

    def cost(cycles, bits, y_bits):
        return 16 * cycles + -(-(bits + y_bits) * array.rate_cycles // array.rate_bits)

    cycles = found.busy + found.port + found.scale + found.dram
    least = cost(cycles, found.w_moved + found.x_moved, found.y_made)
    room = room_of(p, array)
    for order, fitting, side, size in (
        (KEEP_X, room // layer_cost.x_row(p, p.k), array.rows, p.m),
        (KEEP_W, array.w_capacity // layer_cost.w_row(p, p.k), array.cols, p.n),
    ):
        other = (
            array.w_capacity // layer_cost.w_row(p, p.k)
            if order == KEEP_X
            else (room // layer_cost.x_row(p, p.k))
        )
        across = (array.cols, p.n) if order == KEEP_X else (array.rows, p.m)
        if fitting < min(side, size) or other < min(across):
            continue
        rule = mapping.keep_x if order == KEEP_X else mapping.keep_w
        count = -(-size // side)
        for block in range(1, (count if fitting >= size else fitting // side) + 1):
            waits = rule(p, array, room, block, array.rows, array.cols)
            done = layer_cost.work(p, array, array.rows, array.cols)
            even = -(-count // -(-count // block))
            if even == block:
                others = done.busy + done.port + done.scale + waits.dram
                assert least <= cost(others, waits.w_moved + waits.x_moved, done.y_made)


@given(products(), arrays)
def test_no_counter_exceeds_its_bound(p, array):
    found = best(p, array)
    assume(found.order >= 0)
    (bound,) = mapping.largest_counter(mapping.product_rows([p]), array)
    counted = found.busy + found.port + found.scale + found.fill + found.drain + found.dram
    moved = found.w_moved + found.x_moved + found.y_made
    assert max(counted + found.latency, moved, found.w_read, found.x_read) <= bound
