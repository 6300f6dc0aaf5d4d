"""Shapes, and the matrix products and vector operations they stand for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.quant import InputError
from bitwright.sim import (
    SHAPES,
    Gemm,
    ModelShape,
    VectorOp,
    Workload,
    decode,
    decode_parts,
    load_shape,
    prefill,
    read_gemms,
)

TOY = ModelShape("toy", 2, 8, 4, 2, 3, 16, 100, gated=True)


def rows(workload):
    return {gemm.name: (gemm.m, gemm.n, gemm.k, gemm.count) for gemm in workload.gemms}


def test_the_six_models_of_the_bitmod_study_are_in_the_library():
    assert {"opt-1.3b", "phi-2", "yi-6b", "llama-2-7b", "llama-2-13b", "llama-3-8b"} <= set(SHAPES)
    assert len(SHAPES) == 32
    assert all("unverified" in shape.source for shape in SHAPES.values())


def test_block_parameters_of_llama_2_7b():
    # 32 layers of 4 * 4096 * 4096 (q, k, v, o) + 3 * 4096 * 11008 (gate, up, down)
    assert SHAPES["llama-2-7b"].block_parameters == 6_476_005_376


def test_products_of_bitnet_2b4t_are_those_of_its_kernels():
    """N x K of microsoft/BitNet's gpu/README.md; it joins q, k and v, and gate and up."""
    shape = SHAPES["bitnet-b1.58-2b4t"]
    assert "microsoft/BitNet, gpu/model.py" in shape.source
    assert (shape.activation, shape.gated, shape.sub_norms) == ("squared_relu", True, True)
    gemms = {gemm.name: gemm for gemm in prefill(shape, 1).gemms if gemm.kind == "block"}
    assert {gemm.count for gemm in gemms.values()} == {30}

    def joined(*names):
        return sum(gemms[name].n for name in names), {gemms[name].k for name in names}

    assert joined("attn.q", "attn.k", "attn.v") == (3840, {2560})
    assert joined("attn.o") == (2560, {2560})
    assert joined("ffn.gate", "ffn.up") == (13824, {2560})
    assert joined("ffn.down") == (2560, {6912})


def test_prefill_of_a_toy_model():
    # 4 query heads of width 3 share 2 key heads: queries are 12 wide, keys 6, and two query heads
    # (2 * 5 rows) meet each key head.
    assert rows(prefill(TOY, 5)) == {
        "attn.q": (5, 12, 8, 2),
        "attn.k": (5, 6, 8, 2),
        "attn.v": (5, 6, 8, 2),
        "attn.scores": (10, 5, 3, 4),
        "attn.values": (10, 3, 5, 4),
        "attn.o": (5, 8, 12, 2),
        "ffn.gate": (5, 16, 8, 2),
        "ffn.up": (5, 16, 8, 2),
        "ffn.down": (5, 8, 16, 2),
        "lm_head": (5, 100, 8, 1),
    }


def test_decode_of_llama_3_8b_reads_each_key_head_once():
    table = rows(decode(SHAPES["llama-3-8b"], 256))
    # 32 layers x 8 key heads, 4 query heads each
    assert table["attn.scores"] == (4, 256, 128, 256)
    assert table["attn.values"] == (4, 128, 256, 256)
    assert table["attn.k"] == (1, 1024, 4096, 32)


@pytest.mark.parametrize("name", [name for name in SHAPES if SHAPES[name].experts == 1])
@pytest.mark.parametrize("tokens", [1, 7, 256])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_weight_meets_every_token_once(name, tokens, batch):
    shape = SHAPES[name]
    weights = (shape.block_parameters + shape.vocab * shape.hidden) * tokens * batch
    # Each head multiplies tokens x context x head_dim twice; causal: a token sees itself and those
    # before it.
    width = 2 * shape.layers * shape.heads * shape.head_dim * batch
    square = prefill(shape, tokens, batch=batch, causal=False)
    assert square.macs == weights + width * tokens * tokens
    causal = prefill(shape, tokens, batch=batch)
    assert causal.macs == weights + width * tokens * (tokens + 1) // 2


