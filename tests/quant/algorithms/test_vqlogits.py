"""VQ-Logits: k-means by hand, the hard floor, the softmax by counts, bits, files, hardware."""

import math
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bitwright.quant import (
    Calibration,
    InputError,
    apply_recipe,
    load_model,
    load_quantized,
    load_tensors,
    load_text,
    peak_parts,
    perplexity,
    resolve_recipe,
    save_quantized,
    save_tensors,
)
from bitwright.sim import load_shape, output_rows, simulate_generation, simulate_model

vq = import_module("bitwright.quant.algorithms.vqlogits")
FEW = Calibration(sequences=4, length=64)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def shared(tiny):
    """64 codes for 256 tokens, the rest of the model as it is."""
    return apply_recipe(tiny, "fp16+vqlogits:codes=64")


def normals(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


# ---------------------------------------------------------------------- k-means


def test_clusters_that_anyone_sees_are_found():
    """Ten far clumps of 20 rows: one centre each, at their mean."""
    places = 100 * normals(10, 8, 1)
    rows = (places[:, None] + normals(200, 8).reshape(10, 20, 8)).reshape(-1, 8)
    for seed in range(5):
        centres = vq.kmeans(rows, 10, seed, 10)
        own, _ = vq.nearest(rows, centres)
        groups = own.reshape(10, 20)
        assert (groups == groups[:, :1]).all() and len(set(groups[:, 0])) == 10
        means = rows.reshape(10, 20, 8).mean(axis=1)
        assert np.allclose(centres[groups[:, 0]], means, atol=1e-4)


def test_one_step_by_hand():
    rows = np.array([[0], [1], [10], [12]], np.float32)
    own, distance = vq.nearest(rows, np.array([[1], [9]], np.float32))
    assert own.tolist() == [0, 0, 1, 1] and distance.tolist() == [1, 0, 1, 9]
    # Halfway, the first centre wins.
    assert vq.nearest(np.array([[5]], np.float32), np.array([[1], [9]], np.float32))[0] == [0]
    assert vq._means(rows, own, np.zeros((3, 1), np.float32)).tolist() == [[0.5], [11], [0]]


@pytest.mark.parametrize("codes", [1, 2, 7, 64, 200, 255])
def test_first_centres_are_different_rows(codes):
    rows = normals(256, 4)
    first = vq.first_centres(rows, codes, 3)
    assert len(set(first.tolist())) == codes
    assert np.array_equal(first, vq.first_centres(rows, codes, 3))
    same = np.repeat(rows[:8], 32, axis=0)  # only 8 rows are unlike
    first = vq.first_centres(same, codes, 0)
    assert len(set(first.tolist())) == codes
    assert len({tuple(row) for row in same[first]}) == min(codes, 8)


def test_the_error_never_rises():
    rows = normals(500, 16)
    errors = []
    for iterations in range(6):
        centres = vq.kmeans(rows, 20, 0, iterations)
        errors.append(vq.nearest(rows, centres)[1].sum())
    assert all(b <= a * (1 + 1e-6) for a, b in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 0.9 * errors[0]
    assert np.array_equal(vq.kmeans(rows, 20, 0, 200), vq.kmeans(rows, 20, 0, 201))  # ended


def test_one_code_is_the_mean():
    rows = normals(3000, 5)  # more than are handled at a time
    centre = vq.kmeans(rows, 1, 0, 5)
    assert np.allclose(centre, rows.mean(axis=0, keepdims=True), atol=1e-5)


# ---------------------------------------------------------------- oracles of the head


def test_as_many_codes_as_tokens_are_the_dense_head(tiny):
    """K = V: the identity, and tiny's weights are FP16 numbers."""
    q = apply_recipe(tiny, "fp16+vqlogits:codes=256")
    assert q.head.token_codes.tolist() == list(range(256))
    assert np.array_equal(q.head.dequantize(), tiny.head_weight.numpy())
    tokens = torch.tensor([tiny.tokenizer.encode(load_text().content)[:64]])
    assert torch.equal(q.model.logits(tokens), tiny.logits(tokens))
    assert perplexity(q.model, max_tokens=512, window=128) == perplexity(
        tiny, max_tokens=512, window=128
    )


def test_tokens_of_a_code_are_equally_likely_and_that_is_a_floor(tiny, shared):
    head = shared.head
    tokens = torch.tensor([tiny.tokenizer.encode(load_text().content)[:257]])
    logits = shared.model.logits(tokens[:, :-1])[0]
    likely = logits.log_softmax(-1)
    for code in range(64):
        held = np.flatnonzero(head.token_codes == code)
        assert (likely[:, held] == likely[:, held[:1]]).all()
    counts = torch.from_numpy(head.counts())
    assert counts.max() > 1 and counts.sum() == 256
    most = -torch.log(counts[head.token_codes])  # of each token, 1 / n
    assert (likely <= most + 1e-5).all()
    losses = F.cross_entropy(logits, tokens[0, 1:], reduction="none")
    floor = head.floor(tokens[0, 1:].numpy())
    assert (losses.numpy() >= floor - 1e-5).all() and floor.max() > 1
    # By hand: a code of 34 tokens bounds the loss of each by log 34.
    token = int(np.flatnonzero(head.token_codes == counts.argmax().item())[0])
    assert head.floor(np.array(token)) == math.log(int(counts.max()))


def test_one_code_makes_all_tokens_alike(tiny):
    q = apply_recipe(tiny, "fp16+vqlogits:codes=1")
    assert perplexity(q.model, max_tokens=256, window=128).perplexity == pytest.approx(256, abs=0.1)
    assert q.head_bits == 16 * tiny.config.hidden  # a map of 0 bits


def test_softmax_by_counts_is_the_softmax_behind_the_map(tiny, shared):
    head = shared.head
    tokens = torch.tensor([tiny.tokenizer.encode(load_text().content)[:32]])
    hidden = shared.model.hidden(tokens)[0].double().numpy()
    scores = hidden @ head.codebook.astype(np.float64).T
    whole = torch.from_numpy(scores[:, head.token_codes]).logsumexp(-1).numpy()
    assert np.allclose(vq.log_normaliser(scores, head.counts()), whole, atol=1e-12)
    # A code without tokens has no part, however high its score.
    assert vq.log_normaliser(np.array([0.0, 900.0]), np.array([2, 0])) == math.log(2)


def test_the_map_is_the_nearest_stored_code(tiny, shared):
    head, rows = shared.head, tiny.head_weight.numpy()
    distance = np.square(rows[:, None] - head.codebook.astype(np.float32)).sum(-1)
    own = distance[np.arange(256), head.token_codes]
    assert np.allclose(own, distance.min(1), rtol=1e-4)


# ------------------------------------------------------------------------- bits


@pytest.mark.parametrize(
    ("codes", "vocab", "bits"),
    [(1, 50, 0), (2, 48, 1), (3, 48, 2), (256, 304, 8), (257, 304, 9), (1024, 1200, 10)],
)
def test_bits_are_the_formula_and_the_file(tmp_path, codes, vocab, bits):
    rows = normals(vocab, 8)
    token_codes = np.random.default_rng(1).integers(0, codes, vocab)
    token_codes[:codes] = np.arange(codes)
    head = vq.VqHead(rows[:codes].astype(np.float16), token_codes)
    assert head.stored_bits == 16 * codes * 8 + vocab * bits
    assert head.nominal_bits == 16 * codes / vocab
    (one,) = head.passes()
    assert (one.n, one.k, one.format, one.bits) == (codes, 8, None, head.stored_bits)
    ((x, w),) = head.operands(rows)
    assert np.array_equal(w[token_codes], head.dequantize()) and np.array_equal(x, rows)
    save_tensors(tmp_path / "h.safetensors", {"head": head}, {})
    (back,) = load_tensors(tmp_path / "h.safetensors")[0].values()
    assert back == head and np.array_equal(back.dequantize(), head.dequantize())


def test_the_paper_size():
    """V = 32000, d = 4096, K = 1024: 4.19 M values and 40 kB of map, 96.8 % less."""
    head = vq.VqHead(np.zeros((1024, 4096), np.float16), np.arange(32_000) % 1024)
    entries = head.entries()
    assert entries["codebook"].size == 4_194_304
    assert sum(entries[name].nbytes for name in ("map_0", "map_1")) == 40_000
    assert 1 - head.codebook.size / (32_000 * 4096) == pytest.approx(0.968)


def test_contradictions_are_refused():
    codebook, token_codes = normals(3, 2).astype(np.float16), np.array([0, 1, 2, 2])
    for wrong, message in [
        ((codebook.astype(np.float32), token_codes), "codebook is float32 .3, 2.; float16"),
        (
            (codebook, token_codes.astype(np.uint8)),
            "token_codes are uint8; int64 .vocab. is needed",
        ),
        ((codebook, token_codes + 1), "token_codes hold 1 .. 3, outside 0 .. 2$"),
        ((codebook, token_codes[:2]), "codes .=3. of vqlogits must be at most the 2 rows of the"),
    ]:
        with pytest.raises(InputError, match=f"^{message}"):
            vq.VqHead(*wrong)
    step = resolve_recipe("fp16+vqlogits:codes=2").head
    with pytest.raises(InputError, match="^rows of the output layer are beyond FP16's range; vqlo"):
        step.compress(np.full((4, 2), 1e6, np.float32))
    head = vq.VqHead(codebook, token_codes)
    with pytest.raises(InputError, match="^codebook is .3, 2., not as the settings say$"):
        vq.VqHead.restored({**head.settings(), "codes": 4}, head.entries())


# ---------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    "name",
    [
        "w4g64-int-sym+vqlogits:codes=100,seed=2",
        "w4g64-int-sym+hadamard+vqlogits:codes=100",
        "nvfp4+rht+scales2d+vqlogits:codes=128,iterations=3",
        "bitnet+vqlogits:codes=64",
        "w4g64-int-sym+gptq+vqlogits:codes=64",
        "fp16+wanda+vqlogits:codes=64",
    ],
)
@pytest.mark.parametrize("place", ["q.safetensors", "folder"])
def test_behind_any_recipe(tiny, tmp_path, name, place):
    folder = tmp_path / place if place == "folder" else None
    q = apply_recipe(tiny, name, calibration=FEW, folder=folder)
    plain = apply_recipe(tiny, name[: name.index("+vqlogits")], calibration=FEW)
    assert q.recipe.name == name and q.tensors == plain.tensors
    assert q.bits_per_weight == plain.bits_per_weight
    assert q.head_bits < plain.head_bits == 16 * 256 * tiny.config.hidden
    assert q.head.describe() in q.notes and q.model.config.vocab == 256
    read = {"max_tokens": 512, "window": 128}
    found = perplexity(q.model, **read, linear=q.linear()).perplexity
    assert perplexity(plain.model, **read, linear=plain.linear()).perplexity < found < 256
    if folder is None:
        save_quantized(tmp_path / place, q)
    back = load_quantized(tmp_path / place, tiny)
    assert back.head == q.head and back.head_bits == q.head_bits and back.recipe == q.recipe
    assert perplexity(back.model, **read, linear=back.linear()).perplexity == found
    assert apply_recipe(tiny, name, calibration=FEW).head == q.head


def test_a_file_holds_the_true_bits(tiny, tmp_path):
    from safetensors import safe_open

    q = apply_recipe(tiny, "w4g64-int-sym+hadamard+vqlogits:codes=64")
    save_quantized(tmp_path / "q.safetensors", q)
    with safe_open(tmp_path / "q.safetensors", framework="np") as file:
        sizes = {key: 8 * file.get_tensor(key).nbytes for key in file.keys()}
    assert sum(size for key, size in sizes.items() if not key.endswith(".float")) == (
        q.stored_bits + q.head_bits
    )
    assert sum(size for key, size in sizes.items() if key.startswith("head.")) == q.head_bits
    assert "head.float" not in sizes and "embed.float" in sizes  # the rotated embedding is dense


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fp16+vqlogits+vqlogits", "vqlogits stands twice; keep one of them"),
        ("w4g64-int-sym+vqlogits+gptq", "gptq must come before vqlogits; write it first"),
        ("bitnet+vqlogits+superweight", "superweight must come before vqlogits; write it first"),
        ("fp16+vqlogits:codes=0", "option codes of vqlogits is '0': input should be greater than "),
    ],
)
def test_what_makes_no_sense_is_refused(name, message):
    with pytest.raises(InputError) as error:
        resolve_recipe(name)
    assert str(error.value).startswith(f"recipe {name!r}: {message}")


