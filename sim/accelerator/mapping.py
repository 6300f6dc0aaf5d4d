"""Loop order and double buffering: when a product's operands cross DRAM, and what that costs.

One operand is *kept*: a block of its tiles stays in its buffer while tiles of the other *stream*
by, each used with all tiles of the block; then comes the next block.

- "keep x": blocks of `block` rows of tiles of x are kept; the weights cross DRAM once per block;
- "keep w": the mirror image; x crosses DRAM once per block of weights;
- "stream": nothing is kept, both operands of every output tile stream through k in steps.

A tile has as many tokens and channels as the array, or fewer if its operand does not fit (`high`
tokens, `wide` channels): a row of tiles then leaves PEs idle.

A *phase* is one streamed tile against the kept block. While it computes, DRAM brings the next
streamed tile, as much of it as fits beside the one in use, takes away the phase's results and, in
what time is left, brings what fits of the next block beside the one in use. Buffers swap when the
phase and its transfers are done. So with T(bits) = ceil(bits / DRAM bits per cycle) the array waits

    before the first phase   latency + T(first block and first streamed tile)
    in a phase               max(T(what fits of the next tile + results) - compute, 0)
                             + T(what does not fit)
    behind a block           T(next block) - the part brought in idle DRAM time while it computed
    behind the last phase    T(results of the last tile)

The results of a tile leave while the next one computes and are counted in the phase they are made
in; two tiles of results have room in the activation buffer. In "stream" a phase is one output tile
and brings its own operands; only the first step of all is waited for. Products follow each other
without overlap, and so do the repetitions of one.

The mapper tries both kept orders with every number of blocks, streamed tiles as large as the buffer
and as large as half of it, and "stream"; it takes the fewest cycles, where 16 cycles of DRAM
transfer count as another one (`THRIFT`), and of equals the first in this order. Equal phases are
counted, not stepped through: `mapping_stepped` is the same schedule phase by phase, with equal
integers (tests/sim/test_mapping.py). The common swap is the assumption: buffers that were handed
over one by one could be faster, but not than what `mapping_stepped.bounds` gives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from .layer_cost import (
    NONE,
    SCORES,
    VALUES,
    Array,
    Product,
    ceil_div,
    first_wait,
    tile_count,
    tile_k,
    tile_time,
    w_row,
    work,
    x_row,
    y_size,
)

KEEP_X, KEEP_W, STREAM = 0, 1, 2
#: To the mapper a cycle is worth so many cycles of DRAM transfer: fetching the same bytes again and
#: again behind the computing costs no time, but energy.
THRIFT = 16
ORDERS = ("keep x", "keep w", "stream")
#: What `map_products` says instead of an order if not even two steps of an operand fit.
X_TOO_SMALL, W_TOO_SMALL = -1, -2


class Waits(NamedTuple):
    """What DRAM costs one repetition of a product under one mapping."""

    dram: int  #: cycles that the array waits
    x_moved: int  #: bits of x over DRAM
    w_moved: int


class Mapped(NamedTuple):
    """The best mapping of a product and one repetition's cost; column names of `map_products`."""

    order: int  #: KEEP_X, KEEP_W, STREAM; negative: X_TOO_SMALL, W_TOO_SMALL
    block: int  #: tiles kept
    blocks: int  #: how often the streamed operand passes; 0 for STREAM
    high: int  #: tokens of a tile
    wide: int  #: channels of a tile
    tiles: int
    busy: int
    port: int
    scale: int
    fill: int
    drain: int
    dram: int
    latency: int
    w_read: int
    x_read: int
    y_made: int
    w_moved: int
    x_moved: int


def map_products(products: np.ndarray, array: Array) -> np.ndarray:
    """The best mapping of each product.

    Args:
        products: int64 [products, fields of `Product`].
        array: The hardware.

    Returns:
        int64 [products, fields of `Mapped`].
    """
    found = np.empty((len(products), len(Mapped._fields)), np.int64)
    _map_all(products, array, found)
    return found


def product_rows(products: Sequence[Product]) -> np.ndarray:
    """Products as `map_products` takes them."""
    return np.array(products, np.int64).reshape(len(products), len(Product._fields))


