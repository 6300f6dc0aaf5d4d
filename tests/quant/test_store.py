"""Packed storage: the bit order, exact round trips, true bytes, damaged files."""

import dataclasses
import errno
import json
import pickle
import re
import struct
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from bitwright.quant import FORMATS, InputError, load_tensors, quantize, save_tensors

_store = import_module("bitwright.quant.store")  # not part of the face
pack_bits, unpack_bits = _store.pack_bits, _store.unpack_bits


def test_bit_order_by_hand():
    # 3-bit items 1, 2, 7, 4: bits 0..2 hold 1, 3..5 hold 2, 6..8 hold 7, 9..11 hold 4:
    # byte 0 = 1 + 2 * 8 + (7 & 3) * 64 = 209; byte 1 = (7 >> 2) + 4 * 2 = 9.
    assert pack_bits(np.array([1, 2, 7, 4], np.uint8), 3).tolist() == [209, 9]


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_against_one_big_integer(bits):
    items = np.random.default_rng(bits).integers(0, 1 << bits, 1001).astype(np.uint8)
    stream = sum(int(item) << i * bits for i, item in enumerate(items))
    packed = pack_bits(items, bits)
    assert packed.tobytes() == stream.to_bytes(-(-1001 * bits // 8), "little")
    assert np.array_equal(unpack_bits(packed, bits, 1001), items)


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_packing_across_blocks(bits, monkeypatch):
    monkeypatch.setattr(_store, "_BLOCK", 16)
    items = np.random.default_rng(bits).integers(0, 1 << bits, 50).astype(np.uint8)
    packed = pack_bits(items, bits)
    stream = sum(int(item) << i * bits for i, item in enumerate(items))
    assert int.from_bytes(packed.tobytes(), "little") == stream
    assert np.array_equal(unpack_bits(packed, bits, 50), items)


def test_packing_nothing():
    assert pack_bits(np.empty(0, np.uint8), 3).shape == (0,)
    assert unpack_bits(np.empty(0, np.uint8), 3, 0).shape == (0,)


def test_unpacking_refuses_another_length():
    with pytest.raises(InputError, match=r"^3 items of 3 bits take 2 bytes, not \(3,\)$"):
        unpack_bits(np.zeros(3, np.uint8), 3, 3)


def test_unpacking_refuses_padding_that_is_not_zero():
    with pytest.raises(InputError, match=r"^unused bits of the last byte are not 0$"):
        unpack_bits(np.array([0, 2], np.uint8), 3, 3)


def tensors(k=45, group_size=16):
    """One tensor of every format and scale format."""
    w = np.random.default_rng(0).normal(size=(7, k))
    return {
        f"blocks.{i}.{name}.{scale}": quantize(w + i, name, row.block or group_size, scale)
        for i, (name, row) in enumerate(FORMATS.items())
        for scale in ((row.scale_format,) if row.block else ("fp16", "int8"))
    }


def test_round_trip_is_exact(tmp_path):
    saved = tensors()
    metadata = {"recipe": "w3g16-bitmod", "version": "0.1.0", "note": "µ, \n and \u4e2d"}
    save_tensors(tmp_path / "a.safetensors", saved, metadata)
    loaded, kept = load_tensors(tmp_path / "a.safetensors")
    assert loaded == saved
    assert list(loaded) == list(saved)
    assert kept == metadata
    for name, tensor in loaded.items():
        assert np.array_equal(tensor.dequantize(), saved[name].dequantize())


@given(
    n=st.integers(1, 5),
    k=st.integers(1, 40),
    group_size=st.integers(1, 50),
    name=st.sampled_from(sorted(FORMATS)),
    scale_format=st.sampled_from(["fp16", "int8"]),
)
def test_any_shape_survives(tmp_path_factory, n, k, group_size, name, scale_format):
    path = tmp_path_factory.mktemp("store") / "a.safetensors"
    w = np.random.default_rng(n * 100 + k).normal(size=(n, k))
    row = FORMATS[name]
    if row.block is not None:
        group_size, scale_format = row.block, row.scale_format
    elif row.kind == "olive":
        group_size += group_size % 2
    saved = {"a": quantize(w, name, group_size, scale_format)}
    save_tensors(path, saved, {})
    assert load_tensors(path) == (saved, {})


def test_a_file_explains_its_own_format(tmp_path):
    # Programmable special values: a row that is not in FORMATS comes back whole.
    own = dataclasses.replace(FORMATS["bitmod3"], name="mine", special_values=(5.0, -5.0))
    tables = ((0.0, 1.0, 2.0, 3.0, -4.0, -3.0, -2.0, -1.0), FORMATS["fp3"].levels)
    two = dataclasses.replace(FORMATS["fp3"], name="two", levels=tables[0], alternatives=tables[1:])
    long = dataclasses.replace(FORMATS["mxfp4"], name="long", block=64)
    saved = {row.name: quantize(np.ones((2, 80)), row, row.block or 4) for row in (own, two, long)}
    save_tensors(tmp_path / "a.safetensors", saved, {})
    assert load_tensors(tmp_path / "a.safetensors")[0] == saved


def test_fields_that_came_later_are_left_out_where_they_say_nothing(tmp_path):
    # So the layout is the same as before for the formats that were there before.
    path = tmp_path / "a.safetensors"
    expected = {
        "bitmod3": set(),
        "dint4-sym": set(),
        "ternary": {"scale_rule"},
        "ant4": {"alternatives"},
        "nvfp4": {"block"},
    }
    save_tensors(path, {name: quantize(np.ones((1, 16)), name) for name in expected}, {})
    with safe_open(path, framework="np") as file:
        rows = json.loads(file.metadata()["bitwright.formats"])
    early = {"name", "bits", "kind", "levels", "special_values", "source", "scale_format"}
    assert {name: set(row) - early for name, row in rows.items()} == expected
    assert all(early <= set(row) for row in rows.values())


def test_a_tensor_scale_is_one_entry(tmp_path):
    tensor = quantize(np.ones((2, 32)), "nvfp4")
    save_tensors(tmp_path / "a.safetensors", {"a": tensor}, {})
    arrays = load_file(tmp_path / "a.safetensors")
    # 32 codes of 4 bits and 2 E4M3 scales a row; 4 bytes.
    assert {name: array.nbytes for name, array in arrays.items()} == {
        "a.codes": 32,
        "a.group_scales": 4,
        "a.tensor_scale": 4,
    }


def test_floats_beside_the_tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    saved = {"a": quantize(np.ones((1, 4)), "fp3")}
    floats = {"b": np.array([1.5, -0.0], np.float32), "a": np.ones((2, 3)), "c": np.zeros((0, 4))}
    save_tensors(path, saved, {"note": "x"}, floats)
    stored = _store.load_file(path)
    assert (stored.tensors, stored.metadata) == (saved, {"note": "x"})
    assert set(stored.floats) == set(floats)
    for name, array in floats.items():
        assert stored.floats[name].dtype == np.float32
        assert np.array_equal(stored.floats[name], array)
    assert np.signbit(stored.floats["b"][1])


def test_the_same_content_gives_the_same_bytes(tmp_path):
    # The library's own writer would shuffle the metadata.
    metadata = {f"key {i}": str(i) for i in range(9)}
    for name in ("a", "b"):
        save_tensors(tmp_path / name, tensors(), metadata, {"f": np.ones(3)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_layout_is_that_of_the_safetensors_library(tmp_path):
    floats = {"x": np.arange(6).reshape(2, 3), "y": np.ones(5)}
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors(), {"note": "µ"}, floats)
    arrays = load_file(path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    save_file(arrays, tmp_path / "b.safetensors", metadata)
    ours, theirs = path.read_bytes(), (tmp_path / "b.safetensors").read_bytes()
    size = sum(array.nbytes for array in arrays.values())
    assert ours[-size:] == theirs[-size:]  # the same order, so the same alignment
    assert metadata["note"] == "µ"


def test_verifying(tmp_path, good):
    _store.verify_file(good)
    content = bytearray(good.read_bytes())
    content[-1] ^= 1
    good.write_bytes(content)
    with pytest.raises(InputError, match="is damaged: its content does not match its SHA-256"):
        _store.verify_file(good)


def test_no_tensors(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {}, {"recipe": "fp16"})
    assert load_tensors(tmp_path / "a.safetensors") == ({}, {"recipe": "fp16"})


def test_the_bytes_in_the_file_are_the_true_bits(tmp_path):
    for name, tensor in tensors().items():
        path = tmp_path / "a.safetensors"
        save_tensors(path, {"a": tensor}, {})
        # A safetensors file is: header length (8 bytes), header, data; nothing else.
        content = path.read_bytes()
        (header,) = struct.unpack("<Q", content[:8])
        stored = len(content) - 8 - header
        format, n, k, groups = tensor.format, tensor.n, tensor.k, tensor.groups
        packed = [n * k * format.bits, n * groups * format.zero_point_bits]
        packed.append(n * groups * format.selector_bits)
        padding = sum(-bits % 8 for bits in packed)
        assert 8 * stored - padding == round(tensor.bits_per_weight * n * k), name


@pytest.mark.parametrize("name", FORMATS)
def test_each_entry_is_its_bits_rounded_up_to_bytes(tmp_path, name):
    # 5 rows of 45 columns: the last of 3 groups of 16 (of 2 blocks of 32) is ragged.
    format, n, k = FORMATS[name], 5, 45
    tensor = quantize(np.random.default_rng(0).normal(size=(n, k)), name, format.block or 16)
    save_tensors(tmp_path / "a.safetensors", {"a": tensor}, {})
    groups = -(-k // (format.block or 16))
    scale_bits = {"fp16": 16, "int8": 8, "e8m0": 8, "e4m3": 8}[format.scale_format]
    bits = {
        "a.codes": n * k * format.bits,
        "a.group_scales": n * groups * scale_bits,
        "a.channel_scales": n * 32 * (format.scale_format == "int8"),
        "a.tensor_scale": 32 * (format.scale_format == "e4m3"),
        "a.zero_points": n * groups * format.zero_point_bits,
        "a.selectors": n * groups * format.selector_bits,
    }
    arrays = load_file(tmp_path / "a.safetensors")
    sizes = {entry: array.nbytes for entry, array in arrays.items()}
    assert sizes == {entry: -(-size // 8) for entry, size in bits.items() if size}
    assert sum(bits.values()) == format.stored_bits(n, k, tensor.group_size, format.scale_format)


@pytest.mark.parametrize(
    "name",
    [
        "bitmod3",
        "int4-asym",
        "fp4-er",
        "dint3-asym",
        "binary",
        "ternary",
        "flint5",
        "ant4",
        "olive4",
    ],
)
def test_without_ragged_bits_the_file_has_no_padding(tmp_path, name):
    tensor = quantize(np.ones((64, 256)), name, 64)
    save_tensors(tmp_path / "a.safetensors", {"a": tensor}, {})
    arrays = load_file(tmp_path / "a.safetensors")
    assert sum(array.nbytes for array in arrays.values()) * 8 == tensor.bits_per_weight * 64 * 256
    assert arrays["a.codes"].nbytes * 8 == 64 * 256 * tensor.format.bits


# What cannot be loaded.


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.safetensors"
    w = np.random.default_rng(0).normal(size=(3, 20))
    save_tensors(path, {"a": quantize(w, "bitmod3", 8)}, {"recipe": "w3g8-bitmod"})
    return path


@pytest.mark.parametrize("size", range(8, 400, 8))
def test_a_header_length_that_looks_like_a_pickle_is_no_pickle(tmp_path, size):
    # Header lengths such as 0x480 begin with the bytes of a pickle of protocol 4.
    saved = {"a": quantize(np.ones((1, 4)), "fp3")}
    save_tensors(tmp_path / "a.safetensors", saved, {"note": "x" * size})
    assert load_tensors(tmp_path / "a.safetensors")[0] == saved


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        load_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, -1])
def test_truncated(good, kept):
    content = good.read_bytes()
    good.write_bytes(content[:kept])
    refused(good, r"is no complete safetensors file \(.*\); it may be cut short or damaged")


def test_too_long(good):
    good.write_bytes(good.read_bytes() + b"\0")
    refused(good, "is no complete safetensors file")


def test_every_damaged_byte_is_found(good):
    content = good.read_bytes()
    for position in range(len(content)):
        good.write_bytes(
            content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]
        )
        with pytest.raises(InputError):
            load_tensors(good)


def test_damage_in_the_data_is_named(good):
    content = bytearray(good.read_bytes())
    content[-1] ^= 1
    good.write_bytes(content)
    refused(good, "is damaged: its content does not match its SHA-256; write it again")


def test_foreign_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w": np.zeros((2, 2), np.float32)}, path)
    refused(path, r"has no bitwright layout, this version reads '1'; write it with bitwright")


def test_newer_layout(good):
    arrays = load_file(good)
    save_file(arrays, good, {"bitwright.layout": "2"})
    refused(good, r"has bitwright layout '2', this version reads '1'")


def sealed(path, header, arrays):
    """Write a file with a right digest, whatever it holds."""
    header = {"bitwright.layout": "1", **header}
    header["bitwright.sha256"] = _store._digest(header, arrays)
    save_file(arrays, path, header)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({}, "'bitwright.formats'"),
        ({"bitwright.formats": "[", "bitwright.tensors": "{}"}, "Expecting value"),
        ({"bitwright.formats": "{}", "bitwright.tensors": '{"a": {"format": "fp9"}}'}, "'fp9'"),
        (
            {"bitwright.formats": '{"x": {"levels": [], "special_values": []}}'},
            "missing 3 required positional arguments",
        ),
        ({"bitwright.formats": '{"x": 3}', "bitwright.tensors": "{}"}, "int"),
        ({"bitwright.formats": "[]", "bitwright.tensors": "{}"}, "items"),
    ],
)
def test_a_sealed_file_that_contradicts_itself(tmp_path, header, reason):
    path = tmp_path / "a.safetensors"
    sealed(path, header, {})
    refused(path, rf"contradicts itself \(.*{reason}.*\); write it again")


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("a.codes", np.zeros(3, np.uint8), "60 items of 3 bits take 23 bytes"),
        ("a.codes", np.full(23, 255, np.uint8), "unused bits of the last byte are not 0"),
        ("a.group_scales", np.zeros((3, 2), np.uint8), r"group_scales are uint8 \(3, 2\)"),
        ("a.selectors", None, "a.selectors is missing"),
        ("a.zero_points", np.zeros(2, np.uint8), "6 items of 0 bits|9 items of 0 bits"),
        ("a.channel_scales", None, "channel_scales missing"),
        ("stray", np.zeros(1, np.uint8), "it holds stray, which belongs to no tensor"),
    ],
)
def test_sealed_arrays_that_do_not_fit(good, name, array, reason):
    with safe_open(good, framework="np") as file:
        header = {key: value for key, value in file.metadata().items() if "sha" not in key}
    arrays = load_file(good) | {name: array}
    arrays = {key: value for key, value in arrays.items() if value is not None}
    sealed(good, header, arrays)
    refused(good, rf"contradicts itself \(.*{reason}.*\); write it again")


