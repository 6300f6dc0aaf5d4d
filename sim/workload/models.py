"""Workloads: what a language model runs, from its shape alone: products and vector operations.

A `ModelShape` is a model's dimensions; `prefill` and `decode` turn it into a `Workload`, a list of
`Gemm` rows for the array and of `VectorOp` rows for the vector unit. Shapes come from the library
(`SHAPES`, public configurations quoted from memory, so unverified, unless `source` names a file),
from a Hugging Face config.json (`load_shape`), or products are listed in a CSV file (`read_gemms`)
or an ONNX graph (`onnx_model.read_onnx`).

Counted: the linear layers of the blocks, both attention products with grouped-query heads, the
router and the routed experts of a mixture of experts, the output layer; embedding look-up, norms,
rotary embedding, softmax, activation functions, residual sums, the choice of the next token and, if
wanted, the quantisation of activations and of new keys and values. Causal attention is counted
exactly: a position sees itself and those before it.

The key/value cache: the results of `attn.k` and `attn.v` are its new rows (`Gemm.cache_rows`), so
they are what the pass writes to it; the products of kind "cache" read all of it. Each sequence of a
batch has its own cache but shares the weights.

Not counted: biases, shared experts, sliding windows and layers without rotary embedding (every
layer attends to the whole context and is rotated).
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

from bitwright.quant import InputError
from bitwright.sim import pick, read_table

#: Largest count of anything: what a signed 64-bit counter holds.
LARGEST_COUNT = 2**63 - 1

#: What multiplies the activations of a product: weights that the recipe quantises ("block"),
#: weights that a recipe leaves alone ("plain": output layer, router), keys and values ("cache").
Kind = Literal["block", "plain", "cache"]

#: Which part of a product a causal prefill needs, see `Gemm`.
Mask = Literal["none", "scores", "values"]

Norm = Literal["rmsnorm", "layernorm"]
Activation = Literal["silu", "gelu", "relu", "squared_relu"]
#: Positions of a prefill that go through the output layer.
Logits = Literal["all", "last"]


@dataclass(frozen=True, slots=True)
class Gemm:
    """`count` equal products y[m, n] = x[m, k] @ w[n, k].T, run one after the other.

    With a mask, row r of x stands at position p = r // rows_per_position and sees positions 0 to p:

    - "scores": w holds one row per position (m = rows_per_position * n); outputs 0 to p are needed;
    - "values": k runs over the positions (m = rows_per_position * k); inputs 0 to p are needed.
    """

    name: str
    m: int  #: rows of activations: tokens, or tokens times the query heads that share a key head
    n: int  #: output channels
    k: int  #: input channels
    count: int = 1  #: repetitions: layers, heads, experts, sequences
    kind: Kind = "block"  #: what w is
    mask: Mask = "none"
    rows_per_position: int = 1  #: consecutive rows of x at one position
    #: Rows of the key/value cache that the results of one repetition are, each m * n / cache_rows
    #: long (one row per token and key head); 0: the results are activations.
    cache_rows: int = 0

    def __post_init__(self) -> None:
        for field in ("m", "n", "k", "count", "rows_per_position"):
            if getattr(self, field) < 1:
                raise InputError(f"{self.name}: {field} is {getattr(self, field)}; at least 1")
        positions = {"none": None, "scores": self.n, "values": self.k}[self.mask]
        if positions is not None and self.m != positions * self.rows_per_position:
            raise InputError(
                f"{self.name}: m is {self.m}; a product masked {self.mask!r} over {positions} "
                f"positions has {self.rows_per_position} rows for each, so m = "
                f"{positions * self.rows_per_position}"
            )
        if self.cache_rows < 0 or (self.cache_rows and self.m * self.n % self.cache_rows):
            raise InputError(
                f"{self.name}: {self.cache_rows} cache_rows do not divide the "
                f"{self.m} x {self.n} results"
            )
        if self.m * self.n * self.k * self.count > LARGEST_COUNT:
            raise InputError(
                f"{self.name}: m * n * k * count = {self.m} * {self.n} * {self.k} * {self.count} "
                "exceeds 2**63 - 1, the largest count the simulator holds; split the product"
            )

    @property
    def weight_is_activation(self) -> bool:
        """True for attention, where w is the key or value cache."""
        return self.kind == "cache"

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all repetitions; masked: of the part that is needed."""
        if self.mask == "none":
            return self.m * self.n * self.k * self.count
        positions, width = (self.n, self.k) if self.mask == "scores" else (self.k, self.n)
        pairs = positions * (positions + 1) // 2 * self.rows_per_position
        return pairs * width * self.count


