"""Quantised models on disk: round trips, runs that are killed and taken up again, refusals."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from safetensors import safe_open

from bitwright.quant import (
    Calibration,
    InputError,
    LanguageModel,
    LlamaConfig,
    apply_recipe,
    load_quantized,
    perplexity,
    save_quantized,
)

_block_store = import_module("bitwright.quant.block_store")  # not part of the face

CONFIG = LlamaConfig(
    layers=4,
    hidden=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=48,
    vocab=256,
    rope_base=10_000.0,
    norm_eps=1e-5,
    tied_embeddings=True,
    context=128,
    biased=("q",),
)
CALIBRATION = Calibration(sequences=4, length=32)
TEXT = "".join(chr(32 + i * i % 90) for i in range(400))
BOTH = "w4g16-int-asym+awq:grid=2+gptq"  # runs the float and the quantised stream


class Bytes:
    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode()


def make_model(config=CONFIG, name="made", seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=generator) / (shape[-1] ** 0.5 if shape[1:] else 1)
        for name, shape in config.weight_shapes().items()
    }
    return LanguageModel(name, config, weights, Bytes(), "made up")


@pytest.fixture
def model():
    return make_model()


def run(model, recipe, folder=None, **more):
    how = {"calibration": CALIBRATION, "text": TEXT} | more
    return apply_recipe(model, recipe, folder=folder, **how)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def judged(q):
    ids = list(range(32, 96))
    return perplexity(q.model, tokens=ids, window=32, linear=q.linear(), cache=q.cache()).nll


# --- round trips ---

RECIPES = [
    "w3g16-bitmod",
    "w4g16-int-asym+gptq",
    "w4g16a8-int-asym+hadamard+kv4-asym+smoothquant",
    "w4-int-sym+a8-tensor-static+awq:grid=2",
    "w4g16-int-sym+superweight:threshold=0.5,most=2,share=0",
    "w4g16-int-asym+mixed:formats=int4-asym|fp4|mxfp4",
    "fp16+hadamard+a8",
    "fp16+kv4-asym",
]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("form", ["folder", "file"])
def test_round_trip(tmp_path, model, recipe, form):
    q = run(model, recipe)
    if form == "folder":
        stored = run(model, recipe, tmp_path / "q")
        assert (stored.tensors, stored.notes) == (q.tensors, q.notes)
        assert judged(stored) == judged(q)
    else:
        save_quantized(tmp_path / "q", q)
    loaded = load_quantized(tmp_path / "q", model)
    assert loaded.tensors == q.tensors
    assert loaded.recipe == q.recipe
    assert (loaded.calibration, loaded.calibration_text) == (q.calibration, q.calibration_text)
    assert (loaded.notes, loaded.stored_bits) == (q.notes, q.stored_bits)
    # NaN, where no Gram matrix was gathered, equals nothing.
    assert list(map(repr, loaded.report)) == list(map(repr, q.report))
    assert set(loaded.ends) == set(q.ends)
    for name, w in q.ends.items():
        assert torch.equal(loaded.ends[name], w)
    for ours, theirs in zip(loaded.blocks, q.blocks, strict=True):
        assert ours.layer == theirs.layer
        assert ours.limits == theirs.limits
        assert ours.super_weights == theirs.super_weights
        for name in CONFIG.linear_shapes():
            local = name.removeprefix("blocks.0.")
            if local != name:
                assert (loaded.weights(ours.layer, local) == q.weights(ours.layer, local)).all()
        for name in ("attn_norm", "ffn_norm", "attn.q.bias"):
            assert torch.equal(ours.floats[name], theirs.floats[name])
    assert judged(loaded) == judged(q)


def test_super_weights_and_static_limits_are_not_empty(model):
    # Or the round trips would say nothing about them.
    kept = (
        run(model, "w4g16-int-sym+superweight:threshold=0.5,most=2,share=0").blocks[0].super_weights
    )
    assert len(kept["ffn.down"]) > 0
    limits = run(model, "w4-int-sym+a8-tensor-static").blocks[1].limits
    assert set(limits) == {"attn_in", "attn_out", "ffn_in", "ffn_out"}


def test_a_file_says_what_it_is(tmp_path, model):
    q = run(model, BOTH)
    save_quantized(tmp_path / "q.safetensors", q, {"note": "mine"})
    with safe_open(tmp_path / "q.safetensors", framework="np") as file:
        metadata = file.metadata()
    import bitwright

    assert {key: metadata[key] for key in ("model", "recipe", "version", "note")} == {
        "model": "made",
        "recipe": BOTH,
        "version": bitwright.__version__,
        "note": "mine",
    }
    assert json.loads(metadata["calibration"]) == CALIBRATION.model_dump()
    assert metadata["calibration_text"] == "text"


def test_metadata_of_its_own_is_refused(tmp_path, model):
    message = "^metadata 'recipe' is written by save_quantized itself; rename it$"
    with pytest.raises(InputError, match=message):
        save_quantized(tmp_path / "q", run(model, "w4-int-sym"), {"recipe": "other"})
    assert not list(tmp_path.iterdir())


def test_only_floats_that_changed_are_stored(tmp_path, model):
    def floats(recipe):
        save_quantized(tmp_path / "q", run(model, recipe))
        with safe_open(tmp_path / "q", framework="np") as file:
            return {name for name in file.keys() if name.endswith(".float")}

    assert floats("w4g16-int-sym") == floats("w4g16-int-sym+gptq") == floats("fp16+a8") == set()
    assert floats("w4g16-int-sym+smoothquant") == {
        f"blocks.{layer}.{norm}.float" for layer in range(4) for norm in ("attn_norm", "ffn_norm")
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_stored_bits_are_the_bytes_of_the_tensors(tmp_path, model, recipe):
    """Super weights stand in the metadata, 48 bits each; what is packed is rounded up to bytes."""
    q = run(model, recipe)
    save_quantized(tmp_path / "q", q)
    stored = 0
    with safe_open(tmp_path / "q", framework="np") as file:
        for name in file.keys():
            if not name.endswith(".float"):
                stored += 8 * file.get_tensor(name).nbytes
        blocks = json.loads(file.metadata()["blocks"])
    kept = [w for block in blocks for ws in block["super_weights"].values() for w in ws]
    assert len(kept) == sum(len(w) for block in q.blocks for w in block.super_weights.values())
    assert bool(kept) == ("superweight" in recipe)
    padding = 0
    for qt in q.tensors.values():
        packed = (qt.k * qt.format.bits, qt.groups * qt.format.zero_point_bits)
        for bits in (*packed, qt.groups * qt.format.selector_bits):
            padding += -(qt.n * bits) % 8
    assert stored + 48 * len(kept) - padding == q.stored_bits


def test_the_same_run_gives_the_same_bytes(tmp_path, model):
    for name in ("a", "b"):
        run(model, BOTH, tmp_path / name)
        save_quantized(tmp_path / f"{name}.safetensors", run(model, BOTH))
    assert content(tmp_path / "a") == content(tmp_path / "b")
    one, other = (tmp_path / f"{name}.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


# --- runs that stop ---


class Stop(Exception):
    pass


def stop_behind(layer):
    def progress(done, total, what):
        if what.endswith(f": block {layer}"):
            raise Stop

    return progress


def stopped(model, recipe, folder, layer):
    with pytest.raises(Stop):
        run(model, recipe, folder, progress=stop_behind(layer))
    return folder


RESUMED = [
    "w3g16-bitmod",  # no stream
    "w4-int-sym+a8-tensor-static",  # the float stream
    "w4g16-int-asym+gptq",  # the quantised stream
    BOTH,
    "w4g16a8-int-asym+hadamard+omniquant:sequences=2,epochs=2",
]


@pytest.mark.parametrize("recipe", RESUMED)
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_run_goes_on_behind_the_last_block(tmp_path, model, recipe, layer):
    run(model, recipe, tmp_path / "whole")
    folder = stopped(model, recipe, tmp_path / "q", layer)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("block-*")}
    assert len(before) == layer + 1
    q = run(model, recipe, folder)
    assert q.notes == load_quantized(tmp_path / "whole", model).notes
    assert content(folder) == content(tmp_path / "whole")
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("block-*")}
    assert {name: after[name] for name in before} == before  # none was made again


def test_a_finished_folder_is_left_as_it_is(tmp_path, model):
    run(model, BOTH, tmp_path / "q")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("q/*")}
    seen = []
    run(model, BOTH, tmp_path / "q", progress=lambda *args: seen.append(args))
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("q/*")}
    del before["plan.json"], after["plan.json"]
    assert (seen, after) == ([], before)


def begins_at(model, recipe, folder):
    """The first block that a run makes."""
    seen = []
    q = run(model, recipe, folder, progress=lambda done, total, what: seen.append(done / total))
    return round(min(seen) * CONFIG.layers) - 1, q.notes


def older_streams(folder, model):
    kept = stopped(model, BOTH, folder.parent / "older", 0) / "streams.safetensors"
    (folder / "streams.safetensors").write_bytes(kept.read_bytes())


def another_runs_streams(folder, model):
    kept = stopped(model, "w4g16-int-asym+gptq", folder.parent / "other", 2)
    (folder / "streams.safetensors").write_bytes((kept / "streams.safetensors").read_bytes())


def damage(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "first", "note"),
    [
        (lambda folder, model: None, 3, None),
        # Killed between block 3's file and the streams behind it, or long before.
        (older_streams, 1, None),
        (
            lambda folder, model: (folder / "streams.safetensors").unlink(),
            0,
            "streams.safetensors is missing; started again from block 0",
        ),
        (
            lambda folder, model: damage(folder / "streams.safetensors"),
            0,
            "streams.safetensors is damaged; started again from block 0",
        ),
        (
            lambda folder, model: os.truncate(folder / "streams.safetensors", 1000),
            0,
            "streams.safetensors is damaged; started again from block 0",
        ),
        (
            another_runs_streams,
            0,
            "streams.safetensors is another run's; started again from block 0",
        ),
        (
            lambda folder, model: (folder / "block-0002.safetensors").unlink(),
            0,
            "block-0002.safetensors is missing; started again from block 0",
        ),
        (
            lambda folder, model: damage(folder / "block-0001.safetensors"),
            0,
            "block-0001.safetensors is damaged; started again from block 0",
        ),
        (
            lambda folder, model: (folder / ".block-0003.safetensors.x1.safetensors").touch(),
            3,
            None,
        ),
    ],
    ids=[
        "as left",
        "older streams",
        "no streams",
        "damaged streams",
        "truncated streams",
        "other streams",
        "block missing",
        "block damaged",
        "half-written block",
    ],
)
def test_whatever_is_left_the_end_is_the_same(tmp_path, model, change, first, note):
    run(model, BOTH, tmp_path / "whole")
    folder = stopped(model, BOTH, tmp_path / "q", 2)
    change(folder, model)
    begun, notes = begins_at(model, BOTH, folder)
    assert begun == first
    assert list(notes[:1]) == ([] if note is None else [f"folder {folder}: {note}"])
    assert content(folder) == content(tmp_path / "whole")


def test_without_streams_only_the_damaged_block_is_made_again(tmp_path, model):
    run(model, "w3g16-bitmod", tmp_path / "whole")
    folder = stopped(model, "w3g16-bitmod", tmp_path / "q", 3)
    damage(folder / "block-0002.safetensors")
    begun, notes = begins_at(model, "w3g16-bitmod", folder)
    assert begun == 2
    note = "block-0002.safetensors is damaged; started again from block 2"
    assert notes == (f"folder {folder}: {note}",)
    assert content(folder) == content(tmp_path / "whole")


def test_a_finished_folder_with_a_damaged_block_is_made_again(tmp_path, model):
    run(model, BOTH, tmp_path / "q")
    before = content(tmp_path / "q")
    damage(tmp_path / "q" / "block-0003.safetensors")
    assert begins_at(model, BOTH, tmp_path / "q")[0] == 0
    assert content(tmp_path / "q") == before


def test_an_error_before_the_first_block_leaves_nothing(tmp_path):
    bad = make_model()
    bad.weight("blocks.0.ffn.up")[0] = 1e30  # beyond FP16 scales
    with pytest.raises(InputError, match="^layer blocks.0.ffn.up: the scale of row 0, group 0"):
        run(bad, "w4-int-sym", tmp_path / "q")
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="^layer blocks.0.ffn.up"):
        run(bad, "w4-int-sym", tmp_path / "empty")
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]
    assert not list((tmp_path / "empty").iterdir())


KILLED = """
import os, signal, sys
from importlib import import_module
from bitwright.quant import Calibration, apply_recipe, load_model