def largest_counter(products: np.ndarray, array: Array) -> np.ndarray:
    """An upper bound, float64, of every counter that each product can reach in the best mapping."""
    p = Product(*products.T.astype(np.float64))
    w = p.k * p.w_bits + (p.k / p.w_group + 1) * p.w_per_group + p.w_per_row
    x = p.k * p.x_bits + (p.k / p.x_group + 1) * p.x_per_group + p.x_per_row
    # A tile is cut to half of what fits at the least.
    high = np.clip(array.x_capacity / x / 4, 1, array.rows)
    wide = np.clip(array.w_capacity / w / 4, 1, array.cols)
    tiles = (p.m / high + 1) * (p.n / wide + 1)
    steps = p.k * p.step + (p.k / p.group + 2) * array.spacing
    results = high * wide * (p.y_bits / p.y_elements) + 1
    bits = tiles * (wide * w + high * x + results) + p.w_per_tensor + p.x_per_tensor
    waits = bits * array.rate_cycles + array.rate_bits
    return tiles * steps + waits + array.fill + array.drain + array.latency


@njit(cache=True)
def _transfer(a, bits):  # type: ignore[no-untyped-def]
    """T(bits)."""
    return ceil_div(bits * a.rate_cycles, a.rate_bits)


@njit(cache=True)
def _next_block(a, size, space, idle):  # type: ignore[no-untyped-def]
    """Cycles waited for a block of `size` bits; `idle` cycles of DRAM and `space` bits are free."""
    whole = _transfer(a, size)
    early = whole if size <= space else space * a.rate_cycles // a.rate_bits
    return whole - min(idle, early)


@njit(cache=True)
def keep_x(p, a, x_room, block, high, wide):  # type: ignore[no-untyped-def]
    """`Waits` of "keep x"; `x_room`: bits of the activation buffer without those of results."""
    rows = ceil_div(p.m, high)
    blocks = ceil_div(rows, block)
    dram, w_moved = 0, p.w_per_tensor
    x_size, k = _x_block(p, high, 0, min(block, rows))
    x_moved = p.x_per_tensor + x_size
    first_w = min(wide, p.n) * w_row(p, k)
    w_moved += first_w
    dram += _transfer(a, x_moved + w_moved)
    b = 0
    while b < blocks:
        # Unmasked blocks 1 .. blocks - 3 are alike: whole, and before a whole one.
        repeat = blocks - 3 if p.mask == NONE and b == 1 and blocks > 3 else 1
        first, last = b * block, min((b + 1) * block, rows)
        tokens_end = min(last * high, p.m)
        next_size, next_k = 0, k
        if b + 1 < blocks:
            next_size, next_k = _x_block(p, high, last, min(last + block, rows))
        time = tile_time(p, a, k)
        together = 0  # of "values", whose tiles take different times
        if p.mask == VALUES:
            for i in range(first, last):
                together += tile_time(p, a, tile_k(p, high, i))
        need = tile_count(p, high, wide, last - 1)
        waits = idle = loads = 0
        i, j = first, 0
        while j < need:
            # Phases j .. end - 1 are alike: the same rows of tiles, whole tiles of w.
            while tile_count(p, high, wide, i) <= j:
                i += 1
            if j == 0:
                end = 1
            elif j < need - 2:
                end = min(tile_count(p, high, wide, i), need - 2)
            else:
                end = j + 1
            compute = together if p.mask == VALUES else (last - i) * time
            if b == 0 and j == 0:
                compute -= first_wait(p, a, tile_k(p, high, 0))
            channels = min(wide, p.n - j * wide)
            if j + 1 < need:
                coming = min(wide, p.n - (j + 1) * wide) * w_row(p, k)
            elif b + 1 == blocks:
                coming = 0
            elif need == 1:  # the tile is there already, up to this block's k
                coming = channels * (w_row(p, next_k) - w_row(p, k))
            else:
                coming = min(wide, p.n) * w_row(p, next_k)
            made = (tokens_end - i * high) * channels
            if b + 1 == blocks and j + 1 == need:
                left = (p.m - (rows - 1) * high) * channels
                made -= left
                dram += _transfer(a, y_size(p, left))
            fits = min(coming, max(a.w_capacity - channels * w_row(p, k), 0))
            moving = _transfer(a, fits + y_size(p, made))
            waits += (end - j) * (max(moving - compute, 0) + _transfer(a, coming - fits))
            idle += (end - j) * max(compute - moving, 0)
            loads += (end - j) * coming
            j = end
        if b + 1 < blocks:
            waits += _next_block(a, next_size, x_room - x_size, idle)
        dram += repeat * waits
        w_moved += repeat * loads
        x_moved += repeat * next_size
        b += repeat
        x_size, k = next_size, next_k
    return Waits(dram, x_moved, w_moved)


@njit(cache=True)
def _x_block(p, high, first, last):  # type: ignore[no-untyped-def]
    """Bits of rows first .. last - 1 of tiles, and the largest k among them."""
    tokens = min(last * high, p.m) - first * high
    k = tile_k(p, high, last - 1)
    if p.mask != VALUES:
        return tokens * x_row(p, k), k
    size = 0
    for i in range(first, last):
        size += min(high, p.m - i * high) * x_row(p, tile_k(p, high, i))
    return size, k