@pytest.mark.parametrize("name", SHAPES)
def test_a_causal_prefill_computes_what_its_tokens_would_one_by_one(name):
    shape = SHAPES[name]

    def attention(workload: Workload) -> tuple[int, int]:
        products = sum(gemm.macs for gemm in workload.gemms if gemm.kind == "cache")
        softmax = sum(op.elements for op in workload.vector if op.name == "attn.softmax")
        return products, softmax

    steps = [attention(decode(shape, context, batch=2)) for context in range(1, 20)]
    assert attention(prefill(shape, 19, batch=2)) == tuple(map(sum, zip(*steps, strict=True)))


@given(st.data())
def test_masked_products_need_what_lies_below_the_diagonal(data):
    positions, sharing = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    width, count = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    rows = positions * sharing
    seen = [row // sharing + 1 for row in range(rows)]  # positions that a row sees
    scores = Gemm("s", rows, positions, width, count, "cache", "scores", sharing)
    values = Gemm("v", rows, width, positions, count, "cache", "values", sharing)
    assert scores.macs == values.macs == count * width * sum(seen)
    assert VectorOp("x", "softmax", rows, positions, count, causal=True).elements == count * sum(
        seen
    )


def test_a_mask_needs_its_rows():
    message = "a: m is 5; a product masked 'scores' over 2 positions has 3 rows for each, so m = 6"
    with pytest.raises(InputError, match=message):
        Gemm("a", 5, 2, 4, mask="scores", rows_per_position=3)
    with pytest.raises(InputError, match="masked 'values' over 4 positions has 1 rows"):
        Gemm("a", 5, 2, 4, mask="values")


def test_prefill_marks_its_attention_as_causal():
    masks = {gemm.name: gemm.mask for gemm in prefill(TOY, 5).gemms}
    assert masks.pop("attn.scores") == "scores" and masks.pop("attn.values") == "values"
    assert set(masks.values()) == {"none"}
    assert {gemm.mask for gemm in prefill(TOY, 5, causal=False).gemms} == {"none"}
    assert {gemm.rows_per_position for gemm in prefill(TOY, 5).gemms} == {1, 2}


def test_a_batch_shares_weights_but_no_cache():
    one, three = rows(prefill(TOY, 5)), rows(prefill(TOY, 5, batch=3))
    for name, (m, n, k, count) in one.items():
        attention = name in ("attn.scores", "attn.values")
        assert three[name] == ((m, n, k, 3 * count) if attention else (3 * m, n, k, count))
    assert (prefill(TOY, 5, batch=3).tokens, prefill(TOY, 5, batch=3).context) == (15, 5)
    step = decode(TOY, 9, batch=3)
    assert (step.tokens, step.context, step.batch) == (3, 9, 3)
    assert rows(step)["attn.scores"] == (2, 9, 3, 12)
    assert rows(step)["lm_head"] == (3, 100, 8, 1)


def test_a_generation_needs_the_logits_of_the_last_position_only():
    everything, last = prefill(TOY, 5, batch=2), prefill(TOY, 5, batch=2, logits="last")
    assert rows(last).pop("lm_head") == (2, 100, 8, 1)
    assert rows(everything).pop("lm_head") == (10, 100, 8, 1)
    assert everything.gemms[:-1] == last.gemms[:-1]
    assert [op.rows for op in last.vector if op.name.startswith("lm_head")] == [2, 2]
    assert [op.rows for op in everything.vector if op.name.startswith("lm_head")] == [10, 10]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("batch", [1, 4])
def test_every_row_of_the_cache_is_written_once_and_read_whole(name, batch):
    shape = SHAPES[name]
    written = prefill(shape, 7, batch=batch).cache_rows + decode(shape, 8, batch=batch).cache_rows
    assert written == 2 * shape.layers * shape.kv_heads * batch * 8  # keys and values
    step = decode(shape, 8, batch=batch)
    read = sum(gemm.n * gemm.k * gemm.count for gemm in step.gemms if gemm.kind == "cache")
    assert read == written * shape.head_dim
    for gemm in step.gemms:
        if gemm.cache_rows:
            assert gemm.name in ("attn.k", "attn.v")
            assert gemm.m * gemm.n == gemm.cache_rows * shape.head_dim


def test_vector_operations_of_a_toy_model():
    # 4 query and 2 key heads of width 3, 5 tokens, 2 layers.
    assert prefill(TOY, 5).vector == (
        VectorOp("embed", "embed", 5, 8),
        VectorOp("norm", "rmsnorm", 5, 8, 4),
        VectorOp("attn.rotary", "rotary", 30, 3, 2),
        VectorOp("attn.softmax", "softmax", 10, 5, 4, causal=True),
        VectorOp("ffn.activation", "silu_gate", 5, 16, 2),
        VectorOp("residual", "add", 5, 8, 4),
        VectorOp("lm_head.norm", "rmsnorm", 5, 8),
        VectorOp("lm_head.choice", "argmax", 5, 100),
    )
    assert decode(TOY, 9, batch=3).vector == (
        VectorOp("embed", "embed", 3, 8),
        VectorOp("norm", "rmsnorm", 3, 8, 4),
        VectorOp("attn.rotary", "rotary", 18, 3, 2),
        VectorOp("attn.softmax", "softmax", 2, 9, 12),
        VectorOp("ffn.activation", "silu_gate", 3, 16, 2),
        VectorOp("residual", "add", 3, 8, 4),
        VectorOp("lm_head.norm", "rmsnorm", 3, 8),
        VectorOp("lm_head.choice", "argmax", 3, 100),
    )


def test_quantisation_is_a_vector_operation():
    plain = prefill(TOY, 5).vector
    inputs = prefill(TOY, 5, quantise_inputs=True).vector
    assert set(inputs) - set(plain) == {
        VectorOp("attn.quantise", "quantise", 5, 8, 2),
        VectorOp("attn.o.quantise", "quantise", 5, 12, 2),
        VectorOp("ffn.quantise", "quantise", 5, 8, 2),
        VectorOp("ffn.down.quantise", "quantise", 5, 16, 2),
    }
    # Keys and values of 5 tokens and 2 key heads.
    cache = prefill(TOY, 5, quantise_cache=True).vector
    assert set(cache) - set(plain) == {VectorOp("attn.cache_quantise", "quantise", 20, 3, 2)}
    step = decode(TOY, 5, quantise_cache=True)
    assert VectorOp("attn.cache_quantise", "quantise", 4, 3, 2) in step.vector


def test_vector_operations_of_other_blocks():
    functions = {
        name: {op.name: op.function for op in decode(SHAPES[name]).vector}
        for name in ("opt-1.3b", "phi-2", "qwen3-4b", "bitnet-b1.58-2b4t", "mixtral-8x7b")
    }
    opt = functions["opt-1.3b"]
    assert (opt["norm"], opt["ffn.activation"]) == ("layernorm", "relu")
    assert opt["embed.positions"] == "embed" and "attn.rotary" not in opt
    assert functions["phi-2"]["ffn.activation"] == "gelu"
    # A Phi-2 block has one norm, and rotates 32 of the 80 elements of a head.
    phi = {op.name: op for op in decode(SHAPES["phi-2"]).vector}
    assert phi["norm"] == VectorOp("norm", "layernorm", 1, 2560, 32)
    assert phi["attn.rotary"] == VectorOp("attn.rotary", "rotary", 64, 32, 32)
    qwen = {op.name: op for op in decode(SHAPES["qwen3-4b"]).vector}
    assert qwen["attn.qk_norm"] == VectorOp("attn.qk_norm", "rmsnorm", 40, 128, 36)
    bitnet = functions["bitnet-b1.58-2b4t"]
    assert (bitnet["ffn.activation"], bitnet["ffn.gating"]) == ("squared_relu", "multiply")
    assert bitnet["attn.sub_norm"] == bitnet["ffn.sub_norm"] == "rmsnorm"


def test_vector_operations_of_a_mixture_of_experts():
    ops = {op.name: op for op in prefill(SHAPES["mixtral-8x7b"], 5).vector}
    assert ops["ffn.router.softmax"] == VectorOp("ffn.router.softmax", "softmax", 5, 8, 32)
    assert ops["ffn.router.choice"] == VectorOp("ffn.router.choice", "argmax", 5, 8, 64)
    assert ops["ffn.activation"] == VectorOp("ffn.activation", "silu_gate", 10, 14336, 32)
    assert ops["ffn.experts.weigh"] == VectorOp("ffn.experts.weigh", "scale", 10, 4096, 32)
    assert ops["ffn.experts.sum"] == VectorOp("ffn.experts.sum", "add", 5, 4096, 32)
    one = replace(SHAPES["mixtral-8x7b"], experts_per_token=1)
    assert "ffn.experts.sum" not in {op.name for op in prefill(one, 5).vector}


@pytest.mark.parametrize("name", ["opt-1.3b", "llama-3-8b", "mixtral-8x7b", "bitnet-b1.58-2b4t"])
def test_the_parts_of_decode_steps_are_their_rows(name):
    shape, contexts = SHAPES[name], (3, 4, 9)
    options = {"batch": 2, "quantise_inputs": True, "quantise_cache": True}
    linear, attention = decode_parts(shape, contexts, **options)
    assert (len(attention.gemms), len(attention.vector)) == (6, 3)
    for index, context in enumerate(contexts):
        step = decode(shape, context, **options)
        gemms = linear.gemms + attention.gemms[2 * index : 2 * index + 2]
        assert sorted(map(repr, gemms)) == sorted(map(repr, step.gemms))
        vector = (*linear.vector, attention.vector[index])
        assert sorted(map(repr, vector)) == sorted(map(repr, step.vector))


def test_a_model_without_gate_has_two_matrices_in_its_feed_forward_net():
    names = [gemm.name for gemm in decode(SHAPES["opt-1.3b"]).gemms]
    assert "ffn.gate" not in names and names.count("ffn.up") == 1


def test_the_cache_is_marked_as_activations():
    marked = {gemm.name for gemm in decode(TOY).gemms if gemm.weight_is_activation}
    assert marked == {"attn.scores", "attn.values"}
    assert {gemm.name: gemm.kind for gemm in decode(TOY).gemms}["lm_head"] == "plain"


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (1, [(1, 2)]),  # 2 pairs touch 2 experts
        (3, [(1, 6)]),
        (5, [(2, 2), (1, 6)]),  # 10 pairs over 8 experts: two of them get 2 tokens
        (256, [(64, 8)]),
    ],
)
def test_tokens_spread_evenly_over_the_experts_of_mixtral(tokens, expected):
    shape = SHAPES["mixtral-8x7b"]
    gemms = prefill(shape, tokens).gemms
    downs = [(gemm.m, gemm.count) for gemm in gemms if gemm.name == "ffn.down"]
    assert downs == [(m, 32 * count) for m, count in expected]
    assert sum(m * count for m, count in downs) == 32 * tokens * shape.experts_per_token
    assert (tokens, 8, 4096, 32) in [
        (gemm.m, gemm.n, gemm.k, gemm.count) for gemm in gemms if gemm.name == "ffn.router"
    ]


