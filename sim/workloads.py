"""Workloads: which matrix products a language model runs, from its shape alone.

A `ModelShape` is a model's dimensions; `prefill` and `decode` turn it into a `Workload`, a list of
`Gemm` rows. Shapes come from the library (`SHAPES`, public configurations quoted from memory, so
unverified), from a Hugging Face config.json (`load_shape`), or products are listed in a CSV file
(`read_gemms`).

Counted: the linear layers of the blocks, both attention products with grouped-query heads, the
router and the routed experts of a mixture of experts, and the output layer (every position of a
prefill). Not counted: embedding look-up, norms, softmax, rotary embedding, activation functions
and biases. Attention is not skipped above the causal diagonal.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bitwright.quant import InputError

from .tables import pick, read_table

#: What multiplies the activations of a product: weights that the recipe quantises ("block"),
#: weights that a recipe leaves alone ("plain": output layer, router), keys and values ("cache").
Kind = Literal["block", "plain", "cache"]


@dataclass(frozen=True, slots=True)
class Gemm:
    """`count` equal products y[m, n] = x[m, k] @ w[n, k].T, run one after the other."""

    name: str
    m: int  #: rows of activations: tokens, or tokens times the query heads that share a key head
    n: int  #: output channels
    k: int  #: input channels
    count: int = 1  #: repetitions: layers, heads, experts
    kind: Kind = "block"  #: what w is

    def __post_init__(self) -> None:
        for field in ("m", "n", "k", "count"):
            if getattr(self, field) < 1:
                raise InputError(f"{self.name}: {field} is {getattr(self, field)}; at least 1")

    @property
    def weight_is_activation(self) -> bool:
        """True for attention, where w is the key or value cache."""
        return self.kind == "cache"

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all repetitions."""
        return self.m * self.n * self.k * self.count


@dataclass(frozen=True, slots=True)
class Workload:
    """Products of one pass over a model."""

    name: str  #: model or file
    phase: str  #: "prefill", "decode" or "rows"
    tokens: int | None  #: tokens taken in (prefill) or made (decode: 1); None for rows of a file
    context: int | None  #: positions attended to; None for rows of a file
    gemms: tuple[Gemm, ...]
    source: str  #: where the shape comes from

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the pass."""
        return sum(gemm.macs for gemm in self.gemms)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Dimensions of a decoder-only transformer."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int  #: inner width of the feed-forward net, of one expert in a mixture
    vocab: int
    gated: bool  #: gate, up and down matrices (SwiGLU) instead of up and down
    tied_embeddings: bool = False
    experts: int = 1
    experts_per_token: int = 1
    source: str = ""

    def __post_init__(self) -> None:
        for field in (
            *("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab"),
            *("experts", "experts_per_token"),
        ):
            if getattr(self, field) < 1:
                raise InputError(f"{self.name}: {field} is {getattr(self, field)}; at least 1")
        if self.heads % self.kv_heads:
            raise InputError(
                f"{self.name}: {self.kv_heads} key/value heads do not divide {self.heads} heads"
            )
        if self.experts_per_token > self.experts:
            raise InputError(
                f"{self.name}: {self.experts_per_token} experts per token, but only "
                f"{self.experts} experts"
            )

    @property
    def block_parameters(self) -> int:
        """Weights in the linear layers of the blocks (all experts), which a recipe quantises."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        matrices = 3 if self.gated else 2
        return self.layers * (attention + self.experts * matrices * self.hidden * self.ffn)


def prefill(shape: ModelShape, tokens: int = 256) -> Workload:
    """The first pass over a prompt of `tokens` tokens, one sequence, empty cache.

    Raises:
        InputError: `tokens` < 1.
    """
    if tokens < 1:
        raise InputError(f"tokens is {tokens}; a prefill takes at least 1")
    return Workload(
        shape.name, "prefill", tokens, tokens, _gemms(shape, tokens, tokens), shape.source
    )