@njit(cache=True)
def keep_w(p, a, x_room, block, high, wide):  # type: ignore[no-untyped-def]
    """`Waits` of "keep w"."""
    rows, cols = ceil_div(p.m, high), ceil_div(p.n, wide)
    blocks = ceil_div(cols, block)
    row_bits = w_row(p, p.k)
    start = _first_row(p, high, wide, 0)
    tokens = min(high, p.m - start * high)
    w_size = min(block * wide, p.n) * row_bits
    x_moved = p.x_per_tensor + tokens * x_row(p, tile_k(p, high, start))
    dram = _transfer(a, p.w_per_tensor + w_size + x_moved)
    b = 0
    while b < blocks:
        repeat = blocks - 3 if p.mask != SCORES and b == 1 and blocks > 3 else 1
        first, last = b * block, min((b + 1) * block, cols)
        w_size = (min(last * wide, p.n) - first * wide) * row_bits
        next_start = rows
        next_size = 0
        if b + 1 < blocks:
            next_start = _first_row(p, high, wide, last)
            next_size = (min((last + block) * wide, p.n) - last * wide) * row_bits
        waits = idle = loads = 0
        i = start
        while i < rows:
            # Phases i .. end - 1 are alike: the same tiles of w, whole tiles of x.
            count = min(tile_count(p, high, wide, i), last)
            alone = p.mask == VALUES or i == start or i >= rows - 2 or count < last
            end = i + 1 if alone else rows - 2
            tokens, k = min(high, p.m - i * high), tile_k(p, high, i)
            compute = (count - first) * tile_time(p, a, k)
            if b == 0 and i == start:
                compute -= first_wait(p, a, tile_k(p, high, 0))
            if i + 1 < rows:
                following = i + 1
            elif b + 1 < blocks and next_start != i:
                following = next_start
            else:
                following = -1  # none, or the tile is there already
            coming = 0
            if following >= 0:
                coming = min(high, p.m - following * high) * x_row(p, tile_k(p, high, following))
            made = tokens * (min(count * wide, p.n) - first * wide)
            if b + 1 == blocks and i + 1 == rows:
                left = tokens * (min(count * wide, p.n) - (count - 1) * wide)
                made -= left
                dram += _transfer(a, y_size(p, left))
            fits = min(coming, max(x_room - tokens * x_row(p, k), 0))
            moving = _transfer(a, fits + y_size(p, made))
            waits += (end - i) * (max(moving - compute, 0) + _transfer(a, coming - fits))
            idle += (end - i) * max(compute - moving, 0)
            loads += (end - i) * coming
            i = end
        if b + 1 < blocks:
            waits += _next_block(a, next_size, a.w_capacity - w_size, idle)
        dram += repeat * waits
        x_moved += repeat * loads
        b += repeat
        start = next_start
    return Waits(dram, x_moved, p.w_per_tensor + p.n * row_bits)


@njit(cache=True)
def _first_row(p, high, wide, j):  # type: ignore[no-untyped-def]
    """The first row of tiles that needs tile j."""
    if p.mask != SCORES:
        return 0
    return j * wide * p.per_position // high


@njit(cache=True)
def stream(p, a, high, wide):  # type: ignore[no-untyped-def]
    """`Waits` of "stream"."""
    rows = ceil_div(p.m, high)
    step = min(a.lanes, tile_k(p, high, 0))
    lead = min(high, p.m) * x_row(p, step) + min(wide, p.n) * w_row(p, step)
    dram = _transfer(a, lead + p.w_per_tensor + p.x_per_tensor)
    x_moved, w_moved = p.x_per_tensor, p.w_per_tensor
    i = 0
    while i < rows:
        repeat = rows - 2 if p.mask == NONE and i == 1 and rows > 2 else 1
        k, need = tile_k(p, high, i), tile_count(p, high, wide, i)
        time, tokens = tile_time(p, a, k), min(high, p.m - i * high)
        j = 0
        while j < need:
            end = need - 1 if 0 < j < need - 1 else j + 1
            channels = min(wide, p.n - j * wide)
            compute, made = time, tokens * channels
            operands = tokens * x_row(p, k) + channels * w_row(p, k)
            x_moved += repeat * (end - j) * tokens * x_row(p, k)
            w_moved += repeat * (end - j) * channels * w_row(p, k)
            if i == 0 and j == 0:
                compute -= first_wait(p, a, k)
                operands -= lead
            if i + 1 == rows and j + 1 == need:
                dram += _transfer(a, y_size(p, made))
                made = 0
            moving = _transfer(a, operands + y_size(p, made))
            dram += repeat * (end - j) * max(moving - compute, 0)
            j = end
        i += repeat
    return Waits(dram, x_moved, w_moved)