# ------------------------------------------------------------------ config.json

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "rope_scaling": None,
}
OPT = {
    "model_type": "opt",
    "num_hidden_layers": 24,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "ffn_dim": 8192,
    "vocab_size": 50272,
    "word_embed_proj_dim": 2048,
}
PHI = {
    "model_type": "phi",
    "num_hidden_layers": 32,
    "hidden_size": 2560,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "intermediate_size": 10240,
    "vocab_size": 51200,
}
MIXTRAL = {
    **LLAMA,
    "model_type": "mixtral",
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
QWEN = {
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "hidden_size": 2560,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


def written(folder: Path, config: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LLAMA, "llama-3-8b"),
        (OPT, "opt-1.3b"),
        (PHI, "phi-2"),
        (MIXTRAL, "mixtral-8x7b"),
        (QWEN, "qwen3-4b"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_config_gives_the_shape_of_the_library(tmp_path, config, name):
    read, known = load_shape(written(tmp_path, config)), SHAPES[name]
    for field in ModelShape.__dataclass_fields__:
        if field not in ("name", "source"):
            assert getattr(read, field) == getattr(known, field), field
    assert read.name == tmp_path.name
    assert load_shape(str(tmp_path)) == read  # the folder that holds it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; understood: bitnet, llama"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_size": None}, "key hidden_size is missing"),
        ({"vocab_size": "many"}, "vocab_size is 'many', expected a whole number >= 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_attention_heads": 33}, "num_attention_heads 33 does not divide hidden_size 4096"),
        ({"num_key_value_heads": 5}, "5 key/value heads do not divide 32 heads"),
        ({"num_experts": 64}, "num_experts 64 in a llama model"),
        ({"model_type": "mixtral"}, "key num_local_experts is missing"),
        ({**MIXTRAL, "num_experts_per_tok": 9}, "9 experts per token, but only 8 experts"),
        (
            {"hidden_act": "quick_gelu"},
            "config.json: hidden_act is 'quick_gelu'; understood: gelu, gelu_fast, gelu_new, "
            "gelu_pytorch_tanh, relu, relu2, silu, swish",
        ),
        ({"hidden_act": 3}, "hidden_act is 3; understood"),
        (
            {**OPT, "hidden_act": None, "activation_function": "tanh"},
            "activation_function is 'tanh'",
        ),
        ({"partial_rotary_factor": 0}, r"partial_rotary_factor is 0, expected a part in \(0, 1\]"),
        ({"partial_rotary_factor": "half"}, "partial_rotary_factor is 'half'"),
        ({**OPT, "word_embed_proj_dim": 512}, "word_embed_proj_dim 512 differs"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_shape(written(tmp_path, {**LLAMA, **change}))


@pytest.mark.parametrize(
    ("model_type", "change", "expected"),
    [
        ("llama", {"hidden_act": "gelu_new"}, ("rmsnorm", "gelu", None)),
        ("llama", {"partial_rotary_factor": 0.5}, ("rmsnorm", "silu", 64)),
        ("llama", {"partial_rotary_factor": 1.0}, ("rmsnorm", "silu", None)),
        ("phi", {"hidden_act": "gelu_new"}, ("layernorm", "gelu", 51)),  # 0.4 * 128
        (
            "phi",
            {"hidden_act": "gelu_new", "partial_rotary_factor": 0.5},
            ("layernorm", "gelu", 64),
        ),
        ("bitnet", {"hidden_act": "relu2"}, ("rmsnorm", "squared_relu", None)),
        (
            "opt",
            {"hidden_act": None, "activation_function": "gelu", "ffn_dim": 512},
            ("layernorm", "gelu", 0),
        ),
    ],
)
def test_a_config_tells_norm_activation_and_rotary(tmp_path, model_type, change, expected):
    config = {**LLAMA, "model_type": model_type, **change}
    shape = load_shape(written(tmp_path, config))
    assert (shape.norm, shape.activation, shape.rotary) == expected


@pytest.mark.parametrize(
    ("model_type", "change", "expected"),
    [
        # query and key norms, tied embeddings, width of the feed-forward net, experts
        ("llama", {}, (False, False, 14336, 1)),
        ("phi3", {}, (False, False, 14336, 1)),
        ("olmo2", {}, (True, False, 14336, 1)),
        ("smollm3", {}, (False, True, 14336, 1)),
        (
            "qwen3_moe",
            {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8},
            (True, False, 768, 128),
        ),
    ],
)
def test_what_a_family_has_in_common(tmp_path, model_type, change, expected):
    shape = load_shape(written(tmp_path, {**LLAMA, "model_type": model_type, **change}))
    assert (shape.qk_norm, shape.tied_embeddings, shape.ffn, shape.experts) == expected
    assert shape.gated and shape.norm == "rmsnorm" and shape.norms == 2


def test_a_gated_net_without_silu_multiplies_apart(tmp_path):
    shape = load_shape(written(tmp_path, {**LLAMA, "hidden_act": "gelu_pytorch_tanh"}))
    functions = [op.function for op in decode(shape).vector if op.name.startswith("ffn.")]
    assert functions == ["gelu", "multiply"]


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\xff", '{"vocab_size": 1' + 5000 * "0" + "}"])
def test_a_config_that_is_not_a_json_object_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="config.json: (not a readable JSON file|holds list)"):
        load_shape(path)


def test_an_unknown_shape_is_told_the_nearest_names():
    with pytest.raises(InputError, match="unknown shape .*'llama2-7b'; did you mean llama-2-7b"):
        load_shape("llama2-7b")
    with pytest.raises(InputError, match="missing.json: no such file"):
        load_shape("missing.json")
    assert load_shape("OPT-1.3B") is SHAPES["opt-1.3b"]


# ------------------------------------------------------------------ rows of a CSV file


def test_rows_are_read_from_a_csv_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("# mine\nname,M, n ,k,count\n\nfirst,1,2,3,4\n,5,6,7,\n", encoding="utf-8-sig")
    workload = read_gemms(path)
    assert workload.gemms == (Gemm("first", 1, 2, 3, 4), Gemm("line 5", 5, 6, 7))
    assert (workload.name, workload.phase, workload.tokens) == ("rows", "rows", None)


def test_topologies_of_scale_sim_are_read(tmp_path):
    path = tmp_path / "gemms.csv"
    path.write_text("Layer, M, N, K,\nGEMM1, 100, 50, 30,\nGEMM2,1,2,3\n", encoding="utf-8")
    assert read_gemms(path).gemms == (Gemm("GEMM1", 100, 50, 30), Gemm("GEMM2", 1, 2, 3))
    path.write_text("LAYER,m,n,k\nfirst,4,5,6\n", encoding="utf-8")
    assert read_gemms(path).gemms == (Gemm("first", 4, 5, 6),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows; expected a header"),
        ("m,n,k\n", "no rows; expected a header"),
        (
            "m,n\n1,2\n",
            r"line 1: header is 'm,n', expected m,n,k\[,name\]\[,count\] or Layer,M,N,K",
        ),
        ("m,n,k,bias\n1,2,3,4\n", "line 1: header is 'm,n,k,bias'"),
        ("m,n,k,m\n1,2,3,4\n", "line 1: header"),
        ("1,2,3\n", "line 1: header"),
        ("m,n,k\n1,2,3\n1,2\n", "line 3: 2 cells, the header has 3"),
        ("m,n,k\n1,0,3\n", "line 2: n is '0', expected a whole number >= 1"),
        ("m,n,k\n1,2,-3\n", "line 2: k is '-3'"),
        ("m,n,k\n1,2,3.5\n", "line 2: k is '3.5'"),
        ("m,n,k\n1,,3\n", "line 2: n is ''"),
        ("m,n,k,count\n1,2,3,x\n", "line 2: count is 'x'"),
        ("layer,name,m,n,k\n", "line 1: header"),
        ("m,,n,k\n1,2,3,4\n", "line 1: header"),
        ("Layer,M,N,K\na,1,2,3,\n", "line 2: 5 cells, the header has 4"),
        ("Layer,M,N,K,\na,1,2,3,4\n", "line 2: 5 cells, the header has 4"),
        (f"m,n,k\n{'9' * 5000},1,1\n", "line 2: m is '9999"),
        (
            f"m,n,k\n1,1,1\n{2**32},{2**31},1\n",
            r"csv, line 3: m \* n \* k \* count = 4294967296 \* 2147483648 \* 1 \* 1 exceeds",
        ),
    ],
)
def test_a_wrong_csv_file_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        read_gemms(path)
    assert str(path) in str(error.value)