def test_a_sealed_file_of_other_types(tmp_path):
    path = tmp_path / "a.safetensors"
    sealed(path, {"bitwright.formats": "{}", "bitwright.tensors": "{}"}, {"a": np.zeros(2)})
    refused(path, "holds a as F64; write it again$")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".PT", ".pkl", ".ckpt"])
def test_pickle_names_are_refused(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"anything")
    refused(path, "is a pickle checkpoint; loading one can run any program, so they are refused")


class Trap:
    """Unpickling this would be seen."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran')",))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_content_is_refused_under_any_name(tmp_path, protocol):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Trap(), protocol))
    refused(path, "is a pickle checkpoint")


def test_torch_checkpoints_are_refused_under_any_name(tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save({"w": torch.zeros(2)}, path)
    refused(path, "is a pickle checkpoint")


def test_missing_file(tmp_path):
    refused(tmp_path / "none.safetensors", "^cannot read .*: No such file or directory; give a")


def test_folder(tmp_path):
    refused(tmp_path, "^cannot read .*: Is a directory")


@pytest.mark.parametrize(
    ("metadata", "shown"),
    [({"bitwright.layout": "9"}, "'bitwright.layout'='9'"), ({"seed": 3}, "'seed'=3")],
)
def test_metadata_is_checked(tmp_path, metadata, shown):
    message = f"metadata {shown}: values must be strings, keys not begin with bitwright."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        save_tensors(tmp_path / "a.safetensors", {}, metadata)
    assert not list(tmp_path.iterdir())


def test_two_formats_of_one_name_are_refused(tmp_path):
    other = dataclasses.replace(FORMATS["bitmod3"], special_values=(5.0, -5.0))
    both = {str(i): quantize(np.ones((1, 4)), row) for i, row in enumerate([other, "bitmod3"])}
    with pytest.raises(InputError, match="^tensors use different formats of the name 'bitmod3'$"):
        save_tensors(tmp_path / "a.safetensors", both, {})


def test_a_folder_that_is_not_there_leaves_nothing_behind(tmp_path):
    with pytest.raises(InputError, match="^cannot write .*: No such file or directory"):
        save_tensors(tmp_path / "none" / "a.safetensors", tensors(), {})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(good, monkeypatch):
    before = good.read_bytes()

    def fail(path, *_):
        path.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_store, "_write", fail)
    with pytest.raises(InputError, match="^cannot write .*: No space left on device$"):
        save_tensors(good, tensors(), {})
    assert good.read_bytes() == before
    assert [path.name for path in good.parent.iterdir()] == [good.name]
