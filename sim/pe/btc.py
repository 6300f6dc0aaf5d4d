"""The Binary-TensorCore PE: integers of any width as bit planes, by AND and popcount.

ABQ-LLM (Zeng et al., AAAI 2025, arXiv 2408.08554) splits p-bit activations and q-bit weights into
bit planes and multiplies every plane of one with every plane of the other on a GPU's binary tensor
core. The paper has no hardware of its own; this PE is built after its decomposition:

    sum_k x_k w_k = sum_ij a_i b_j popcount(X_i AND W_j)

with a_i = 2**i and b_j = 2**j, the top plane of a two's complement operand being negative. Zero
points, which the paper's kernels leave out, are corrected exactly outside the PE by row sums.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit, prange

from bitwright.quant import FORMATS, Format, InputError, QuantizedTensor, quantize

from .dot import (
    DotStream,
    DotUnit,
    IntAccumulator,
    Ports,
    ZeroPoints,
    check_length,
    group_bounds,
    group_sums,
    signed,
)
from .integer import check_shape

WORD = 32  #: bits of a port that carries part of a plane
_BLOCK = 64  #: outputs that the numba model works on side by side
#: int2b-asym: the five levels of ABQ-LLM's bit balance ("W2*") take three planes.
_FORMATS = (
    *(f"int{bits}-{kind}" for bits in range(2, 9) for kind in ("sym", "asym")),
    "int2b-asym",
)


@dataclass(frozen=True, slots=True)
class BtcPE(DotUnit):
    """A slice of K at a time: AND, popcount, shift, accumulate.

    Serial (`unrolled` None): one plane pair a cycle. Ports: `x0 ..` and `w0 ..`, the planes in
    words of 32 bits, element i of a slice in bit i % 32 of word i // 32; `shift` 4, which is i + j;
    `negative` 1; `last` 1; `y` 32. A slice of p-bit activations and q-bit weights takes p * q
    steps.

    Unrolled to (p, q): all pairs in a cycle. Ports: `x{i}_0 ..`, `w{j}_0 ..` for plane i and j;
    `x_signed`, `w_signed` 1, whether the top plane is negative; `last`, `y` as before.

    Overflow of the accumulator wraps.

    >>> pe = BtcPE(k_slice=8)
    >>> pe.partial({"x0": 0b1110, "w0": 0b0111, "shift": 3, "negative": 1})  # -(2 << 3)
    (-16, 0)
    """

    k_slice: int = 128  #: 1 .. 32, or a multiple of 32 up to 512
    unrolled: tuple[int, int] | None = None  #: activation and weight planes, 1 .. 8 each
    act_bits: int = 8  #: to which `gemm` quantises activations that are not quantised yet, 2 .. 8
    stages: int = 2
    accumulator: IntAccumulator = field(default_factory=IntAccumulator)

    def __post_init__(self) -> None:
        check_shape(1, self.stages)
        if not (1 <= self.k_slice <= WORD or (self.k_slice % WORD == 0 and self.k_slice <= 512)):
            raise InputError(
                f"k_slice (={self.k_slice}) must be in 1 .. 32 or a multiple of 32 up to 512"
            )
        if self.unrolled and not all(1 <= planes <= 8 for planes in self.unrolled):
            raise InputError(f"unrolled (={self.unrolled}) must be two numbers of planes in 1 .. 8")
        if not 2 <= self.act_bits <= 8:
            raise InputError(f"act_bits (={self.act_bits}) must be in 2 .. 8")

    @property
    def name(self) -> str:
        """`btc`, or `btc-w2a4` unrolled to two weight and four activation planes."""
        size = "" if self.k_slice == 128 else f"-k{self.k_slice}"
        return f"btc{size}" + (f"-w{self.unrolled[1]}a{self.unrolled[0]}" if self.unrolled else "")

    @property
    def lanes(self) -> int:
        return self.k_slice

    @property
    def words(self) -> tuple[int, ...]:
        """Widths of the ports that carry a plane."""
        return (self.k_slice,) if self.k_slice < WORD else (WORD,) * (self.k_slice // WORD)

    @property
    def ports(self) -> Mapping[str, int]:
        words = list(enumerate(self.words))
        if self.unrolled is None:
            planes = {f"{side}{i}": bits for side in "xw" for i, bits in words}
            return {**planes, "shift": 4, "negative": 1}
        planes = {
            f"{side}{plane}_{i}": bits
            for side, count in zip("xw", self.unrolled, strict=True)
            for plane in range(count)
            for i, bits in words
        }
        return {**planes, "x_signed": 1, "w_signed": 1}

    @property
    def limits(self) -> dict[str, tuple[int, int]]:
        return {} if self.unrolled else {"shift": (0, 14)}

    def _pairs(self) -> list[tuple[int, int]]:
        assert self.unrolled is not None
        return [(i, j) for i in range(self.unrolled[0]) for j in range(self.unrolled[1])]

    def partial(self, step: Mapping[str, int]) -> tuple[int, int]:
        words = range(len(self.words))
        if self.unrolled is None:
            ones = sum((step[f"x{i}"] & step[f"w{i}"]).bit_count() for i in words)
            return (-1) ** step["negative"] * (ones << step["shift"]), 0
        total = 0
        for i, j in self._pairs():
            ones = sum((step[f"x{i}_{word}"] & step[f"w{j}_{word}"]).bit_count() for word in words)
            top_x = step["x_signed"] and i == self.unrolled[0] - 1
            top_w = step["w_signed"] and j == self.unrolled[1] - 1
            total += (-1) ** (top_x ^ top_w) * (ones << i + j)
        return total, 0

    def partials(self, ports: Ports) -> tuple[np.ndarray, np.ndarray]:
        words = range(len(self.words))

        def ones(x: str, w: str) -> np.ndarray:
            both = [ports[f"{x}{i}"].astype(np.uint32) & ports[f"{w}{i}"] for i in words]
            return np.bitwise_count(np.stack(both)).sum(0, np.int64)

        if self.unrolled is None:
            sign = 1 - 2 * ports["negative"].astype(np.int64)
            total = sign * (ones("x", "w") << ports["shift"].astype(np.int64))
            return total, np.zeros_like(total)
        tops = self.unrolled[0] - 1, self.unrolled[1] - 1
        total = np.zeros(len(ports["x_signed"]), np.int64)
        for i, j in self._pairs():
            negative = (ports["x_signed"] & (i == tops[0])) ^ (ports["w_signed"] & (j == tops[1]))
            sign = 1 - 2 * negative.astype(np.int64)
            total += sign * (ones(f"x{i}_", f"w{j}_") << i + j)
        return total, np.zeros_like(total)

    # -------------------------------------------------------------- tensors

    @property
    def act_format(self) -> str:
        return f"int{self.unrolled[0] if self.unrolled else self.act_bits}-asym"

    @property
    def act_formats(self) -> tuple[str, ...]:
        if self.unrolled is None:
            return _FORMATS
        return tuple(name for name in _FORMATS if FORMATS[name].bits == self.unrolled[0])

    @property
    def weight_formats(self) -> tuple[str, ...]:
        return _FORMATS

    def step_cycles(self, fmt: Format | None) -> int:
        """Cycles of a slice: p * q, or 1 unrolled."""
        self.check_format(fmt)
        assert fmt is not None
        return 1 if self.unrolled else self.act_bits * fmt.bits

    def cycles(self, k: int, dots: int = 1, weight_bits: int = 4) -> int:
        """As `DotUnit.cycles`, for `weight_bits` weight and `act_bits` activation planes."""
        pairs = 1 if self.unrolled else self.act_bits * weight_bits
        return dots * -(-k // self.k_slice) * pairs - 1 + self.stages

    def check(self, w: QuantizedTensor) -> None:
        self.check_format(w.format)
        if self.unrolled and w.format.bits != self.unrolled[1]:
            raise InputError(
                f"the {self.name} PE has {self.unrolled[1]} weight planes and cannot run weight "
                f"format {w.format.name}; quantise to {self.unrolled[1]} bits"
            )
        planes = self.unrolled[0] if self.unrolled else 8
        largest = ((1 << planes) - 1) * ((1 << w.format.bits) - 1)
        longest = ((1 << self.accumulator.bits - 1) - 1) // largest
        check_length(self.name, self.accumulator.bits, longest, min(w.group_size, w.k))

    def activations(self, x: Any, w: QuantizedTensor) -> QuantizedTensor:
        """Activations of any integer format; what is not quantised yet, per row and asymmetric.

        That is ABQ-LLM's rule for activations (per token, dynamic, asymmetric).
        """
        if not isinstance(x, QuantizedTensor):
            x = quantize(x, self.act_format, group_size=np.shape(x)[-1])
        if x.format.name not in self.act_formats:
            own = " and ".join(self.act_formats) if self.unrolled else "int2 .. int8"
            raise InputError(
                f"the {self.name} PE cannot run activation format {x.format.name}; it runs {own}"
            )
        if x.k != w.k or (x.groups > 1 and x.group_size != w.group_size):
            raise InputError(
                f"x has k = {x.k} in groups of {x.group_size}; it must have k = {w.k}, in one "
                f"group or in groups of {w.group_size}"
            )
        return x

    def tensor_stream(self, x: QuantizedTensor, w: QuantizedTensor) -> DotStream:
        x_words = _words(slices(x, w.group_size, self.k_slice), self.words)
        w_words = _words(slices(w, w.group_size, self.k_slice), self.words)
        m, p, steps, words = x_words.shape
        n, q = w_words.shape[:2]
        lengths = [-(-(b - a) // self.k_slice) for a, b in group_bounds(w.k, w.group_size)]
        ends = np.zeros(steps, bool)
        ends[np.cumsum(lengths) - 1] = True
        ports: dict[str, np.ndarray] = {}
        negative_x, negative_w = x.format.kind == "int-sym", w.format.kind == "int-sym"
        if self.unrolled:
            for i in range(p):
                for word in range(words):
                    ports[f"x{i}_{word}"] = np.repeat(x_words[:, i, :, word], n, 0).reshape(-1)
            for j in range(q):
                for word in range(words):
                    ports[f"w{j}_{word}"] = np.tile(w_words[:, j, :, word].reshape(-1), m)
            count = m * n * steps
            ports["x_signed"] = np.full(count, negative_x, np.uint8)
            ports["w_signed"] = np.full(count, negative_w, np.uint8)
            return DotStream(ports, np.tile(ends, m * n))
        # Axes: row, channel, slice, plane i, plane j; the pairs of a slice follow each other.
        shape = (m, n, steps, p, q)
        for word in range(words):
            left = x_words[:, :, :, word].transpose(0, 2, 1)[:, None, :, :, None]
            right = w_words[:, :, :, word].transpose(0, 2, 1)[None, :, :, None, :]
            ports[f"x{word}"] = np.broadcast_to(left, shape).reshape(-1)
            ports[f"w{word}"] = np.broadcast_to(right, shape).reshape(-1)
        plane_x, plane_w = np.meshgrid(np.arange(p), np.arange(q), indexing="ij")
        minus = (negative_x & (plane_x == p - 1)) ^ (negative_w & (plane_w == q - 1))
        ports["shift"] = np.broadcast_to((plane_x + plane_w).astype(np.uint8), shape).reshape(-1)
        ports["negative"] = np.broadcast_to(minus.astype(np.uint8), shape).reshape(-1)
        last = np.zeros(shape, bool)
        last[:, :, ends, p - 1, q - 1] = True
        return DotStream(ports, last.reshape(-1))

    def results(self, x: QuantizedTensor, w: QuantizedTensor) -> Iterator[np.ndarray]:
        x_words = _plane_words64(x, w.group_size)
        blocks = -(-w.n // _BLOCK)
        padded = np.zeros((blocks * _BLOCK, w.format.bits, x_words.shape[2]), np.uint64)
        padded[: w.n] = _plane_words64(w, w.group_size)
        # [blocks, planes, words, outputs]: outputs side by side, for vector instructions.
        w_words = padded.reshape(blocks, _BLOCK, *padded.shape[1:]).transpose(0, 2, 3, 1).copy()
        signs = x.format.kind == "int-sym", w.format.kind == "int-sym"
        word = 0
        for start, stop in group_bounds(w.k, w.group_size):
            end = word - (start - stop) // 64
            out = np.empty((x.n, blocks * _BLOCK), np.int32)
            _multiply_planes(x_words, w_words, word, end, *signs, out)
            word = end
            yield out[:, : w.n]

    def zero_points(self, x: QuantizedTensor, w: QuantizedTensor) -> ZeroPoints:
        """Row sums: sum XW - zw sum X - zx sum W + K zx zw, in exact integers."""
        zero_x, zero_w = _zeros(x, w.groups), _zeros(w, w.groups)
        length = np.array([stop - start for start, stop in group_bounds(w.k, w.group_size)])
        sum_x = group_sums(_integers(x), w.group_size)
        sum_w = group_sums(_integers(w), w.group_size)
        return ZeroPoints(sum_x, zero_w, zero_x, sum_w - length * zero_w)


def _integers(t: QuantizedTensor) -> np.ndarray:
    """The integers that planes carry, int64 [rows, k]; zero points are still in them."""
    codes = t.codes.astype(np.int64)
    return signed(codes, t.format.bits) if t.format.kind == "int-sym" else codes


def _zeros(t: QuantizedTensor, groups: int) -> np.ndarray:
    """Zero points int64 [rows, groups]; 0 for symmetric formats."""
    if t.zero_points is None:
        return np.zeros((t.n, groups), np.int64)
    return np.broadcast_to(t.zero_points.astype(np.int64), (t.n, groups))


def slices(t: QuantizedTensor, group_size: int, k_slice: int) -> np.ndarray:
    """Bit planes, uint8 0 or 1 [rows, planes, slices, k_slice]; groups are padded with zeros."""
    parts = []
    for start, stop in group_bounds(t.k, group_size):
        pad = -(stop - start) % k_slice
        parts.append(np.pad(t.codes[:, start:stop], ((0, 0), (0, pad))))
    codes = np.concatenate(parts, axis=1).reshape(t.n, -1, k_slice)
    planes = np.arange(t.format.bits)[None, :, None, None]
    return (codes[:, None] >> planes & 1).astype(np.uint8)


def _words(planes: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    """The planes as port words, uint32 [..., words]."""
    weights = 1 << np.arange(widths[0], dtype=np.uint64)
    grouped = planes.reshape(*planes.shape[:-1], len(widths), widths[0])
    return (grouped * weights).sum(-1).astype(np.uint32)


def _plane_words64(t: QuantizedTensor, group_size: int) -> np.ndarray:
    """uint64 [rows, planes, words], groups padded to whole words."""
    bits = slices(t, group_size, 64)
    packed = np.packbits(bits, axis=-1, bitorder="little")
    return packed.view("<u8").astype(np.uint64).reshape(t.n, t.format.bits, -1)


@njit(cache=True, inline="always")
def _popcount(v):  # type: ignore[no-untyped-def]
    """Ones of a 64-bit word; LLVM recognises the pattern and uses the machine's instruction."""
    v = v - ((v >> np.uint64(1)) & np.uint64(0x5555555555555555))
    v = (v & np.uint64(0x3333333333333333)) + ((v >> np.uint64(2)) & np.uint64(0x3333333333333333))
    v = (v + (v >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (v * np.uint64(0x0101010101010101)) >> np.uint64(56)


@njit(cache=True)
def _multiply_block(x, w, start, stop, x_signed, w_signed, out):  # type: ignore[no-untyped-def]
    """x uint64 [m, p, words], w uint64 [q, words, block]; out int32 [m, block]."""
    acc = np.empty(_BLOCK, np.uint64)  # modulo 2**64, like the accumulator modulo 2**32
    p, q = x.shape[1], w.shape[0]
    for i in range(x.shape[0]):
        for j in range(_BLOCK):
            acc[j] = np.uint64(0)
        for a in range(p):
            for b in range(q):
                negative = (x_signed and a == p - 1) != (w_signed and b == q - 1)
                shift = np.uint64(a + b)
                for word in range(start, stop):
                    plane = x[i, a, word]
                    if negative:
                        for j in range(_BLOCK):
                            acc[j] -= _popcount(plane & w[b, word, j]) << shift
                    else:
                        for j in range(_BLOCK):
                            acc[j] += _popcount(plane & w[b, word, j]) << shift
        for j in range(_BLOCK):
            out[i, j] = np.int32(acc[j])


@njit(cache=True, parallel=True)
def _multiply_planes(x, w, start, stop, x_signed, w_signed, out):  # type: ignore[no-untyped-def]
    """One group, words start .. stop: w uint64 [blocks, q, words, block]; out int32 [m, n]."""
    for block in prange(w.shape[0]):
        columns = out[:, block * _BLOCK : (block + 1) * _BLOCK]
        _multiply_block(x, w[block], start, stop, x_signed, w_signed, columns)