def decode(shape: ModelShape, context: int = 256) -> Workload:
    """One generated token that attends to `context` positions, its own included.

    Raises:
        InputError: `context` < 1.
    """
    if context < 1:
        raise InputError(f"context is {context}; a decode step attends to at least 1 position")
    return Workload(shape.name, "decode", 1, context, _gemms(shape, 1, context), shape.source)


def _gemms(shape: ModelShape, tokens: int, context: int) -> tuple[Gemm, ...]:
    layers, hidden, query_width = shape.layers, shape.hidden, shape.heads * shape.head_dim
    kv_width = shape.kv_heads * shape.head_dim
    # The query heads of one key/value head share its keys: their rows make one product.
    shared = tokens * (shape.heads // shape.kv_heads)
    return (
        Gemm("attn.q", tokens, query_width, hidden, layers),
        Gemm("attn.k", tokens, kv_width, hidden, layers),
        Gemm("attn.v", tokens, kv_width, hidden, layers),
        Gemm("attn.scores", shared, context, shape.head_dim, layers * shape.kv_heads, "cache"),
        Gemm("attn.values", shared, shape.head_dim, context, layers * shape.kv_heads, "cache"),
        Gemm("attn.o", tokens, hidden, query_width, layers),
        *_feed_forward(shape, tokens),
        Gemm("lm_head", tokens, shape.vocab, hidden, 1, "plain"),
    )


def _feed_forward(shape: ModelShape, tokens: int) -> Iterator[Gemm]:
    """Each token goes to `experts_per_token` experts, spread over the experts as evenly as can be.

    With fewer (token, expert) pairs than experts, as many experts as pairs are touched.
    """
    matrices = [("ffn.up", shape.ffn, shape.hidden), ("ffn.down", shape.hidden, shape.ffn)]
    if shape.gated:
        matrices.insert(0, ("ffn.gate", shape.ffn, shape.hidden))
    if shape.experts > 1:
        yield Gemm("ffn.router", tokens, shape.experts, shape.hidden, shape.layers, "plain")
    pairs = tokens * shape.experts_per_token
    touched = min(shape.experts, pairs)
    each, fuller = divmod(pairs, touched)
    for name, n, k in matrices:
        if fuller:
            yield Gemm(name, each + 1, n, k, shape.layers * fuller)
        yield Gemm(name, each, n, k, shape.layers * (touched - fuller))


def _load_library() -> dict[str, ModelShape]:
    source = "public configuration, quoted from memory (unverified)"
    shapes = {}
    for row in read_table("llm_shapes.csv"):
        name = row.pop("name")
        values: dict[str, Any] = {key: int(value) for key, value in row.items()}
        for flag in ("gated", "tied_embeddings"):
            values[flag] = bool(values[flag])
        shapes[name] = ModelShape(name=name, source=source, **values)
    return shapes


#: Model shapes by name, from data/llm_shapes.csv.
SHAPES: dict[str, ModelShape] = _load_library()


def load_shape(name: str | Path) -> ModelShape:
    """A shape from the library, or from a Hugging Face config.json or the folder that holds one.

    Raises:
        InputError: Unknown name (the nearest are told), or a config that is not understood.
    """
    text = str(name)
    if text.lower() in SHAPES:
        return SHAPES[text.lower()]
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        return _shape_from_config(path)
    if path.suffix == ".json":
        raise InputError(f"{path}: no such file")
    return pick(SHAPES, text, "shape (or config.json)")


#: config.json dialects: model_type -> (gated, default of tie_word_embeddings, feed-forward key).
_DIALECTS: dict[str, tuple[bool, bool, str]] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "mixtral", "bitnet", "phi3", "olmo2"),
        (True, False, "intermediate_size"),
    ),
    "smollm3": (True, True, "intermediate_size"),
    "qwen3_moe": (True, False, "moe_intermediate_size"),
    "phi": (False, False, "intermediate_size"),
    "opt": (False, True, "ffn_dim"),
}
_EXPERT_KEYS = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts"}


