"""GGUF's blocks: by hand, every byte, against the gguf package, and back."""

import dataclasses
import re
from importlib import import_module

import gguf
import numpy as np
import pytest

from bitwright.quant import (
    FORMATS,
    InputError,
    ModelUnavailable,
    OffsetTensor,
    QuantizedTensor,
    fetch_model,
    from_gguf_blocks,
    import_tensors,
    quantize,
    to_gguf_blocks,
)

_module = import_module("bitwright.quant.importing.gguf")  # the reference is not in the face
TYPES = tuple(_module.BLOCKS)
#: FP16 scales as bits: ordinary ones, the largest, subnormal ones, zeros, of both signs.
SCALES = [0x2E66, 0xAE66, 0x7BFF, 0xFBFF, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0000, 0x8000]


def half(value):
    return list(np.array([value], "<f2").tobytes())


def rows(values):
    return np.array([values], np.uint8)


def at_scale(type):
    return _module.BLOCKS[type][1] - 2 if type.startswith("TQ") else 0


def random_blocks(type, n=24, groups=5, scales=SCALES, seed=0):
    """Any bytes as codes (but TQ2_0's 3), scales and minima from the list."""
    rng = np.random.default_rng(seed)
    size = _module.BLOCKS[type][1]
    raw = rng.integers(0, 256, (n * groups, size), dtype=np.uint8)
    if type == "TQ2_0":
        fields = rng.integers(0, 3, (n * groups, size, 4), dtype=np.uint8)
        raw = (fields << np.array([0, 2, 4, 6], np.uint8)).sum(axis=2, dtype=np.uint8)
    places = [at_scale(type)] + ([2] if type == "Q4_1" else [])
    for place in places:
        chosen = rng.choice(np.array(scales, "<u2"), n * groups)
        raw[:, place : place + 2] = chosen[:, None].view(np.uint8)
    return raw.reshape(n, groups * size)


def library(blocks, type):
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[type])


def assert_same_numbers(ours, theirs, any_sign_of_zero):
    assert ours.dtype == theirs.dtype == np.float32
    same = ours.view(np.uint32) == theirs.view(np.uint32)
    if any_sign_of_zero:
        same |= (ours == 0) & (theirs == 0)
    assert same.all()


def test_q4_0_by_hand():
    # d = 0.5; byte i = 0x10 * (15 - i) + i: columns 0 .. 15 have codes 0 .. 15, then 15 .. 0.
    block = rows(half(0.5) + [(15 - i) << 4 | i for i in range(16)])
    tensor = from_gguf_blocks(block, "Q4_0")
    assert (tensor.format.name, tensor.group_size) == ("int4-asym", 32)
    assert tensor.codes.tolist() == [[*range(16), *range(15, -1, -1)]]
    assert (tensor.zero_points.tolist(), tensor.group_scales.tolist()) == ([[8]], [[0.5]])
    assert tensor.dequantize()[0, :3].tolist() == [-4.0, -3.5, -3.0]


def test_q4_0_with_a_negative_scale_by_hand():
    # d = -0.5, code 0: (0 - 8) * -0.5 = 4, which is (15 - 7) * 0.5.
    tensor = from_gguf_blocks(rows(half(-0.5) + [0x00] * 16), "Q4_0")
    assert (set(tensor.codes.flat), tensor.zero_points.tolist()) == ({15}, [[7]])
    assert set(tensor.dequantize().flat) == {4.0}


def test_q4_1_by_hand():
    # d = 0.25, m = -1: low nibbles 2 are -0.5, high nibbles 15 are 2.75.
    tensor = from_gguf_blocks(rows(half(0.25) + half(-1) + [0xF2] * 16), "Q4_1")
    assert isinstance(tensor, OffsetTensor)
    assert tensor.dequantize().tolist() == [[-0.5] * 16 + [2.75] * 16]
    # 4-bit codes, and per 32 a scale, an offset (16 each) and a zero point (4).
    assert tensor.bits_per_weight == 4 + 36 / 32