folder, recipe, name, moment = sys.argv[1:]
store = import_module("bitwright.quant.store")
block_store = import_module("bitwright.quant.block_store")
write, save = store._write, block_store.save_tensors

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def half(path, header, arrays):
    write(path, header, arrays)
    if path.name.startswith(f".{name}."):
        os.truncate(path, path.stat().st_size // 2)
        die()

def whole(path, tensors, metadata, floats=None):
    save(path, tensors, metadata, floats)
    if path.name == name or name == "streams" and metadata.get("blocks") == "3":
        die()

if moment == "half":
    store._write = half
else:
    block_store.save_tensors = whole
apply_recipe(load_model("tiny"), recipe, calibration=Calibration(sequences=2, length=32),
             folder=folder)
"""
TINY = {"calibration": Calibration(sequences=2, length=32), "text": None}


@pytest.fixture(scope="module")
def tiny():
    from bitwright.quant import load_model

    return load_model("tiny")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # half a minute each on an idle machine
@pytest.mark.parametrize(
    ("recipe", "name", "moment", "left"),
    [
        ("w4g64-int-asym+awq:grid=2+gptq", "block-0000.safetensors", "half", 0),
        ("w4g64-int-asym+awq:grid=2+gptq", "block-0000.safetensors", "whole", 1),
        ("w4g64-int-asym+awq:grid=2+gptq", "block-0002.safetensors", "half", 2),
        ("w4g64-int-asym+awq:grid=2+gptq", "streams.safetensors", "half", 1),
        ("w4g64-int-asym+awq:grid=2+gptq", "streams", "whole", 3),
        ("w4g64-int-asym+awq:grid=2+gptq", "block-0004.safetensors", "whole", 5),
        ("w2g64-int-asym+omniquant:sequences=2,epochs=1", "block-0002.safetensors", "half", 2),
        ("w2g64-int-asym+omniquant:sequences=2,epochs=1", "block-0002.safetensors", "whole", 3),
        ("w2g64-int-asym+omniquant:sequences=2,epochs=1", "streams", "whole", 3),
    ],
)
def test_killed_and_taken_up_again(tmp_path_factory, tiny, recipe, name, moment, left):
    base = tmp_path_factory.getbasetemp() / f"killed-{recipe.replace(':', '-')}"
    if not base.exists():
        run(tiny, recipe, base, **TINY)
    folder = tmp_path_factory.mktemp("killed") / "q"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), recipe, name, moment])
    assert killed.returncode == -signal.SIGKILL
    assert len(list(folder.glob("block-*"))) == left
    assert "finished" not in json.loads((folder / "plan.json").read_text())
    run(tiny, recipe, folder, **TINY)
    assert content(folder) == content(base)


# --- refusals ---


def refused(message, call):
    with pytest.raises(InputError) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"recipe": "w4g16-int-asym+gptq"},
            r"with another recipe \('w4g16-int-asym\+awq:grid=2\+gptq', not 'w4g16-int-asym\+gptq'",
        ),
        (
            {"calibration": Calibration(sequences=4, length=16)},
            r"with another calibration \(length 32, not 16\)",
        ),
        (
            {"text": TEXT[::-1]},
            r"with another calibration text \([0-9a-f]{12}\.\.\., not [0-9a-f]{12}\.\.\.\)",
        ),
        (
            {"model": make_model(seed=1)},
            r"with another model \([0-9a-f]{12}\.\.\., not [0-9a-f]{12}\.\.\.\)",
        ),
        (
            {"model": make_model(replace(CONFIG, norm_eps=1e-6))},
            r"with another model shape \(norm_eps 1e-05, not 1e-06\)",
        ),
    ],
    ids=["recipe", "calibration", "text", "weights", "shape"],
)
def test_another_runs_folder(tmp_path, model, change, message):
    folder = stopped(model, BOTH, tmp_path / "q", 1)
    before = content(folder)
    how = {"model": model, "recipe": BOTH, "folder": folder, **change}
    end = r".*; choose another folder or remove it$"
    refused(f"^folder {folder} holds a run {message}{end}", lambda: run(**how))
    assert content(folder) == before


def test_another_versions_folder(tmp_path, model, monkeypatch):
    folder = stopped(model, BOTH, tmp_path / "q", 1)
    monkeypatch.setattr("bitwright.__version__", "9.9")
    refused(r"with another version \('.*', not '9.9'\)", lambda: run(model, BOTH, folder))


def test_a_folder_of_something_else(tmp_path, model):
    (tmp_path / "letter.txt").touch()
    message = "is not empty and holds no plan.json; choose another folder$"
    refused(message, lambda: run(model, BOTH, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_plan_that_is_none(tmp_path, model):
    (tmp_path / "plan.json").write_text("[]")
    refused("plan.json holds no object; name a folder wri", lambda: run(model, BOTH, tmp_path))
    (tmp_path / "plan.json").write_text("{")
    refused("plan.json cannot be read .*; name a folder", lambda: run(model, BOTH, tmp_path))


def test_a_file_in_place_of_the_folder(tmp_path, model):
    (tmp_path / "q").touch()
    refused(
        "^output folder .*q cannot be written: File exi", lambda: run(model, BOTH, tmp_path / "q")
    )


def test_two_runs_at_once(tmp_path, model):
    def second(*_):
        refused(
            f"^another run is writing to folder {tmp_path / 'q'}; wait for it or choose another",
            lambda: run(model, BOTH, tmp_path / "q"),
        )

    run(model, BOTH, tmp_path / "q", progress=second)
    run(model, BOTH, tmp_path / "q")  # the lock is gone
    assert ".lock" not in content(tmp_path / "q")


def test_a_run_that_failed_keeps_no_lock(tmp_path, model):
    with pytest.raises(Stop) as kept:  # its traceback holds all that the run held
        run(model, BOTH, tmp_path / "q", progress=stop_behind(1))
    run(model, BOTH, tmp_path / "q")
    assert kept.value is not None


def test_a_file_system_without_locks(tmp_path, model, monkeypatch):
    def fail(*_):
        raise OSError("Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", fail)
    run(model, "w4-int-sym", tmp_path / "q")


def test_a_folder_that_is_not_finished(tmp_path, model):
    folder = stopped(model, BOTH, tmp_path / "q", 1)
    refused(
        f"^folder {folder} is not finished; run bitwright quantize with the same arguments again$",
        lambda: load_quantized(folder, model),
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_model(replace(CONFIG, layers=3), "less"), "holds a quantised made, not less; name"),
        (
            make_model(name="twin", seed=1),
            "holds a quantised made with other weights than twin; name its model$",
        ),
    ],
    ids=["shape", "weights"],
)
@pytest.mark.parametrize("form", ["folder", "file"])
def test_another_model(tmp_path, model, other, message, form):
    path = tmp_path / "q"
    q = run(model, "w4-int-sym", path if form == "folder" else None)
    if form == "file":
        save_quantized(path, q)
    refused(f"^{form} {path} {message}", lambda: load_quantized(path, other))


def test_a_model_under_another_name_is_the_same_model(tmp_path, model):
    run(model, "w4-int-sym", tmp_path / "q")
    assert load_quantized(tmp_path / "q", make_model(name="moved")).base.name == "moved"


def test_a_damaged_block(tmp_path, model):
    run(model, "w4-int-sym", tmp_path / "q")
    damage(tmp_path / "q" / "block-0002.safetensors")
    q = load_quantized(tmp_path / "q", model)
    assert q.blocks[1].layer == 1
    refused(
        "block-0002.safetensors is damaged: its content does not match its SHA-256; write it again",
        lambda: judged(q),
    )


def test_a_block_that_is_another(tmp_path, model):
    run(model, "w4-int-sym", tmp_path / "q")
    one, other = (tmp_path / "q" / f"block-000{i}.safetensors" for i in (1, 2))
    one.write_bytes(other.read_bytes())
    q = load_quantized(tmp_path / "q", model)
    refused(r"block-0001.safetensors holds no block 1 \(it is block 2\)", lambda: q.blocks[1])


def test_a_missing_block(tmp_path, model):
    run(model, "w4-int-sym", tmp_path / "q")
    (tmp_path / "q" / "block-0001.safetensors").unlink()
    q = load_quantized(tmp_path / "q", model)
    refused("^cannot read .*block-0001.safetensors: No such file", lambda: q.blocks[1])


def test_nothing_there(tmp_path, model):
    refused("^cannot read .*none: No such file", lambda: load_quantized(tmp_path / "none", model))
    refused(
        "plan.json cannot be read .No such file or directory.; name a folder written by bitwright",
        lambda: load_quantized(tmp_path, model),
    )


def test_a_file_of_tensors_alone(tmp_path, model):
    from bitwright.quant import save_tensors

    save_tensors(tmp_path / "q", run(model, "w4-int-sym").tensors, {"model": "made"})
    refused(
        "q holds tensors but no whole model; write it again with bitwright quantize$",
        lambda: load_quantized(tmp_path / "q", model),
    )


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("recipe", "w4-nonsense", "unknown recipe 'w4-nonsense'"),
        ("calibration", {"sequences": 0}, "1 validation error for Calibration"),
        ("calibration_text", ..., "'calibration_text'"),
    ],
)
def test_a_plan_that_contradicts_itself(tmp_path, model, field, value, reason):
    run(model, "w4-int-sym", tmp_path / "q")
    plan = json.loads((tmp_path / "q" / "plan.json").read_text()) | {field: value}
    plan = {key: value for key, value in plan.items() if value is not ...}
    (tmp_path / "q" / "plan.json").write_text(json.dumps(plan))
    refused(
        rf"^{tmp_path / 'q'} contradicts itself \({reason}.*\); write it again$",
        lambda: load_quantized(tmp_path / "q", model),
    )


def test_blocks_are_a_sequence(tmp_path, model):
    blocks = run(model, "w4-int-sym", tmp_path / "q").blocks
    assert len(blocks) == 4
    assert blocks[-1].layer == 3
    assert [block.layer for block in blocks[1:3]] == [1, 2]
    assert blocks[2] is blocks[2]  # the one used last stays
    with pytest.raises(IndexError):
        blocks[4]