def _shape_from_config(path: Path) -> ModelShape:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds {type(config).__name__}, expected a JSON object")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _DIALECTS:
        raise InputError(
            f"{path}: model_type is {kind!r}; understood: {', '.join(sorted(_DIALECTS))}"
        )
    gated, tied, ffn_key = _DIALECTS[kind]
    number = _number_reader(path, config)
    hidden, heads = number("hidden_size"), number("num_attention_heads")
    if config.get("head_dim") is None and hidden % heads:
        raise InputError(
            f"{path}: num_attention_heads {heads} does not divide hidden_size {hidden}; "
            "set head_dim"
        )
    if number("word_embed_proj_dim", hidden) != hidden:
        raise InputError(
            f"{path}: word_embed_proj_dim {config['word_embed_proj_dim']} differs from "
            f"hidden_size {hidden}; projected embeddings are not modelled"
        )
    experts = experts_per_token = 1
    if kind in _EXPERT_KEYS:
        experts, experts_per_token = number(_EXPERT_KEYS[kind]), number("num_experts_per_tok")
        if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
            raise InputError(f"{path}: layers with and without experts mixed are not modelled")
    else:
        for key in ("num_local_experts", "num_experts", "n_routed_experts"):
            if number(key, 1) > 1:
                raise InputError(f"{path}: {key} {config[key]} in a {kind} model is not understood")
    return ModelShape(
        name=path.parent.resolve().name if path.name == "config.json" else path.stem,
        layers=number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", hidden // heads),
        ffn=number(ffn_key),
        vocab=number("vocab_size"),
        gated=gated,
        tied_embeddings=bool(config.get("tie_word_embeddings", tied)),
        experts=experts,
        experts_per_token=experts_per_token,
        source=f"{path.name} (model_type {kind})",
    )


def _number_reader(path: Path, config: Mapping[str, Any]) -> Callable[..., int]:
    """Reads whole numbers >= 1 from a config; a key that is absent or null takes the default."""

    def number(key: str, default: int | None = None) -> int:
        value = config.get(key)
        if value is None:
            if default is None:
                raise InputError(f"{path}: key {key} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{path}: {key} is {value!r}, expected a whole number >= 1")
        return value

    return number


def read_gemms(path: str | Path) -> Workload:
    """Products from a CSV file with the header m,n,k and, if wanted, name and count.

    Lines that begin with # are comments. All rows count as block weights, which a recipe quantises.

    Raises:
        InputError: The file, its header or one of its rows is wrong; the line is named.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable CSV file ({error})") from None
    lines = (
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    gemms = tuple(_parse_gemms(path, lines))
    if not gemms:
        raise InputError(f"{path}: no rows; expected a header m,n,k[,name][,count] and rows")
    return Workload(path.stem, "rows", None, None, gemms, f"rows of {path.name}")


def _parse_gemms(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[Gemm]:
    columns: list[str] | None = None
    for number, line in lines:
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if columns is None:
            columns = [cell.lower() for cell in cells]
            wrong = sorted({"m", "n", "k"} - set(columns)) or sorted(
                set(columns) - {"m", "n", "k", "name", "count"}
            )
            if wrong or len(set(columns)) != len(columns):
                raise InputError(
                    f"{path}, line {number}: header is {line.strip()!r}, "
                    "expected m,n,k[,name][,count]"
                )
            continue
        if len(cells) != len(columns):
            raise InputError(
                f"{path}, line {number}: {len(cells)} cells, the header has {len(columns)}"
            )
        row = dict(zip(columns, cells, strict=True))
        sizes = {}
        for key in ("m", "n", "k", "count"):
            value = row.get(key) or ("1" if key == "count" else "")
            if not (value.isascii() and value.isdigit()) or int(value) < 1:
                raise InputError(
                    f"{path}, line {number}: {key} is {value!r}, expected a whole number >= 1"
                )
            sizes[key] = int(value)
        name = row.get("name") or f"line {number}"
        yield Gemm(name, sizes["m"], sizes["n"], sizes["k"], sizes["count"])
