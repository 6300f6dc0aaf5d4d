"""Vector values of 512 bits for numba: types, and the operations that the kernels need.

numba compiles loops over arrays well, but it cannot be asked for one particular instruction, and
LLVM does not find byte shuffles and four-way byte products by itself. Here are types for whole
vectors (`I8`, `I16`, `I32`, `I64`, `F32`) and operations on them, to be called in compiled code.

Each operation is LLVM's generic one, or, where that would be slow, the machine's own instruction:

| `LEVEL` | needs | what its own instructions are used for |
| --- | --- | --- |
| amx | the same, AMX INT8, and the system's leave | `amx.py`; else as avx512 |
| avx512 | AVX-512 F, BW, VL, VNNI | `dot_u8s8`, `lookup_bytes`, `lookup_floats`, at 512 bits |
| avx2 | AVX2, FMA | the same in halves of 256 bits |
| portable | LLVM | nothing: any processor |

All levels compute the same to the last bit. `BITWRIGHT_SIMD` takes a lower level than the
processor has; compiled code is then not cached.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Mapping
from typing import Any

from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.core.extending import intrinsic, models, register_model

from bitwright.quant import InputError

BYTES = 64  #: of a vector; arrays are aligned to it
_LEVELS = ("portable", "avx2", "avx512", "amx")
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512vnni")
_NEEDS = {
    "amx": (*_AVX512, "amx-tile", "amx-int8"),
    "avx512": _AVX512,
    "avx2": ("avx2", "fma"),
    "portable": (),
}
_I1, _BYTE, _WORD = ir.IntType(1), ir.IntType(8), ir.IntType(32)


def best_level(features: Mapping[str, bool]) -> str:
    """The highest level that a processor has.

    >>> best_level({"avx2": True, "fma": True}), best_level({"neon": True})
    ('avx2', 'portable')
    """
    return next(
        level for level in _NEEDS if all(features.get(name, False) for name in _NEEDS[level])
    )


def chosen_level(wish: str | None, best: str) -> str:
    """The level to compile for: `wish`, or the best one.

    Raises:
        InputError: No level, or one that the processor does not have.
    """
    if wish is None:
        return best
    if wish not in _LEVELS[: _LEVELS.index(best) + 1]:
        have = ", ".join(_LEVELS[: _LEVELS.index(best) + 1])
        raise InputError(f"BITWRIGHT_SIMD is {wish!r}; this processor has {have}; or unset it")
    return wish


def _features() -> dict[str, bool]:
    """What the processor has and the system lets this process use."""
    features = dict(binding.get_host_cpu_features())
    if features.get("amx-tile") and not _tiles_allowed():
        features["amx-tile"] = False
    return features


def _tiles_allowed() -> bool:
    """Ask Linux for the state of AMX's tiles, which it keeps for processes that asked only."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # asm/unistd_64.h, asm/prctl.h
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


BEST = best_level(_features())
LEVEL = chosen_level(os.environ.get("BITWRIGHT_SIMD"), BEST)
TILES = LEVEL == "amx"  #: whether `amx.py` runs
WIDE = LEVEL in ("avx512", "amx")  #: whether vectors are single registers


def jit(**options: Any) -> Callable[[Any], Any]:
    """`numba.njit`, cached unless the level was lowered: a cache does not know of levels."""
    return njit(cache=LEVEL == BEST, error_model="numpy", **options)


#: Always part of its caller, so that constant arguments are constants in it.
inlined = jit(forceinline=True)


class VectorType(types.Type):
    """numba's type of a vector of `count` elements."""

    def __init__(self, element: ir.Type, count: int) -> None:
        self.llvm = ir.VectorType(element, count)
        super().__init__(f"Vector({element} x {count})")


register_model(VectorType)(
    type(
        "_VectorModel",
        (models.PrimitiveModel,),
        {"__init__": lambda self, dmm, fe: models.PrimitiveModel.__init__(self, dmm, fe, fe.llvm)},
    )
)

I8 = VectorType(_BYTE, 64)
I16 = VectorType(ir.IntType(16), 32)
I32 = VectorType(_WORD, 16)
I64 = VectorType(ir.IntType(64), 8)
F32 = VectorType(ir.FloatType(), 16)
_INDEX = types.intp