def test_a_csv_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match="absent.csv: no such file"):
        read_gemms(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a readable CSV file"):
        read_gemms(tmp_path / "binary.csv")


def test_sizes_of_zero_are_refused():
    with pytest.raises(InputError, match="a: n is 0; at least 1"):
        Gemm("a", 1, 0, 1)
    with pytest.raises(InputError, match="tokens is 0"):
        prefill(TOY, 0)
    with pytest.raises(InputError, match="context is -1"):
        decode(TOY, -1)
    with pytest.raises(InputError, match="batch is 0; at least 1 sequence"):
        prefill(TOY, 1, batch=0)
    with pytest.raises(InputError, match="batch is -2"):
        decode(TOY, 1, batch=-2)
    with pytest.raises(InputError, match="context is 0"):
        decode_parts(TOY, [1, 0])
    with pytest.raises(InputError, match="logits is 'first'; one of all, last"):
        prefill(TOY, 1, logits="first")
    with pytest.raises(InputError, match="toy: heads is 0"):
        ModelShape("toy", 2, 8, 0, 2, 3, 16, 100, gated=True)
    with pytest.raises(InputError, match="toy: norm is 'batchnorm'; one of rmsnorm, layernorm"):
        replace(TOY, norm="batchnorm")
    with pytest.raises(InputError, match="toy: activation is 'tanh'; one of silu, gelu, relu"):
        replace(TOY, activation="tanh")
    with pytest.raises(InputError, match="toy: rotary is 4; 0 to head_dim 3 elements"):
        replace(TOY, rotary=4)
    with pytest.raises(InputError, match="a: 4 cache_rows do not divide the 1 x 6 results"):
        Gemm("a", 1, 6, 1, cache_rows=4)


def test_products_that_overflow_a_counter_are_refused():
    assert Gemm("a", 2**31, 2**31 - 1, 1, 2).macs < 2**63
    with pytest.raises(InputError, match=r"a: m \* n \* k \* count = .* exceeds 2\*\*63 - 1"):
        Gemm("a", 2**21, 2**21, 2**21)