@dataclass(frozen=True, slots=True)
class VectorOp:
    """`count` equal operations of the vector unit, each on `rows` rows of `length` elements.

    `causal`: rows / length rows stand at each of `length` positions, and those at position p
    (from 0) have p + 1 elements. What a function costs is in `sim.vector`.
    """

    name: str
    function: str  #: a key of `sim.vector.FUNCTIONS`
    rows: int
    length: int  #: elements of a row; causal: of the longest
    count: int = 1  #: repetitions: layers, sequences
    causal: bool = False

    def __post_init__(self) -> None:
        for field in ("rows", "length", "count"):
            if getattr(self, field) < 1:
                raise InputError(f"{self.name}: {field} is {getattr(self, field)}; at least 1")
        if self.causal and self.rows % self.length:
            raise InputError(
                f"{self.name}: {self.rows} causal rows are no multiple of their "
                f"{self.length} positions"
            )
        if self.rows * self.length * self.count > LARGEST_COUNT:
            raise InputError(
                f"{self.name}: rows * length * count = {self.rows} * {self.length} * {self.count} "
                "exceeds 2**63 - 1, the largest count the simulator holds"
            )

    @property
    def elements(self) -> int:
        """Elements of all repetitions."""
        if self.causal:
            return self.rows * (self.length + 1) // 2 * self.count
        return self.rows * self.length * self.count


