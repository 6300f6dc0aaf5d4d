"""Shapes and the matrix products they stand for."""

import json
from pathlib import Path

import pytest

from bitwright.quant import InputError
from bitwright.sim import SHAPES, Gemm, ModelShape, decode, load_shape, prefill, read_gemms

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
def test_every_weight_meets_every_token_once(name, tokens):
    shape = SHAPES[name]
    weights = shape.block_parameters + shape.vocab * shape.hidden
    # Each head multiplies tokens x context x head_dim twice.
    attention = 2 * shape.layers * shape.heads * shape.head_dim * tokens * tokens
    assert prefill(shape, tokens).macs == weights * tokens + attention


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
        ({**OPT, "word_embed_proj_dim": 512}, "word_embed_proj_dim 512 differs"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_shape(written(tmp_path, {**LLAMA, **change}))


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\xff"])
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows; expected a header"),
        ("m,n,k\n", "no rows; expected a header"),
        ("m,n\n1,2\n", r"line 1: header is 'm,n', expected m,n,k\[,name\]\[,count\]"),
        ("m,n,k,bias\n1,2,3,4\n", "line 1: header is 'm,n,k,bias'"),
        ("m,n,k,m\n1,2,3,4\n", "line 1: header"),
        ("1,2,3\n", "line 1: header"),
        ("m,n,k\n1,2,3\n1,2\n", "line 3: 2 cells, the header has 3"),
        ("m,n,k\n1,0,3\n", "line 2: n is '0', expected a whole number >= 1"),
        ("m,n,k\n1,2,-3\n", "line 2: k is '-3'"),
        ("m,n,k\n1,2,3.5\n", "line 2: k is '3.5'"),
        ("m,n,k\n1,,3\n", "line 2: n is ''"),
        ("m,n,k,count\n1,2,3,x\n", "line 2: count is 'x'"),
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
    with pytest.raises(InputError, match="toy: heads is 0"):
        ModelShape("toy", 2, 8, 0, 2, 3, 16, 100, gated=True)
