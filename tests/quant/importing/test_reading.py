"""Whole files and folders of other tools, and what is wrong with bad ones."""

import json
import re

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from bitwright.quant import (
    InputError,
    OffsetTensor,
    PermutedTensor,
    from_gguf_blocks,
    import_tensors,
    quantize,
    to_awq,
    to_gptq,
)

RNG = np.random.default_rng(0)
W = RNG.normal(size=(32, 256)).astype(np.float32)
TENSOR = quantize(W, "int4-asym", 64, "fp16")
COLUMNS = RNG.permutation(256)
GPTQ = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 64,
    "desc_act": False,
    "checkpoint_format": "gptq_v2",
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}


def write_gguf(path, tensors):
    """Matrices by name, each an array and a type; F16 arrays have no type."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, (array, type) in tensors.items():
        kind = None if type is None else gguf.GGMLQuantizationType[type]
        data = array if type is None else gguf.quants.quantize(array, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_checkpoint(folder, layers, config, name="quantize_config.json", file="model.safetensors"):
    folder.mkdir(exist_ok=True)
    arrays = {
        f"{layer}.{key}": array for layer, own in layers.items() for key, array in own.items()
    }
    save_file(arrays | {"norm.weight": np.ones(256, np.float16)}, folder / file)
    if name:
        (folder / name).write_text(json.dumps(config))
    return folder


def refused(path, message, **options):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        import_tensors(path, **options)


# --- GGUF ---


def test_gguf(tmp_path):
    path = tmp_path / "a.gguf"
    types = ("Q4_0", "Q4_1", "Q8_0", "TQ1_0", "TQ2_0")
    floats = {"norm": (np.ones(256, np.float32), None), "half": (W.astype(np.float16), None)}
    write_gguf(path, floats | {f"w.{type}": (W + i, type) for i, type in enumerate(types)})
    tensors = import_tensors(path)
    assert list(tensors) == [f"w.{type}" for type in types]
    for i, type in enumerate(types):
        kind = gguf.GGMLQuantizationType[type]
        blocks = gguf.quants.quantize(W + i, kind)
        assert tensors[f"w.{type}"] == from_gguf_blocks(blocks, type)
        theirs = gguf.quants.dequantize(blocks, kind)
        assert np.array_equal(tensors[f"w.{type}"].dequantize(), theirs)
    assert isinstance(tensors["w.Q4_1"], OffsetTensor)


def test_gguf_types_without_a_format_are_named_and_can_be_left_out(tmp_path):
    path = tmp_path / "a.gguf"
    write_gguf(path, {"a": (W, "Q8_0"), "b": (W, "Q5_0")})
    refused(
        path,
        f"{path}: tensor b has type Q5_0; types that can be imported are Q4_0, Q4_1, Q8_0, TQ1_0, "
        "TQ2_0; leave it out with names",
    )
    assert list(import_tensors(path, names=["a"])) == ["a"]


def test_gguf_tensors_that_are_no_matrices_are_refused(tmp_path):
    path = tmp_path / "a.gguf"
    write_gguf(path, {"a": (W.reshape(2, 16, 256), "Q8_0")})
    refused(path, f"{path}: tensor a has shape [2, 16, 256], must be a matrix; leave it out with")


def test_a_damaged_gguf_scale_is_named_with_its_file(tmp_path):
    path = tmp_path / "a.gguf"
    write_gguf(path, {"a": (W, "Q8_0")})
    data = bytearray(path.read_bytes())
    last = len(data) - 34  # the last block: row 31, group 7
    data[last : last + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    refused(path, f"{path}: tensor a: the scale of row 31, group 7 is nan, must be finite")


def test_a_truncated_gguf_is_refused(tmp_path):
    path = tmp_path / "a.gguf"
    write_gguf(path, {"a": (W, "Q8_0")})
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, f"{path} is truncated: tensor a ends at byte")


# --- GPTQ and AWQ ---


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "config.json"])
def test_gptq(tmp_path, name):
    config = GPTQ if name != "config.json" else {"model_type": "x", "quantization_config": GPTQ}
    permuted = PermutedTensor(TENSOR, COLUMNS)
    layers = {"a.q": to_gptq(TENSOR, "gptq_v2"), "b.k": to_gptq(permuted, "gptq_v2")}
    folder = write_checkpoint(tmp_path / "m", layers, config, name)
    back = import_tensors(folder)
    assert list(back) == ["a.q", "b.k"]
    assert back["a.q"] == TENSOR
    # Within a group, columns come back in their order in the matrix.
    assert isinstance(back["b.k"], PermutedTensor)
    assert np.array_equal(back["b.k"].dequantize(), permuted.dequantize())
    assert import_tensors(folder / "model.safetensors", ["a.q"]) == {"a.q": TENSOR}


def test_a_layer_in_two_files(tmp_path):
    arrays = to_gptq(TENSOR, "gptq_v2")
    first = {key: arrays.pop(key) for key in ("qweight", "g_idx")}
    folder = write_checkpoint(tmp_path / "m", {"a": first}, GPTQ, file="model-1.safetensors")
    save_file({f"a.{key}": array for key, array in arrays.items()}, folder / "model-2.safetensors")
    assert import_tensors(folder) == {"a": TENSOR}


def test_gptq_without_group_indices(tmp_path):
    arrays = to_gptq(TENSOR, "gptq_v2")
    del arrays["g_idx"]
    folder = write_checkpoint(tmp_path / "m", {"a": arrays}, GPTQ)
    assert import_tensors(folder) == {"a": TENSOR}
    (folder / "quantize_config.json").write_text(json.dumps(GPTQ | {"desc_act": True}))
    refused(
        folder,
        f"{folder / 'model.safetensors'}: a.g_idx is missing, though "
        f"{folder / 'quantize_config.json'} does not say desc_act false",
    )


@pytest.mark.parametrize(
    ("entry", "version"),
    [({"format": "gptq_v2"}, "gptq_v2"), ({"format": "gptq"}, "gptq"), ({}, "gptq")],
)
def test_the_version_under_its_other_name_and_without_one(tmp_path, entry, version):
    config = {key: value for key, value in GPTQ.items() if key != "checkpoint_format"}
    folder = write_checkpoint(tmp_path / "m", {"a": to_gptq(TENSOR, version)}, config | entry)
    assert import_tensors(folder) == {"a": TENSOR}


@pytest.mark.parametrize(
    "writer", [{}, {"meta": {"quantizer": ["gptqmodel:1.4.0"]}}, {"meta": {"quantizer": "other"}}]
)
def test_who_wrote_it_decides_on_stored_zeros_of_all_ones(tmp_path, writer):
    arrays = to_gptq(TENSOR, "gptq_v2")
    arrays["qzeros"][0, 0] = 0x11111110 - 0x11111111  # zeros 0 1 1 .. less one, in one subtraction
    config = {**GPTQ, "checkpoint_format": "gptq", **writer}
    folder = write_checkpoint(tmp_path / "m", {"a": arrays}, config)
    if "gptqmodel" in str(writer):
        zeros = import_tensors(folder)["a"].zero_points
        assert zeros[:8, 0].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    else:
        refused(folder, f"{folder / 'model.safetensors'}: a.qzeros: the stored zero point of row 0")


@pytest.mark.parametrize(
    "config", [AWQ, {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}]
)
def test_awq(tmp_path, config):
    folder = write_checkpoint(tmp_path / "m", {"a": to_awq(TENSOR)}, config, "quant_config.json")
    assert import_tensors(folder) == {"a": TENSOR}


def test_one_group_per_row(tmp_path):
    tensor = quantize(W, "int4-asym", 256, "fp16")
    gptq, awq = GPTQ | {"group_size": -1}, AWQ | {"group_size": -1}
    gptq_folder = write_checkpoint(tmp_path / "g", {"a": to_gptq(tensor, "gptq_v2")}, gptq)
    awq_folder = write_checkpoint(tmp_path / "a", {"a": to_awq(tensor)}, awq)
    assert import_tensors(gptq_folder) == import_tensors(awq_folder) == {"a": tensor}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPTQ | {"bits": 5}, "bits 5 is not one of 2, 3, 4, 8"),
        (GPTQ | {"bits": "4"}, "bits is '4', must be an integer"),
        (GPTQ | {"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes' cannot be imported"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' cannot be imported"),
        ({"quant_method": "gptq", "bits": 4, "desc_act": False}, "group_size is missing; add what"),
        (AWQ | {"bits": 3}, "bits 3 must be 4, the only width of AWQ's GEMM layout"),
        (AWQ | {"version": "gemv"}, "version 'gemv' cannot be imported; 'gemm' can"),
        ([4], "holds no object that says how the model was quantised"),
    ],
)
def test_configs_that_say_something_else_are_refused(tmp_path, config, message):
    folder = write_checkpoint(tmp_path / "m", {"a": to_gptq(TENSOR, "gptq_v2")}, config)
    between = " " if isinstance(config, list) else ": "
    refused(folder, f"{folder / 'quantize_config.json'}{between}{message}")


def test_a_config_that_is_no_json_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "m", {"a": to_gptq(TENSOR, "gptq_v2")}, GPTQ)
    (folder / "quantize_config.json").write_text("{")
    refused(folder, f"cannot read {folder / 'quantize_config.json'} as JSON:")


@pytest.mark.parametrize("config", [None, {"model_type": "llama"}])
def test_a_checkpoint_that_does_not_say_how_it_was_quantised(tmp_path, config):
    layers = {"a": to_gptq(TENSOR, "gptq_v2")}
    folder = write_checkpoint(tmp_path / "m", layers, config, "config.json" if config else "")
    refused(folder, f"{folder} does not say how it was quantised; quantize_config.json, quant_co")


@pytest.mark.parametrize("key", ["qzeros", "scales"])
@pytest.mark.parametrize("config", [GPTQ, AWQ], ids=["gptq", "awq"])
def test_a_missing_array_is_named(tmp_path, key, config):
    arrays = to_gptq(TENSOR, "gptq_v2") if config is GPTQ else to_awq(TENSOR)
    del arrays[key]
    folder = write_checkpoint(tmp_path / "m", {"a": arrays}, config)
    refused(folder, f"{folder / 'model.safetensors'}: a.{key} is missing; fetch the whole")


def test_bfloat16_scales_are_named(tmp_path):
    arrays = {f"a.{k}": torch.from_numpy(v) for k, v in to_gptq(TENSOR, "gptq_v2").items()}
    arrays["a.scales"] = arrays["a.scales"].to(torch.bfloat16)
    save_torch(arrays, tmp_path / "model.safetensors")
    (tmp_path / "quantize_config.json").write_text(json.dumps(GPTQ))
    refused(
        tmp_path, f"{tmp_path / 'model.safetensors'}: a.scales is BF16, must be I32 or F16; save"
    )


def test_arrays_of_another_shape_are_named_with_their_file(tmp_path):
    arrays = to_gptq(TENSOR, "gptq_v2")
    arrays["scales"] = arrays["scales"][:, :-1].copy()
    folder = write_checkpoint(tmp_path / "m", {"a": arrays}, GPTQ)
    refused(folder, f"{folder / 'model.safetensors'}: a.scales is float16 [4, 31], must be float16")


def test_a_truncated_file_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "m", {"a": to_gptq(TENSOR, "gptq_v2")}, GPTQ)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(folder, f"{file} is missing, truncated or not a safetensors file:")


def test_an_array_in_two_files_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "m", {"a": to_gptq(TENSOR, "gptq_v2")}, GPTQ)
    write_checkpoint(folder, {"a": to_gptq(TENSOR, "gptq_v2")}, GPTQ, file="other.safetensors")
    refused(folder, f"{folder / 'other.safetensors'}: ")


def test_other_paths_are_refused(tmp_path):
    refused(tmp_path / "a.bin", f"cannot import {tmp_path / 'a.bin'}: give a .gguf file, a .safe")
    refused(tmp_path / "a.gguf", f"cannot read {tmp_path / 'a.gguf'}:")
    refused(tmp_path, f"{tmp_path} holds no .safetensors file; pickles are never opened")


def test_names_that_are_not_there_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "m", {"a": to_awq(TENSOR)}, AWQ)
    refused(folder, f"{folder} has no quantised tensor norm.weight; leave", names=["norm.weight"])


def test_a_file_without_quantised_tensors_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "m", {}, AWQ)
    refused(folder, f"{folder} holds no quantised tensors; quantise its model here instead")
