"""Weights and activations as arrays for the array libraries: what the torch and JAX backends share.

`pack` prepares weights once, in numpy; a `Library` says how arrays reach the library and has one
function per method. With G groups of at most L columns (padded to whole bytes; padded activations
are 0), these functions are

| method | arguments | result |
| --- | --- | --- |
| float | x float32 [m, G L], scale float32 [n, G], words, grid, tables | float32 [m, n] |
| integer | x int8 [m, G, L], words, grid, tables | integers [G, m, n] |
| planes | x [m, P, G, W], its weights [P], w [n, Q, G, W], its weights [Q] | integers [G, m, n] |
| lookup | x int8 [m, G, J, c], indices [n, G J / 2], signs, patterns [16, c] | integers [G, m, n] |

Weights stay in `words`, uint8 [n, G, bytes], as many codes to a byte as fit (8, 4, 2 or 1, lowest
bits first), and become numbers inside the product: row 256 grid + byte of `tables` holds the
numbers of a byte's codes, whatever the format. The grid of a group (uint8 [n, G]) is its selector
or its zero point. Pairs of OliVe lie in one byte, so that they need nothing else.

A plane is one bit of every code, W words to a group. For look-up, c = 4 binary weights, or c = 3
ternary ones less a sign, are an index of 4 bits, two to a byte; it points into the 16 sums that a
set of c activations can give, of which a group has J. `signs` are bits, uint8 [n, bytes], or None.

The float32 scaling of exact sums is `scaling.scaled` for every library: a compiler that contracted
its multiplications and additions would change bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from bitwright.kernels import integers, scaling
from bitwright.quant import Format, InputError, QuantizedTensor, olive_pair_values

#: Weights to an index of a table of sums.
_BINARY_SET, _TERNARY_SET = 4, 3


@dataclass(frozen=True)
class Library:
    """An array library on one device."""

    name: str  #: the backend's, for messages
    put: Callable[[np.ndarray], Any]  #: numpy to the library
    get: Callable[[Any], np.ndarray]  #: and back
    functions: Mapping[str, Callable[..., Any]]  #: by method; see the module
    word: type  #: numpy's type of a word of a bit plane
    number: Callable[[int, int], type]  #: numpy's type of integer weights of low .. high
    sum_bits: int  #: a sum of method integer must lie below 2**sum_bits
    panel: int  #: array elements that a function may make at a time; it gets fewer rows of weights


@dataclass(frozen=True)
class Codes:
    """Weights as bytes of codes, and the tables that decode them; see the module."""

    words: np.ndarray  #: uint8 [n, groups, bytes]
    grid: np.ndarray  #: uint8 [n, groups]
    tables: np.ndarray  #: float64 [grids * 256, codes of a byte]


def codes_of(w: QuantizedTensor) -> Codes:
    """A tensor of any format as bytes of codes."""
    width = _code_width(w.format)
    count = 8 // width
    padded = padded_groups(w.codes, w.group_size, count)
    parts = padded.reshape(w.n, padded.shape[1], -1, count)
    words = (parts << np.arange(0, 8, width, dtype=np.uint8)).sum(axis=3, dtype=np.uint8)
    grid = w.zero_points if w.zero_points is not None else w.selectors
    if grid is None:
        grid = np.zeros((w.n, w.groups), np.uint8)
    return Codes(words, np.ascontiguousarray(grid), byte_tables(w.format))


def _code_width(format: Format) -> int:
    return next(width for width in (1, 2, 4, 8) if width >= format.bits)


@cache
def byte_tables(format: Format) -> np.ndarray:
    """What the codes of each byte mean, float64 [grids * 256, codes of a byte], before the scale.

    >>> from bitwright.quant import FORMATS
    >>> byte_tables(FORMATS["ternary"])[0b11_00_01_00].tolist()  # the lowest code first
    [0.0, 1.0, 0.0, -1.0]
    >>> byte_tables(FORMATS["int3-asym"])[256 * 2 + 0x75].tolist()  # codes 5 and 7, zero point 2
    [3.0, 5.0]
    """
    byte = np.arange(256)
    if format.kind == "olive":
        pairs = [olive_pair_values(b & 15, b >> 4) for b in range(256)]
        return np.array(pairs, np.float64)
    if format.zero_point_bits:
        # For all zero points of so many bits, so that formats of a width share compiled code.
        zeros = np.arange(1 << format.bits)[:, None]
        grids = np.array(format.code_values()) - zeros * np.array(format.zero_weights())
    else:
        grids = np.array([format.code_values(selector) for selector in range(format.choices)])
    width = _code_width(format)
    codes = byte[:, None] >> np.arange(0, 8, width) & ((1 << width) - 1)
    # Three bits of a code lie in a field of four; no word holds more than the code.
    full = np.pad(grids, ((0, 0), (0, (1 << width) - grids.shape[1])))
    return full[:, codes].reshape(-1, 8 // width)


def padded_groups(values: np.ndarray, group_size: int, multiple: int = 1) -> np.ndarray:
    """[..., k] as [..., groups, columns], zeros behind each group's; columns a multiple.

    >>> padded_groups(np.array([[1, 2, 3, 4, 5]]), 3, 2).tolist()
    [[[1, 2, 3, 0], [4, 5, 0, 0]]]
    """
    k = values.shape[-1]
    size = min(group_size, k)
    groups = -(-k // size)
    front = [(0, 0)] * (values.ndim - 1)
    whole = np.pad(values, [*front, (0, groups * size - k)])
    whole = whole.reshape(*values.shape[:-1], groups, size)
    return np.pad(whole, [*front, (0, 0), (0, -size % multiple)])


def plane_words(planes: np.ndarray, group_size: int, word: type) -> np.ndarray:
    """Bits uint8 [rows, planes, k] as words [rows, planes, groups, words]; column 0 is bit 0."""
    padded = padded_groups(planes, group_size, 8 * np.dtype(word).itemsize)
    packed = np.packbits(padded, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view(np.dtype(word).newbyteorder("<")).astype(word)


# ------------------------------------------------------------------ products


def pack(w: QuantizedTensor, method: str, library: Library) -> "Packed":
    """Weights for a method of a library: "float", "integer", "planes" or "lookup"."""
    kinds: dict[str, Callable[[QuantizedTensor, Library], Packed]] = {
        "float": Float,
        "integer": Integer,
        "planes": Planes,
        "lookup": Lookup,
    }
    return kinds[method](w, library)


class Packed(ABC):
    """Weights of an array library: called with activations, gives y float32 [m, n]."""

    method: str

    def __init__(self, w: QuantizedTensor, library: Library, *rows: np.ndarray | None) -> None:
        """`rows` are arrays [n, ...], of which the function gets a panel of rows at a time."""
        self.shape, self.group_size = w.shape, min(w.group_size, w.k)
        self.library = library
        self._rows = [None if array is None else library.put(array) for array in rows]
        self.nbytes = sum(array.nbytes for array in rows if array is not None)

    @abstractmethod
    def __call__(self, x: Any) -> np.ndarray:
        """x is float32 [m, k], or a QuantizedTensor where sums are exact."""

    def _by_panels(
        self, elements: int, left: tuple[Any, ...], right: tuple[Any, ...]
    ) -> np.ndarray:
        """The function of all weights: its last axis is that of n.

        Args:
            elements: That the largest intermediate array has for one row of weights.
            left: Arguments before those of the rows.
            right: Arguments behind them.
        """
        function, n = self.library.functions[self.method], self.shape[0]
        step = max(1, self.library.panel // elements)
        parts = []
        for first in range(0, n, step):
            rows = self._rows
            if step < n:
                rows = [None if a is None else a[first : first + step] for a in rows]
            parts.append(self.library.get(function(*left, *rows, *right)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


class Float(Packed):
    """Real activations: weights are decoded, scaled with one rounding, and multiplied."""

    method = "float"

    def __init__(self, w: QuantizedTensor, library: Library) -> None:
        codes = codes_of(w)
        super().__init__(w, library, w.scales(), codes.words, codes.grid)
        self._tables = library.put(codes.tables.astype(np.float32))
        self._multiple = codes.tables.shape[1]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        padded = padded_groups(np.asarray(x, np.float32), self.group_size, self._multiple)
        rows = padded.reshape(len(padded), -1)
        return self._by_panels(rows.shape[1], (self.library.put(rows),), (self._tables,))


class _Exact(Packed):
    """A method with exact sums of groups, which corrections and scales turn into y."""

    def __init__(
        self,
        w: QuantizedTensor,
        library: Library,
        numbers: np.ndarray,
        bias: np.ndarray | None,
        *rows: np.ndarray | None,
    ) -> None:
        """Weights are `numbers` [n, k] less `bias` [n, groups] (None: 0)."""
        super().__init__(w, library, *rows)
        self.unit = 1.0
        none = np.zeros((w.n, w.groups), np.int32)
        self._bias = (none if bias is None else bias).astype(np.int64)
        self._w_sums = integers.group_sums(numbers, self.group_size).astype(np.int64)
        self._lengths = integers.group_lengths(w.k, self.group_size).astype(np.int64)
        self._scale = w.scales()

    def _finish(self, sums: np.ndarray, acts: integers.Activations, shift: int = 0) -> np.ndarray:
        """y from sums over numbers of activations that are `shift` above those of `acts`."""
        # In 64 bits: a correction can leave 32 where the sums themselves do not.
        bias = acts.bias.astype(np.int64) + shift
        totals = acts.sums.astype(np.int64) + shift * self._lengths
        exact = scaling.corrected(
            sums.astype(np.int64), bias, totals, self._bias, self._w_sums, self._lengths
        )
        return scaling.scaled(np.ascontiguousarray(exact), acts.scales, self._scale, self.unit)


class Integer(_Exact):
    """Integer activations: exact sums of products with the weights in units of the format."""

    method = "integer"

    def __init__(self, w: QuantizedTensor, library: Library) -> None:
        codes, unit = codes_of(w), integers.unit_of(w.format)
        super().__init__(w, library, integers.values_in_units(w), None, codes.words, codes.grid)
        self.unit = unit
        numbers = codes.tables / unit
        low, high = int(numbers.min()), int(numbers.max())
        largest = max(-low, high)
        longest = ((1 << library.sum_bits) - 1) // (128 * largest)
        if self.group_size > longest:
            raise InputError(
                f"groups of {self.group_size} columns of {w.format.name} could overflow "
                f"{library.sum_bits} bits on {library.name}; use groups of at most {longest}, or "
                "backend torch or numba"
            )
        self._tables = library.put(numbers.astype(library.number(low, high)))
        self._multiple = numbers.shape[1]

    def __call__(self, x: QuantizedTensor) -> np.ndarray:
        acts = integers.activations_of(x, self.group_size)
        padded = padded_groups(acts.numbers, self.group_size, self._multiple)
        elements = padded.shape[1] * padded.shape[2]
        sums = self._by_panels(elements, (self.library.put(padded),), (self._tables,))
        return self._finish(sums, acts)


class Planes(_Exact):
    """Integer activations and weights as bit planes: AND, popcount, shift and add."""

    method = "planes"

    def __init__(self, w: QuantizedTensor, library: Library) -> None:
        codes, weights, bias = integers.plane_numbers(w)
        planes = _bits(codes, len(weights))
        numbers = (planes * weights[:, None]).sum(axis=1, dtype=np.int32)
        words = plane_words(planes, min(w.group_size, w.k), library.word)
        super().__init__(w, library, numbers, bias, words)
        self._weights = library.put(weights.astype(library.word))

    def __call__(self, x: QuantizedTensor) -> np.ndarray:
        acts = integers.activations_of(x, self.group_size)
        codes, weights, _ = integers.plane_numbers(x)
        planes = _bits(codes, len(weights))
        words = plane_words(planes, self.group_size, self.library.word)
        left = (self.library.put(words), self.library.put(weights.astype(self.library.word)))
        sums = self._by_panels(words.size * len(self._weights), left, (self._weights,))
        # Planes are those of the codes: what `acts` took off them to fit a byte goes back.
        shifted = x.format.kind != "int-sym" and x.format.bits == 8
        return self._finish(sums, acts, 128 if shifted else 0)


class Lookup(_Exact):
    """Binary or ternary weights as indices of sums of activations."""

    method = "lookup"

    def __init__(self, w: QuantizedTensor, library: Library) -> None:
        ternary = w.format.name == "ternary"
        self._set = _TERNARY_SET if ternary else _BINARY_SET
        numbers = integers.values_in_units(w)
        group = min(w.group_size, w.k)
        sets = padded_groups(numbers, group, 2 * self._set).reshape(w.n, -1, self._set)
        signs = None
        if ternary:
            # In base 3; a negative index is the sign of the positive one's digits changed.
            index = sets @ np.array([9, 3, 1], np.int32)
            signs = np.packbits(index < 0, axis=1, bitorder="little")
            index = np.abs(index)
        else:
            index = (sets > 0) @ np.array([1, 2, 4, 8], np.int32)
        indices = (index[:, ::2] | index[:, 1::2] << 4).astype(np.uint8)
        super().__init__(w, library, numbers, None, indices, signs)
        self._patterns = library.put(_TERNARY_PATTERNS if ternary else _BINARY_PATTERNS)

    def __call__(self, x: QuantizedTensor) -> np.ndarray:
        acts = integers.activations_of(x, self.group_size)
        padded = padded_groups(acts.numbers, self.group_size, 2 * self._set)
        sets = padded.reshape(*padded.shape[:2], -1, self._set)
        elements = sets.size // self._set
        sums = self._by_panels(elements, (self.library.put(sets),), (self._patterns,))
        return self._finish(sums, acts)


#: Signs of 4 binary weights by index: bit i is the i-th, 1 for +1.
_BINARY_PATTERNS = (2 * (np.arange(16)[:, None] >> np.arange(4) & 1) - 1).astype(np.int32)
#: Ternary digits of 0 .. 13, the first with weight 9; 14 and 15 are not used.
_TERNARY_PATTERNS = (
    (np.arange(16)[:, None] + np.array([4, 1, 0])) // np.array([9, 3, 1]) + 1
).astype(np.int32) % 3 - 1


def _bits(codes: np.ndarray, count: int) -> np.ndarray:
    """The bits of codes, lowest first: uint8 0 or 1 [rows, count, k]."""
    return codes[:, None] >> np.arange(count, dtype=np.uint8)[:, None] & np.uint8(1)