@dataclass(frozen=True, slots=True)
class Workload:
    """Products and vector operations of one pass over a model."""

    name: str  #: model or file
    phase: str  #: "prefill", "decode" or "rows"
    tokens: int | None  #: taken in (prefill) or made (decode), of all sequences; None: rows
    context: int | None  #: positions of a sequence that are attended to; None: rows of a file
    gemms: tuple[Gemm, ...]
    source: str  #: where the shape comes from
    batch: int = 1  #: sequences side by side
    vector: tuple[VectorOp, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the pass."""
        return sum(gemm.macs for gemm in self.gemms)

    @property
    def cache_rows(self) -> int:
        """Rows (one token, one head, of keys or of values) that the pass adds to the cache."""
        return sum(gemm.cache_rows * gemm.count for gemm in self.gemms)


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
    norm: Norm = "rmsnorm"
    activation: Activation = "silu"  #: of the feed-forward net
    norms: int = 2  #: of the residual stream, per block
    rotary: int | None = (
        None  #: elements of a head that are rotated; None: all; 0: positions learnt
    )
    qk_norm: bool = False  #: queries and keys pass a norm per head
    sub_norms: bool = False  #: the inputs of attn.o and ffn.down pass a norm
    source: str = ""
    #: (heads, kv_heads, ffn) of each block where blocks differ; empty: all as above.
    blocks: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        for field in (
            *("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab"),
            *("experts", "experts_per_token", "norms"),
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
        for field, value, known in (
            ("norm", self.norm, get_args(Norm)),
            ("activation", self.activation, get_args(Activation)),
        ):
            if value not in known:
                raise InputError(f"{self.name}: {field} is {value!r}; one of {', '.join(known)}")
        if not 0 <= self.rotary_width <= self.head_dim:
            raise InputError(
                f"{self.name}: rotary is {self.rotary}; 0 to head_dim {self.head_dim} elements"
            )
        if self.blocks and len(self.blocks) != self.layers:
            raise InputError(
                f"{self.name}: sizes of {len(self.blocks)} blocks given, layers is {self.layers}"
            )
        self.groups()  # checks them

    def groups(self) -> "tuple[ModelShape, ...]":
        """Shapes of equal blocks that stand for all blocks, in order of their first block."""
        if not self.blocks:
            return (self,)
        return tuple(
            replace(self, heads=heads, kv_heads=kv_heads, ffn=ffn, layers=count, blocks=())
            for (heads, kv_heads, ffn), count in Counter(self.blocks).items()
        )

    @property
    def rotary_width(self) -> int:
        """Elements of a head that are rotated."""
        return self.head_dim if self.rotary is None else self.rotary

    @property
    def block_parameters(self) -> int:
        """Weights in the linear layers of the blocks (all experts), which a recipe quantises."""
        if self.blocks:
            return sum(group.block_parameters for group in self.groups())
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        matrices = 3 if self.gated else 2
        return self.layers * (attention + self.experts * matrices * self.hidden * self.ffn)


def prefill(
    shape: ModelShape,
    tokens: int = 256,
    *,
    batch: int = 1,
    causal: bool = True,
    logits: Logits = "all",
    quantise_inputs: bool = False,
    quantise_cache: bool = False,
) -> Workload:
    """The first pass over prompts of `tokens` tokens, with an empty cache.

    Args:
        shape: The model.
        tokens: Length of every prompt.
        batch: Prompts.
        causal: Attention skips what lies above the diagonal; False: it computes the whole square.
        logits: Positions that go through the output layer: "all", as the published simulators
            count it and as the perplexity of a text needs it, or "last", one per sequence, which is
            all that a generation needs.
        quantise_inputs: The vector unit quantises the inputs of the linear layers of the blocks.
        quantise_cache: The vector unit quantises the new rows of the cache.

    Raises:
        InputError: `tokens` or `batch` < 1, or an unknown `logits`.
    """
    if tokens < 1:
        raise InputError(f"tokens is {tokens}; a prefill takes at least 1")
    _check_batch(batch)
    if logits not in get_args(Logits):
        raise InputError(f"logits is {logits!r}; one of {', '.join(get_args(Logits))}")
    logit_rows = batch * tokens if logits == "all" else batch
    return Workload(
        shape.name,
        "prefill",
        batch * tokens,
        tokens,
        _gemms(shape, tokens, tokens, batch, causal, logit_rows),
        shape.source,
        batch,
        _vector(
            *(shape, tokens, tokens, batch, causal, logit_rows, quantise_inputs, quantise_cache)
        ),
    )


def decode(
    shape: ModelShape,
    context: int = 256,
    *,
    batch: int = 1,
    quantise_inputs: bool = False,
    quantise_cache: bool = False,
) -> Workload:
    """One generated token per sequence that attends to `context` positions, its own included.

    Raises:
        InputError: `context` or `batch` < 1.
    """
    _check_context(context)
    _check_batch(batch)
    return Workload(
        shape.name,
        "decode",
        batch,
        context,
        _gemms(shape, 1, context, batch, False, batch),
        shape.source,
        batch,
        _vector(shape, 1, context, batch, False, batch, quantise_inputs, quantise_cache),
    )


def decode_parts(
    shape: ModelShape,
    contexts: Iterable[int],
    *,
    batch: int = 1,
    quantise_inputs: bool = False,
    quantise_cache: bool = False,
) -> tuple[Workload, Workload]:
    """Decode steps at several contexts, taken apart by what depends on the context.

    Returns:
        The part that every step repeats, and attention: for each context, in order, two products
        (scores, values) and one softmax. The first part and three rows of the second are together
        the rows of `decode` at that context. `context` of both is None.

    Raises:
        InputError: A context or `batch` < 1.
    """
    contexts = tuple(contexts)
    if shape.blocks:
        raise InputError(
            f"{shape.name}: its blocks differ in size; a generation is simulated for equal blocks"
        )
    for context in contexts:
        _check_context(context)
    step = decode(
        shape, 1, batch=batch, quantise_inputs=quantise_inputs, quantise_cache=quantise_cache
    )
    linear = replace(
        step,
        context=None,
        gemms=tuple(gemm for gemm in step.gemms if gemm.kind != "cache"),
        vector=tuple(op for op in step.vector if op.name != "attn.softmax"),
    )
    parts = [_attention(shape, 1, context, batch, False) for context in contexts]
    attention = replace(
        linear,
        gemms=tuple(gemm for scores, values, _ in parts for gemm in (scores, values)),
        vector=tuple(softmax for _, _, softmax in parts),
    )
    return linear, attention


def _check_context(context: int) -> None:
    if context < 1:
        raise InputError(f"context is {context}; a decode step attends to at least 1 position")


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise InputError(f"batch is {batch}; at least 1 sequence")


def _gemms(
    shape: ModelShape, tokens: int, context: int, batch: int, causal: bool, logit_rows: int
) -> tuple[Gemm, ...]:
    blocks = (_block_gemms(one, tokens, context, batch, causal) for one in shape.groups())
    head = Gemm("lm_head", logit_rows, shape.vocab, shape.hidden, 1, "plain")
    return (*(gemm for block in blocks for gemm in block), head)


def _block_gemms(
    shape: ModelShape, tokens: int, context: int, batch: int, causal: bool
) -> tuple[Gemm, ...]:
    layers, hidden, query_width = shape.layers, shape.hidden, shape.heads * shape.head_dim
    kv_width = shape.kv_heads * shape.head_dim
    rows = batch * tokens
    new = rows * shape.kv_heads
    return (
        Gemm("attn.q", rows, query_width, hidden, layers),
        Gemm("attn.k", rows, kv_width, hidden, layers, cache_rows=new),
        Gemm("attn.v", rows, kv_width, hidden, layers, cache_rows=new),
        *_attention(shape, tokens, context, batch, causal)[:2],
        Gemm("attn.o", rows, hidden, query_width, layers),
        *_feed_forward(shape, rows),
    )


def _attention(
    shape: ModelShape, tokens: int, context: int, batch: int, causal: bool
) -> tuple[Gemm, Gemm, VectorOp]:
    """Scores, values and the softmax between them, of every layer, key head and sequence."""
    # The query heads of one key/value head share its keys: their rows make one product.
    sharing = shape.heads // shape.kv_heads
    rows, count = tokens * sharing, shape.layers * shape.kv_heads * batch
    masks: tuple[Mask, Mask] = ("scores", "values") if causal else ("none", "none")
    return (
        Gemm("attn.scores", rows, context, shape.head_dim, count, "cache", masks[0], sharing),
        Gemm("attn.values", rows, shape.head_dim, context, count, "cache", masks[1], sharing),
        VectorOp("attn.softmax", "softmax", rows, context, count, causal),
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


def _vector(
    shape: ModelShape,
    tokens: int,
    context: int,
    batch: int,
    causal: bool,
    logit_rows: int,
    quantise_inputs: bool,
    quantise_cache: bool,
) -> tuple[VectorOp, ...]:
    rows, hidden = batch * tokens, shape.hidden
    ops = [VectorOp("embed", "embed", rows, hidden)]
    if not shape.rotary_width:
        ops.append(VectorOp("embed.positions", "embed", rows, hidden))
        ops.append(VectorOp("embed.sum", "add", rows, hidden))
    for group in shape.groups():
        ops += _block_vector(
            *(group, tokens, context, batch, causal, quantise_inputs, quantise_cache)
        )
    ops.append(VectorOp("lm_head.norm", shape.norm, logit_rows, hidden))
    ops.append(VectorOp("lm_head.choice", "argmax", logit_rows, shape.vocab))
    return tuple(ops)


def _block_vector(
    shape: ModelShape,
    tokens: int,
    context: int,
    batch: int,
    causal: bool,
    quantise_inputs: bool,
    quantise_cache: bool,
) -> list[VectorOp]:
    """Of all blocks, which are equal."""
    rows, hidden, layers, width = batch * tokens, shape.hidden, shape.layers, shape.head_dim
    heads = shape.heads + shape.kv_heads  # of queries and keys
    pairs = rows * shape.experts_per_token
    ops = [VectorOp("norm", shape.norm, rows, hidden, layers * shape.norms)]
    if shape.qk_norm:
        ops.append(VectorOp("attn.qk_norm", shape.norm, rows * heads, width, layers))
    if shape.rotary_width:
        ops.append(VectorOp("attn.rotary", "rotary", rows * heads, shape.rotary_width, layers))
    if quantise_cache:
        new = 2 * rows * shape.kv_heads
        ops.append(VectorOp("attn.cache_quantise", "quantise", new, width, layers))
    ops.append(_attention(shape, tokens, context, batch, causal)[2])
    if shape.sub_norms:
        ops.append(VectorOp("attn.sub_norm", shape.norm, rows, shape.heads * width, layers))
    if shape.experts > 1:
        experts, each = shape.experts, shape.experts_per_token
        ops.append(VectorOp("ffn.router.softmax", "softmax", rows, experts, layers))
        # The largest of the experts, as often as a token has experts.
        ops.append(VectorOp("ffn.router.choice", "argmax", rows, experts, layers * each))
    if shape.gated and shape.activation == "silu":
        ops.append(VectorOp("ffn.activation", "silu_gate", pairs, shape.ffn, layers))
    else:
        ops.append(VectorOp("ffn.activation", shape.activation, pairs, shape.ffn, layers))
        if shape.gated:
            ops.append(VectorOp("ffn.gating", "multiply", pairs, shape.ffn, layers))
    if shape.sub_norms:
        ops.append(VectorOp("ffn.sub_norm", shape.norm, pairs, shape.ffn, layers))
    if shape.experts > 1:
        ops.append(VectorOp("ffn.experts.weigh", "scale", pairs, hidden, layers))
        if pairs > rows:
            ops.append(VectorOp("ffn.experts.sum", "add", pairs - rows, hidden, layers))
    if quantise_inputs:
        # One input serves q, k and v, one gate and up (the experts and the router of a token).
        inputs = [("attn", rows, hidden), ("attn.o", rows, shape.heads * width)]
        inputs += [("ffn", rows, hidden), ("ffn.down", pairs, shape.ffn)]
        ops += [
            VectorOp(f"{name}.quantise", "quantise", count, length, layers)
            for name, count, length in inputs
        ]
    ops.append(VectorOp("residual", "add", rows, hidden, 2 * layers))
    return ops


@dataclass(frozen=True, slots=True)
class _Family:
    """What the models of one config.json model_type have in common."""

    gated: bool = True
    tied: bool = False  #: default of tie_word_embeddings
    ffn_key: str = "intermediate_size"
    experts_key: str | None = None
    norm: Norm = "rmsnorm"
    activation: Activation = "silu"
    norms: int = 2
    rotary_part: Fraction = Fraction(1)  #: of a head; default of partial_rotary_factor
    qk_norm: bool = False
    sub_norms: bool = False

    def rotary(self, head_dim: int) -> int | None:
        return None if self.rotary_part == 1 else int(self.rotary_part * head_dim)


#: By model_type; from memory of the public model definitions (unverified).
_FAMILIES: dict[str, _Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "phi3"), _Family()),
    "qwen3": _Family(qk_norm=True),
    "olmo2": _Family(qk_norm=True),
    "smollm3": _Family(tied=True),
    "mixtral": _Family(experts_key="num_local_experts"),
    "qwen3_moe": _Family(ffn_key="moe_intermediate_size", experts_key="num_experts", qk_norm=True),
    "bitnet": _Family(activation="squared_relu", sub_norms=True),
    # Attention and feed-forward net of a block share one norm and work side by side.
    "phi": _Family(
        gated=False, norm="layernorm", activation="gelu", norms=1, rotary_part=Fraction(2, 5)
    ),
    "opt": _Family(
        gated=False,
        tied=True,
        ffn_key="ffn_dim",
        norm="layernorm",
        activation="relu",
        rotary_part=Fraction(0),
    ),
}

#: Names of activation functions in config.json files.
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    **dict.fromkeys(("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu"),
    "relu": "relu",
    "relu2": "squared_relu",
}


#: Where a shape's dimensions come from, if not from memory.
_SOURCES = {
    "bitnet-b1.58-2b4t": (
        "dimensions of microsoft/BitNet, gpu/model.py; tied embeddings from memory (unverified)"
    ),
}


def _load_library() -> dict[str, ModelShape]:
    memory = "public configuration, quoted from memory (unverified)"
    shapes = {}
    for row in read_table("llm_shapes.csv"):
        name, family = row.pop("name"), _FAMILIES[row.pop("family")]
        values: dict[str, Any] = {key: int(value) for key, value in row.items()}
        for flag in ("gated", "tied_embeddings"):
            values[flag] = bool(values[flag])
        shapes[name] = ModelShape(
            name=name,
            norm=family.norm,
            activation=family.activation,
            norms=family.norms,
            rotary=family.rotary(values["head_dim"]),
            qk_norm=family.qk_norm,
            sub_norms=family.sub_norms,
            source=_SOURCES.get(name, memory),
            **values,
        )
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


def _shape_from_config(path: Path) -> ModelShape:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds {type(config).__name__}, expected a JSON object")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise InputError(
            f"{path}: model_type is {kind!r}; understood: {', '.join(sorted(_FAMILIES))}; "
            "give the products of another model as CSV rows or ONNX"
        )
    family = _FAMILIES[kind]
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
    if family.experts_key:
        experts, experts_per_token = number(family.experts_key), number("num_experts_per_tok")
        if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
            raise InputError(f"{path}: layers with and without experts mixed are not modelled")
    else:
        for key in ("num_local_experts", "num_experts", "n_routed_experts"):
            if number(key, 1) > 1:
                raise InputError(f"{path}: {key} {config[key]} in a {kind} model is not understood")
    head_dim = number("head_dim", hidden // heads)
    return ModelShape(
        name=path.parent.resolve().name if path.name == "config.json" else path.stem,
        layers=number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_dim=head_dim,
        ffn=number(family.ffn_key),
        vocab=number("vocab_size"),
        gated=family.gated,
        tied_embeddings=bool(config.get("tie_word_embeddings", family.tied)),
        experts=experts,
        experts_per_token=experts_per_token,
        norm=family.norm,
        activation=_activation(path, config, family),
        norms=family.norms,
        rotary=_rotary(path, config, family, head_dim),
        qk_norm=family.qk_norm,
        sub_norms=family.sub_norms,
        source=f"{path.name} (model_type {kind})",
    )


def _activation(path: Path, config: Mapping[str, Any], family: _Family) -> Activation:
    for key in ("hidden_act", "activation_function"):
        name = config.get(key)
        if name is None:
            continue
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            raise InputError(
                f"{path}: {key} is {name!r}; understood: {', '.join(sorted(_ACTIVATIONS))}"
            )
        return _ACTIVATIONS[name]
    return family.activation


def _rotary(path: Path, config: Mapping[str, Any], family: _Family, head_dim: int) -> int | None:
    part = config.get("partial_rotary_factor")
    if part is None or not family.rotary_part:
        return family.rotary(head_dim)
    if isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part <= 1:
        raise InputError(f"{path}: partial_rotary_factor is {part!r}, expected a part in (0, 1]")
    return None if part == 1 else int(head_dim * part)


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


_HEADER = "m,n,k[,name][,count] or Layer,M,N,K"


def read_gemms(path: str | Path) -> Workload:
    """Products from a CSV file with the header m,n,k and, if wanted, name and count.

    Capitals do not matter, and Layer may stand for name: topology files of SCALE-Sim for matrix
    products (Layer, M, N, K,) are read as they are. Lines that begin with # are comments. All rows
    count as block weights, which a recipe quantises.

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
        raise InputError(f"{path}: no rows; expected a header {_HEADER} and rows")
    return Workload(path.stem, "rows", None, None, gemms, f"rows of {path.name}")


def _parse_gemms(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[Gemm]:
    columns: list[str] | None = None
    comma = False  # every line of a SCALE-Sim file ends with one
    for number, line in lines:
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if columns is None:
            comma = cells[-1] == ""
            columns = ["name" if cell == "layer" else cell for cell in map(str.lower, cells)]
            if comma:
                columns.pop()
            wrong = {"m", "n", "k"} - set(columns) or set(columns) - {
                "m",
                "n",
                "k",
                "name",
                "count",
            }
            if wrong or len(set(columns)) != len(columns):
                raise InputError(
                    f"{path}, line {number}: header is {line.strip()!r}, expected {_HEADER}"
                )
            continue
        if comma and len(cells) == len(columns) + 1 and not cells[-1]:
            cells.pop()
        if len(cells) != len(columns):
            raise InputError(
                f"{path}, line {number}: {len(cells)} cells, the header has {len(columns)}"
            )
        row = dict(zip(columns, cells, strict=True))
        sizes = {}
        for key in ("m", "n", "k", "count"):
            value = row.get(key) or ("1" if key == "count" else "")
            # More digits than the largest count has are not worth converting.
            if not (value.isascii() and value.isdigit() and len(value) < 20) or int(value) < 1:
                raise InputError(
                    f"{path}, line {number}: {key} is {value!r}, expected a whole number >= 1"
                )
            sizes[key] = int(value)
        try:
            name = row.get("name") or f"line {number}"
            yield Gemm(name, sizes["m"], sizes["n"], sizes["k"], sizes["count"])
        except InputError as error:
            problem = str(error).removeprefix(f"line {number}: ")
            raise InputError(f"{path}, line {number}: {problem}") from None