def test_q8_0_by_hand():
    # d = 2: 0xFF is -1, 0x80 is -128.
    tensor = from_gguf_blocks(rows(half(2) + [0xFF, 0x80, 0x7F] + [0] * 29), "Q8_0")
    assert tensor.format.name == "int8-sym"
    assert tensor.dequantize()[0, :4].tolist() == [-2.0, -256.0, 254.0, 0.0]


def test_q8_0_with_a_negative_scale_and_minus_128_needs_zero_points():
    block = half(-2) + [0x80, 0x01] + [0] * 30
    tensor = from_gguf_blocks(rows(block + half(2) + [0x80] * 32), "Q8_0")
    assert tensor.format.name == "int8-asym"
    assert tensor.zero_points.tolist() == [[127, 128]]
    assert tensor.dequantize()[0, [0, 1, 32]].tolist() == [256.0, -2.0, -256.0]


def test_tq2_0_by_hand():
    # 0b00_01_10_00: fields 0, 2, 1, 0 mean -1, 1, 0, -1 at columns 0, 32, 64, 96 of each half.
    tensor = from_gguf_blocks(rows([0b00_01_10_00] * 64 + half(3)), "TQ2_0")
    assert (tensor.format.name, tensor.group_size) == ("ternary", 256)
    expected = [-3.0] * 32 + [3.0] * 32 + [0.0] * 32 + [-3.0] * 32
    assert tensor.dequantize().tolist() == [expected * 2]


def test_tq1_0_by_hand():
    # 0x6A = 106 = ceil(100 * 256 / 243): 100 = 1*81 + 0*27 + 2*9 + 0*3 + 1, so the digits
    # 1 0 2 0 1, which mean 0 -1 1 -1 0; the four of the last bytes stop before the last one.
    tensor = from_gguf_blocks(rows([0x6A] * 52 + half(1)), "TQ1_0")
    digits = [0.0, -1.0, 1.0, -1.0, 0.0]
    expected = [d for d in digits for _ in range(32)] + [d for d in digits for _ in range(16)]
    assert tensor.dequantize().tolist() == [expected + [d for d in digits[:4] for _ in range(4)]]


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("scale", [0x3C00, 0xBC00], ids=["positive", "negative"])
def test_every_byte_in_every_place(type, scale):
    # Block v has byte v everywhere; block 256 + v has byte v + place in each place.
    columns, size = _module.BLOCKS[type]
    values = np.arange(256)[:, None] + np.zeros((1, size), int)
    raw = (np.concatenate([values, values + np.arange(size)]) % 256).astype(np.uint8)
    if type == "TQ2_0":  # without codes of 3
        threes = sum(raw >> shift & raw >> shift + 1 & 1 for shift in (0, 2, 4, 6))
        raw[threes > 0] = 0b01_10_00_01
    for place in [at_scale(type)] + ([2] if type == "Q4_1" else []):
        raw[:, place : place + 2] = np.frombuffer(np.uint16(scale).tobytes(), np.uint8)
    tensor = from_gguf_blocks(raw, type)
    assert tensor.shape == (512, columns)
    assert_same_numbers(tensor.dequantize(), library(raw, type), scale == 0xBC00)


@pytest.mark.parametrize("type", TYPES)
def test_random_blocks_equal_the_library(type):
    blocks = random_blocks(type)
    tensor = from_gguf_blocks(blocks, type)
    assert_same_numbers(tensor.dequantize(), library(blocks, type), True)


@pytest.mark.parametrize("type", TYPES)
def test_nothing_shares_the_files_memory(type):
    blocks = random_blocks(type, scales=[0x3C00])
    tensor = from_gguf_blocks(blocks, type)
    before = tensor.dequantize()
    blocks[:] = 0
    assert np.array_equal(tensor.dequantize(), before)


@pytest.mark.parametrize("type", TYPES)
def test_signs_of_zeros_are_the_librarys_where_scales_have_no_sign(type):
    scales = [code for code in SCALES if code < 0x8000] + [0x8000] * (type != "Q4_1")
    blocks = random_blocks(type, scales=scales)
    tensor = from_gguf_blocks(blocks, type)
    assert_same_numbers(tensor.dequantize(), library(blocks, type), False)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("twin", ["numba", "reference"])