@njit(cache=True)
def map_product(p, a):  # type: ignore[no-untyped-def]
    """The best mapping of one product, a `Mapped`."""
    tile_y = 2 * y_size(p, min(a.rows, p.m) * min(a.cols, p.n))
    x_room, w_room = a.x_capacity - tile_y, a.w_capacity
    step = min(a.lanes, p.k)
    x_bits, w_bits = x_row(p, p.k), w_row(p, p.k)
    best = Mapped(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    if 2 * min(a.rows, p.m) * x_row(p, step) > x_room:
        return _mapped(X_TOO_SMALL, 0, 0, 0, 0, work(p, a, a.rows, a.cols), Waits(0, 0, 0), a)
    if 2 * min(a.cols, p.n) * w_row(p, step) > w_room:
        return _mapped(W_TOO_SMALL, 0, 0, 0, 0, work(p, a, a.rows, a.cols), Waits(0, 0, 0), a)
    found = False
    tokens, channels = x_room // x_bits, w_room // w_bits  # that fit
    for half in range(2):
        high, wide = _cut(a.rows, p.m, tokens), _cut(a.cols, p.n, channels)
        if half:
            less = _cut(a.cols, p.n, channels // 2)
            if less == wide:
                continue
            wide = less
        if high == 0 or wide == 0:
            continue
        done = work(p, a, high, wide)
        rows = ceil_div(p.m, high)
        block = rows if tokens >= p.m else max(tokens // high, 1)
        while block >= 1:
            blocks = ceil_div(rows, block)
            block = ceil_div(rows, blocks)  # as even as can be
            waits = keep_x(p, a, x_room, block, high, wide)
            this = _mapped(KEEP_X, block, blocks, high, wide, done, waits, a)
            if not found or _better(this, best, a):
                best, found = this, True
            block -= 1
    for half in range(2):
        high, wide = _cut(a.rows, p.m, tokens), _cut(a.cols, p.n, channels)
        if half:
            less = _cut(a.rows, p.m, tokens // 2)
            if less == high:
                continue
            high = less
        if high == 0 or wide == 0:
            continue
        done = work(p, a, high, wide)
        cols = ceil_div(p.n, wide)
        block = cols if channels >= p.n else max(channels // wide, 1)
        while block >= 1:
            blocks = ceil_div(cols, block)
            block = ceil_div(cols, blocks)
            waits = keep_w(p, a, x_room, block, high, wide)
            this = _mapped(KEEP_W, block, blocks, high, wide, done, waits, a)
            if not found or _better(this, best, a):
                best, found = this, True
            block -= 1
    done = work(p, a, a.rows, a.cols)
    waits = stream(p, a, a.rows, a.cols)
    this = _mapped(STREAM, 0, 0, a.rows, a.cols, done, waits, a)
    if not found or _better(this, best, a):
        best = this
    return best


@njit(cache=True)
def _cut(side, size, fitting):  # type: ignore[no-untyped-def]
    """Tokens or channels of a tile: the array's side, or fewer if only `fitting` fit."""
    return side if fitting >= min(side, size) else fitting


@njit(cache=True)
def _mapped(order, block, blocks, high, wide, done, waits, a):  # type: ignore[no-untyped-def]
    return Mapped(
        order,
        block,
        blocks,
        high,
        wide,
        done.tiles,
        done.busy,
        done.port,
        done.scale,
        a.fill,
        a.drain,
        waits.dram,
        a.latency,
        done.w_read,
        done.x_read,
        done.y_made,
        waits.w_moved,
        waits.x_moved,
    )


@njit(cache=True)
def _better(this, best, a):  # type: ignore[no-untyped-def]
    """Whether a mapping costs less: cycles, and a part of the DRAM time that they hide."""
    return _cost(this, a) < _cost(best, a)


@njit(cache=True)
def _cost(this, a):  # type: ignore[no-untyped-def]
    cycles = this.busy + this.port + this.scale + this.dram
    return THRIFT * cycles + _transfer(a, this.w_moved + this.x_moved + this.y_made)


@njit(cache=True)
def _map_all(products, a, found):  # type: ignore[no-untyped-def]
    for row in range(products.shape[0]):
        v = products[row]
        p = Product(
            v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9],
            v[10], v[11], v[12], v[13], v[14], v[15], v[16], v[17], v[18], v[19], v[20], v[21],
        )  # fmt: skip
        best = map_product(p, a)
        for column in range(len(best)):
            found[row, column] = best[column]