# ------------------------------------------------------------------ building blocks


def address(ctx: Any, b: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """The address `offset` bytes behind the start of a contiguous array."""
    data = ctx.make_array(array_type)(ctx, b, array).data
    return b.gep(b.bitcast(data, _BYTE.as_pointer()), [offset])


def _spread(b: Any, scalar: Any, vector: ir.VectorType) -> Any:
    none = ir.Constant(vector, ir.Undefined)
    one = b.insert_element(none, scalar, _WORD(0))
    return b.shuffle_vector(one, none, _picks([0] * vector.count))


def _picks(lanes: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(_WORD, len(lanes)), lanes)


def call(b: Any, name: str, result: ir.Type, *args: Any) -> Any:
    function = ir.FunctionType(result, [arg.type for arg in args])
    return b.call(cgutils.get_or_insert_function(b.module, function, name), args)


def _halves(b: Any, v: Any) -> list[Any]:
    none, half = ir.Constant(v.type, ir.Undefined), v.type.count // 2
    return [b.shuffle_vector(v, none, _picks(list(range(i, i + half)))) for i in (0, half)]


def _joined(b: Any, low: Any, high: Any) -> Any:
    return b.shuffle_vector(low, high, _picks(list(range(2 * low.type.count))))


def _loader(vector: VectorType) -> Any:
    @intrinsic
    def load(typing: Any, array: Any, offset: Any) -> Any:
        def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            place = address(ctx, b, sig.args[0], args[0], args[1])
            return b.load(b.bitcast(place, vector.llvm.as_pointer()), align=1)

        return vector(array, _INDEX), code

    return load


def _operation(vectors: tuple[Any, ...], result: Any, emit: Callable[..., Any]) -> Any:
    """An intrinsic of one to three arguments of the given types; `emit(builder, *arguments)`."""

    def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return emit(b, *args)

    signature = result(*vectors)
    if len(vectors) == 1:

        @intrinsic
        def one(typing: Any, x: Any) -> Any:
            return signature, code

        return one
    if len(vectors) == 2:

        @intrinsic
        def two(typing: Any, x: Any, y: Any) -> Any:
            return signature, code

        return two

    @intrinsic
    def three(typing: Any, x: Any, y: Any, z: Any) -> Any:
        return signature, code

    return three


# ------------------------------------------------------------------ memory

#: load_..(array, offset) -> the 64 bytes from `offset` bytes behind the array's start.
load_i8, load_i32, load_i64, load_f32 = (_loader(vector) for vector in (I8, I32, I64, F32))


@intrinsic
def store(typing: Any, array: Any, offset: Any, vector: Any) -> Any:
    """Write a vector's 64 bytes from `offset` bytes behind the array's start."""

    def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        place = address(ctx, b, sig.args[0], args[0], args[1])
        b.store(args[2], b.bitcast(place, args[2].type.as_pointer()), align=1)
        return ctx.get_dummy_value()

    return types.void(array, _INDEX, vector), code


@intrinsic
def load_short(typing: Any, array: Any, offset: Any) -> Any:
    """16 int16 from `offset` bytes behind the array's start, as an `I32`."""

    def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        place = address(ctx, b, sig.args[0], args[0], args[1])
        short = ir.VectorType(ir.IntType(16), 16)
        return b.sext(b.load(b.bitcast(place, short.as_pointer()), align=1), I32.llvm)

    return I32(array, _INDEX), code


def _repeater(bits: int, vector: VectorType) -> Any:
    @intrinsic
    def repeat(typing: Any, array: Any, offset: Any) -> Any:
        def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            place = address(ctx, b, sig.args[0], args[0], args[1])
            unit = ir.IntType(bits)
            one = b.load(b.bitcast(place, unit.as_pointer()), align=1)
            return b.bitcast(_spread(b, one, ir.VectorType(unit, 512 // bits)), vector.llvm)

        return vector(array, _INDEX), code

    return repeat


#: repeat_..(array, offset) -> the bytes from `offset` on, so often that they fill the vector.
repeat_4_bytes = _repeater(32, I8)
repeat_8_bytes = _repeater(64, I64)
repeat_16_bytes = _repeater(128, I8)
repeat_float = _repeater(32, F32)


@intrinsic
def fetch(typing: Any, array: Any, offset: Any) -> Any:
    """Ask the memory for what lies `offset` bytes behind the array's start."""

    def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        place = address(ctx, b, sig.args[0], args[0], args[1])
        flags = [_WORD(0), _WORD(3), _WORD(1)]  # for reading, into all levels, data
        call(b, "llvm.prefetch.p0", ir.VoidType(), place, *flags)
        return ctx.get_dummy_value()

    return types.void(array, _INDEX), code


# ------------------------------------------------------------------ one value in all elements


def _splat(vector: VectorType, scalar: Any) -> Any:
    def emit(b: Any, x: Any) -> Any:
        if x.type != vector.llvm.element:
            x = b.trunc(x, vector.llvm.element)
        return _spread(b, x, vector.llvm)

    return _operation((scalar,), vector, emit)


splat_i8, splat_i16, splat_i32, splat_i64 = (
    _splat(vector, types.int64) for vector in (I8, I16, I32, I64)
)
splat_f32 = _splat(F32, types.float32)


# ------------------------------------------------------------------ element by element


def _binary(vector: VectorType, name: str) -> Any:
    return _operation((vector, vector), vector, lambda b, x, y: getattr(b, name)(x, y))


def _shift(vector: VectorType, name: str) -> Any:
    def emit(b: Any, x: Any, count: Any) -> Any:
        element = vector.llvm.element
        count = count if count.type == element else b.trunc(count, element)
        return getattr(b, name)(x, _spread(b, count, vector.llvm))

    return _operation((vector, types.int64), vector, emit)


and_i8, or_i8, add_i8 = (_binary(I8, name) for name in ("and_", "or_", "add"))
shr_i8, shl_i8 = _shift(I8, "lshr"), _shift(I8, "shl")
add_i16, sub_i16, xor_i16 = (_binary(I16, name) for name in ("add", "sub", "xor"))
add_i32, sub_i32, mul_i32 = (_binary(I32, name) for name in ("add", "sub", "mul"))
and_i32, or_i32 = _binary(I32, "and_"), _binary(I32, "or_")
shr_i32, shl_i32 = _shift(I32, "lshr"), _shift(I32, "shl")
sar_i32 = _shift(I32, "ashr")  #: keeps the sign
add_i64, sub_i64, mul_i64, and_i64 = (_binary(I64, name) for name in ("add", "sub", "mul", "and_"))
shl_i64 = _shift(I64, "shl")
add_f32, sub_f32, mul_f32, div_f32 = (
    _binary(F32, name) for name in ("fadd", "fsub", "fmul", "fdiv")
)


def _bound(predicate: str) -> Any:
    return _operation(
        (F32, F32), F32, lambda b, x, y: b.select(b.fcmp_ordered(predicate, x, y), x, y)
    )


min_f32, max_f32 = _bound("<"), _bound(">")


@intrinsic
def store_bytes(typing: Any, array: Any, offset: Any, vector: Any) -> Any:
    """Write the low bytes of an `I32` as 16 bytes, from `offset` bytes behind the start."""

    def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        place = address(ctx, b, sig.args[0], args[0], args[1])
        small = b.trunc(args[2], ir.VectorType(_BYTE, 16))
        b.store(small, b.bitcast(place, small.type.as_pointer()), align=1)
        return ctx.get_dummy_value()

    return types.void(array, _INDEX, I32), code


#: x * y + z with one rounding.
fma_f32 = _operation(
    (F32, F32, F32), F32, lambda b, x, y, z: call(b, "llvm.fma.v16f32", F32.llvm, x, y, z)
)
#: The nearest float32, ties to even.
to_f32 = _operation((I32,), F32, lambda b, x: b.sitofp(x, F32.llvm))
popcount_i64 = _operation((I64,), I64, lambda b, x: call(b, "llvm.ctpop.v8i64", I64.llvm, x))


def _view(source: VectorType, target: VectorType) -> Any:
    return _operation((source,), target, lambda b, x: b.bitcast(x, target.llvm))


i8_as_i32, i32_as_i8 = _view(I8, I32), _view(I32, I8)
f32_as_i32, i32_as_f32 = _view(F32, I32), _view(I32, F32)


# ------------------------------------------------------------------ with instructions of their own


def _dot_u8s8(b: Any, total: Any, x: Any, y: Any) -> Any:
    if WIDE:
        words = [b.bitcast(v, I32.llvm) for v in (x, y)]
        return call(b, "llvm.x86.avx512.vpdpbusd.512", I32.llvm, total, *words)
    if LEVEL == "avx2":
        # The instruction that multiplies bytes saturates sums of two products at 16 bits. With x
        # cut into its low 7 bits and its top bit, no sum can reach that.
        low, top = (b.and_(x, ir.Constant(I8.llvm, [mask] * 64)) for mask in (0x7F, 0x80))
        top = b.lshr(top, ir.Constant(I8.llvm, [1] * 64))
        short, half = ir.VectorType(ir.IntType(16), 16), ir.VectorType(_WORD, 8)
        ones = ir.Constant(short, [1] * 16)
        parts = []
        for a_low, a_top, c in zip(_halves(b, low), _halves(b, top), _halves(b, y), strict=True):
            sums = []
            for a in (a_low, a_top):
                pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", short, a, c)
                sums.append(call(b, "llvm.x86.avx2.pmadd.wd", half, pairs, ones))
            parts.append(b.add(sums[0], b.shl(sums[1], ir.Constant(half, [1] * 8))))
        return b.add(total, _joined(b, *parts))
    none = ir.Constant(I8.llvm, ir.Undefined)
    for byte in range(4):
        picks = _picks(list(range(byte, 64, 4)))
        left = b.zext(b.shuffle_vector(x, none, picks), I32.llvm)
        right = b.sext(b.shuffle_vector(y, none, picks), I32.llvm)
        total = b.add(total, b.mul(left, right))
    return total


#: dot_u8s8(total, x, y): to each of 16 sums, the four products of unsigned bytes of x and signed
#: bytes of y in its place; exact, and modulo 2**32.
dot_u8s8 = _operation((I32, I8, I8), I32, _dot_u8s8)


def _lookup_bytes(b: Any, table: Any, index: Any) -> Any:
    if WIDE:
        return call(b, "llvm.x86.avx512.pshuf.b.512", I8.llvm, table, index)
    if LEVEL == "avx2":
        half = ir.VectorType(_BYTE, 32)
        pairs = zip(_halves(b, table), _halves(b, index), strict=True)
        return _joined(b, *(call(b, "llvm.x86.avx2.pshuf.b", half, *pair) for pair in pairs))
    result = ir.Constant(I8.llvm, ir.Undefined)
    for lane in range(64):
        wide = b.zext(b.extract_element(index, _WORD(lane)), _WORD)
        place = b.add(wide, _WORD(lane // 16 * 16))
        result = b.insert_element(result, b.extract_element(table, place), _WORD(lane))
    return result


#: lookup_bytes(table, index): bytes of the table, whose 16 entries stand in it four times, by
#: indices 0 .. 15.
lookup_bytes = _operation((I8, I8), I8, _lookup_bytes)


def _lookup_floats(b: Any, table: Any, index: Any) -> Any:
    if WIDE:
        return call(b, "llvm.x86.avx512.permvar.sf.512", F32.llvm, table, index)
    if LEVEL == "avx2":
        half, low_high = ir.VectorType(ir.FloatType(), 8), _halves(b, table)
        parts = []
        for places in _halves(b, index):
            low, high = (call(b, "llvm.x86.avx2.permps", half, t, places) for t in low_high)
            eight = b.and_(places, ir.Constant(places.type, [8] * 8))
            is_high = b.icmp_unsigned("!=", eight, ir.Constant(places.type, [0] * 8))
            parts.append(b.select(is_high, high, low))
        return _joined(b, *parts)
    result = ir.Constant(F32.llvm, ir.Undefined)
    for lane in range(16):
        place = b.and_(b.extract_element(index, _WORD(lane)), _WORD(15))
        result = b.insert_element(result, b.extract_element(table, place), _WORD(lane))
    return result


#: lookup_floats(table, index): elements of the table by the low four bits of 16 indices.
lookup_floats = _operation((F32, I32), F32, _lookup_floats)


#: lookup_float_pairs(low, index, high): elements of two tables, by the low five bits of 16 indices.
#: At `WIDE` levels only.
lookup_float_pairs = _operation(
    (F32, I32, F32),
    F32,
    lambda b, *args: call(b, "llvm.x86.avx512.vpermi2var.ps.512", F32.llvm, *args),
)


@intrinsic
def select_by_bit(typing: Any, index: Any, bit: Any, one: Any, zero: Any) -> Any:
    """Elements of `one` where a bit of 16 indices is 1, of `zero` elsewhere."""

    def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        count = _spread(b, b.trunc(args[1], _WORD), I32.llvm)
        chosen = b.trunc(b.lshr(args[0], count), ir.VectorType(_I1, 16))
        return b.select(chosen, args[2], args[3])

    return F32(I32, types.int64, F32, F32), code


def _behind(b: Any, index: Any, value: Any) -> Any:
    """No instruction: what stands for one takes both and gives the index."""
    if not WIDE:  # no registers of 512 bits
        return index
    kind = ir.FunctionType(I32.llvm, [I32.llvm, F32.llvm])
    return b.asm(kind, "", "=v,0,v", [index, value], False)


#: The index, not to be used before a value is known: orders work that has no order by itself.
behind = _operation((I32, F32), I32, _behind)


@intrinsic
def add_where(typing: Any, vector: Any, mask: Any, more: Any) -> Any:
    """The bytes of `vector`, plus those of `more` whose bits are 1 in a mask of 64 bits."""

    def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        chosen = b.bitcast(args[1], ir.VectorType(_I1, 64))
        return b.select(chosen, b.add(args[0], args[2]), args[0])

    return I8(I8, types.int64, I8), code


@intrinsic
def gather_floats(typing: Any, array: Any, index: Any) -> Any:
    """array[index] of a contiguous float32 array, by 16 indices that are surely inside."""

    def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        data = ctx.make_array(sig.args[0])(ctx, b, args[0]).data
        result = ir.Constant(F32.llvm, ir.Undefined)
        for lane in range(16):
            place = b.zext(b.extract_element(args[1], _WORD(lane)), ir.IntType(64))
            result = b.insert_element(result, b.load(b.gep(data, [place])), _WORD(lane))
        return result

    return F32(array, I32), code


def _interleave(first: int) -> Any:
    """Low bytes x and high bytes y to 16-bit words, eight of each 16 rows."""
    picks = []
    for block in range(0, 64, 16):
        for i in range(block + first, block + first + 8):
            picks += [i, 64 + i]

    def emit(b: Any, low: Any, high: Any) -> Any:
        return b.bitcast(b.shuffle_vector(low, high, _picks(picks)), I16.llvm)

    return _operation((I8, I8), I16, emit)


#: 16-bit words of elements 0-7 (8-15), 16-23 (24-31), ... from their low and high bytes.
join_low, join_high = _interleave(0), _interleave(8)


def _widen(first: int) -> Any:
    def emit(b: Any, x: Any) -> Any:
        none = ir.Constant(I16.llvm, ir.Undefined)
        return b.sext(b.shuffle_vector(x, none, _picks(list(range(first, first + 16)))), I32.llvm)

    return _operation((I16,), I32, emit)


#: The first (last) 16 elements, sign-extended.
widen_low, widen_high = _widen(0), _widen(16)


@intrinsic
def bits_of(typing: Any, vector: Any, place: Any) -> Any:
    """Bit `place` of each of the 64 bytes, the first byte's in the lowest bit: an int64."""

    def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        count = _spread(b, b.trunc(args[1], _BYTE), I8.llvm)
        ones = b.trunc(b.lshr(args[0], count), ir.VectorType(_I1, 64))
        return b.bitcast(ones, ir.IntType(64))

    return types.int64(I8, types.int64), code


@intrinsic
def negate_where(typing: Any, vector: Any, mask: Any) -> Any:
    """Minus the elements of an `I16` whose bits are 1 in a mask of 32 bits."""

    def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        chosen = b.bitcast(b.trunc(args[1], _WORD), ir.VectorType(_I1, 32))
        zero = ir.Constant(I16.llvm, [0] * 32)
        return b.select(chosen, b.sub(zero, args[0]), args[0])

    return I16(I16, types.int64), code