def test_decoders(type, twin):
    blocks = random_blocks(type, n=8, groups=3)
    columns, size = _module.BLOCKS[type]
    raw = blocks.reshape(-1, size)
    negative = np.random.default_rng(1).random((8, 3)) < 0.5
    decode = (
        (lambda: _module._codes("x", raw, type, negative))
        if twin == "numba"
        else (lambda: _module.codes_reference(raw, type, negative))
    )
    codes = decode()
    assert (codes.dtype, codes.shape) == (np.uint8, (24, columns))
    # The library's integers, from blocks with a scale of 1 and a minimum of 0.
    ones = raw.copy()
    for place, bits in [(at_scale(type), 0x3C00)] + [(2, 0)] * (type == "Q4_1"):
        ones[:, place : place + 2] = np.frombuffer(np.uint16(bits).tobytes(), np.uint8)
    values = library(ones, type).astype(int)
    flip = negative.reshape(-1, 1)
    if type.startswith("Q4"):
        values += 8 * (type == "Q4_0")
        expected = np.where(flip, 15 - values, values)
    else:
        expected = np.where(flip, -values, values) & (255 if type == "Q8_0" else 3)
    assert np.array_equal(codes, expected)


@pytest.mark.parametrize("type", TYPES)
def test_blocks_of_writers_come_back_byte_for_byte(type):
    w = np.random.default_rng(0).normal(size=(6, 512)).astype(np.float32)
    blocks = gguf.quants.quantize(w, gguf.GGMLQuantizationType[type])
    tensor = from_gguf_blocks(blocks, type)
    assert np.array_equal(to_gguf_blocks(tensor, type), blocks)


@pytest.mark.parametrize("type", ["Q4_0", "Q4_1"])
def test_any_blocks_of_four_bits_come_back_byte_for_byte(type):
    blocks = random_blocks(type)
    assert np.array_equal(to_gguf_blocks(from_gguf_blocks(blocks, type), type), blocks)


@pytest.mark.parametrize("type", TYPES)
def test_tensors_come_back_equal(type):
    tensor = from_gguf_blocks(random_blocks(type, seed=2), type)
    back = from_gguf_blocks(to_gguf_blocks(tensor, type), type)
    assert back == tensor


@pytest.mark.parametrize(
    ("name", "group_size", "type"),
    [
        ("int4-sym", 32, "Q4_0"),
        ("int4-sym", 128, "Q4_0"),
        ("int8-sym", 64, "Q8_0"),
        ("int8-sym", 768, "Q8_0"),
        ("ternary", 256, "TQ1_0"),
        ("ternary", 768, "TQ2_0"),
    ],
)
def test_own_tensors_keep_their_numbers(name, group_size, type):
    w = np.random.default_rng(3).normal(size=(4, 768))
    tensor = quantize(w, name, group_size, "fp16")
    written = to_gguf_blocks(tensor, type)
    assert_same_numbers(library(written, type), tensor.dequantize(), False)


def test_every_ternary_byte_of_a_writer():
    # All 3**5 digit patterns in the five-trit bytes.
    codes = np.arange(243)[:, None] // np.array([81, 27, 9, 3, 1]) % 3
    values = np.zeros((243, 256), np.uint8)
    values[:, :160] = np.repeat(codes, 32, axis=1)
    tensor = QuantizedTensor(
        FORMATS["ternary"], 256, (values + 3) % 4, "fp16", np.ones((243, 1), np.float16)
    )
    assert from_gguf_blocks(to_gguf_blocks(tensor, "TQ1_0"), "TQ1_0") == tensor


def refused(message, call, *args):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        call(*args)


def test_an_unknown_type_is_refused():
    refused(
        "w has type Q6_K; types that can be imported are Q4_0, Q4_1, Q8_0, TQ1_0, TQ2_0",
        from_gguf_blocks,
        np.zeros((1, 210), np.uint8),
        "Q6_K",
        "w",
    )
    refused(
        "type 'Q6_K' cannot be written; can be one of Q4_0, Q4_1, Q8_0, TQ1_0, TQ2_0",
        to_gguf_blocks,
        quantize(np.ones((1, 32)), "int4-sym"),
        "Q6_K",
    )