def test_more_codes_than_tokens_are_refused_before_any_work(tiny):
    called = []
    message = (
        "codes (=257) of vqlogits must be at most the 256 rows of the output layer; nearest: 256"
    )
    with pytest.raises(InputError) as error:
        apply_recipe(
            tiny, "w4g64-int-sym+vqlogits:codes=257", progress=lambda *at: called.append(at)
        )
    assert str(error.value) == message and not called
    with pytest.raises(
        InputError, match=r"^codes \(=40000\) of vqlogits must be at most the 32000"
    ):
        simulate_model("llama-2-7b", "w4g64-int-sym-s8+vqlogits:codes=40000")


def test_a_file_whose_head_is_not_the_recipe_s_is_refused(tiny, shared, tmp_path):
    plain = apply_recipe(tiny, "fp16+vqlogits:codes=64")
    plain.head = None
    save_quantized(tmp_path / "q.safetensors", plain)
    with pytest.raises(
        InputError, match="contradicts itself .its output layer is not the recipe's"
    ):
        load_quantized(tmp_path / "q.safetensors", tiny)


# --------------------------------------------------------------------- hardware


def test_hardware_computes_as_many_rows_as_codes():
    names = ("w4g64-int-sym-s8", "w4g64-int-sym-s8+vqlogits:codes=1024")
    plain, few = (simulate_model("llama-2-7b", name, "decode") for name in names)
    heads = [next(row for row in r.layers if row.name == "lm_head") for r in (plain, few)]
    assert [head.n for head in heads] == [32_000, 1024]
    # FP16 rows of 4096: 30976 of them are not moved.
    saved = plain.to_dict()["dram_bytes"] - few.to_dict()["dram_bytes"]
    assert saved == pytest.approx(30_976 * 4096 * 2, rel=0.01)
    assert few.cycles < plain.cycles
    assert any("1024 code vectors" in note for note in few.notes)
    made = [simulate_generation("llama-2-7b", name, prompt=4, generate=2) for name in names]
    assert made[1].to_dict()["cycles"] < made[0].to_dict()["cycles"]
    shape = load_shape("llama-2-7b")
    assert output_rows(shape, resolve_recipe("fp16")) is shape


def test_memory_counts_the_codebook(tiny):
    parts = peak_parts(tiny.config, "fp16+vqlogits:codes=64")
    assert parts["codebook"] == 20 * 64 * tiny.config.hidden + 12 * 1024 * 64 + (
        0 if tiny.config.tied_embeddings else 4 * 256 * tiny.config.hidden
    )
    assert "codebook" not in peak_parts(tiny.config, "fp16+hadamard")


def test_the_command_writes_a_model_whose_blocks_stay(tmp_path, capsys):
    from bitwright.commands.quantize import quantize

    out = tmp_path / "q.safetensors"
    quantize(model="tiny", recipe="fp16+vqlogits:codes=64", out=out)
    assert "output layer: 64 code vectors for 256 tokens, 4.047 bits/weight; at most 34 tokens" in (
        capsys.readouterr().out.replace("\n", " ")
    )
    assert load_quantized(out, load_model("tiny")).head.codes == 64