@pytest.mark.parametrize("blocks", [np.zeros((1, 17), np.uint8), np.zeros((1, 18), np.int8)])
def test_parts_of_blocks_are_refused(blocks):
    with pytest.raises(InputError, match=r"must be uint8 \[n, bytes\], rows of whole Q4_0 blocks"):
        from_gguf_blocks(blocks, "Q4_0")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type", TYPES)
def test_a_scale_that_is_no_number_is_named(type, bad):
    blocks = random_blocks(type, n=3, groups=2)
    size = _module.BLOCKS[type][1]
    blocks[2, size + at_scale(type) :][:2] = half(bad)
    with pytest.raises(InputError, match=rf"^w: the scale of row 2, group 1 is {bad}, must be fin"):
        from_gguf_blocks(blocks, type, "w")


def test_a_minimum_that_is_no_number_is_named():
    blocks = rows(half(1) + half(np.nan) + [0] * 16)
    with pytest.raises(InputError, match=r"^w: the minimum of row 0, group 0 is nan"):
        from_gguf_blocks(blocks, "Q4_1", "w")


def test_a_ternary_code_of_three_is_named():
    blocks = random_blocks("TQ2_0", n=3, groups=2)
    blocks[1, 66 + 40] = 0b00_11_00_00
    refused(
        "w: row 1, group 1 holds a TQ2_0 code of 3, must be 0 .. 2; the file is damaged, fetch it "
        "again",
        from_gguf_blocks,
        blocks,
        "TQ2_0",
        "w",
    )


@pytest.mark.parametrize(
    ("tensor", "type", "message"),
    [
        (quantize(np.ones((1, 32)), "fp4"), "Q4_0", "tensor is fp4, which Q4_0 cannot hold"),
        (quantize(np.ones((1, 32)), "int4-sym"), "Q4_1", "Q4_1 takes an OffsetTensor"),
        (quantize(np.ones((1, 32)), "ternary"), "TQ2_0", "TQ2_0 has blocks of 256 columns"),
        (
            quantize(np.ones((1, 64)), "int4-sym", 16),
            "Q4_0",
            "Q4_0 has blocks of 32 columns, of which k (=64) and group_size (=16) must be mul",
        ),
        (
            quantize(np.ones((1, 32)), "int8-sym", 32, "int8"),
            "Q8_0",
            "tensor has int8 scales, Q8_0 stores fp16 ones",
        ),
        (
            quantize(np.arange(32.0)[None], "int4-asym", 32),
            "Q4_0",
            "the zero point of row 0, group 0 is 0, Q4_0 holds 8 (or 7, with d < 0)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tensor, type, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        to_gguf_blocks(tensor, type)


def test_a_format_of_the_same_name_with_other_levels_is_refused():
    own = dataclasses.replace(FORMATS["fp3"], name="int4-sym")
    with pytest.raises(InputError, match=r"^tensor is int4-sym, which Q4_0 cannot hold"):
        to_gguf_blocks(quantize(np.ones((1, 32)), own, 32), "Q4_0")


def test_offset_tensors_are_no_q4_0():
    tensor = from_gguf_blocks(random_blocks("Q4_1", scales=[0x3C00]), "Q4_1")
    with pytest.raises(InputError, match=r"^tensor is a OffsetTensor, Q4_0 takes a QuantizedTens"):
        to_gguf_blocks(tensor, "Q4_0")


@pytest.mark.slow
def test_the_default_model():
    try:
        path = fetch_model()
    except ModelUnavailable as error:
        pytest.skip(str(error))
    tensors = import_tensors(path)
    reader = import_module("bitwright.quant.models.gguf_file")
    stored = {
        name: tensor
        for name, tensor in reader.gguf_tensors(path).items()
        if tensor.type in ("Q4_1", "Q8_0")
    }
    assert len(stored) == 211
    assert list(tensors) == list(stored)
    for name, tensor in stored.items():
        theirs = library(tensor.blocks, tensor.type)
        assert_same_numbers(tensors[name].dequantize(), theirs, False)
