"""Operands of a model's products, recorded from a forward pass: stimuli for energy estimates."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bitwright.quant import InputError, LanguageModel, Text, load_text

from .evaluation import Linear

#: Products of one layer in the order of a pass, named like the products of `sim`'s workloads.
LAYER_PRODUCTS = (
    *("attn.q", "attn.k", "attn.v", "attn.scores", "attn.values", "attn.o"),
    *("ffn.gate", "ffn.up", "ffn.down"),
)
_CACHE_PRODUCTS = ("attn.scores", "attn.values")

#: Tokens that go through the model at least: late rows then see as much context as the prefills
#: that are simulated by default.
WINDOW = 256

#: Layer (None: the output layer) and product.
Key = tuple[int | None, str]


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """Operands of one product y = x @ w.T, biases aside.

    The scores of attention are recorded before they are divided by sqrt(head_dim), and also where
    the causal mask discards them.
    """

    product: str  #: one of `LAYER_PRODUCTS`, or "lm_head"
    layer: int | None  #: None: the output layer
    x: np.ndarray  #: float32 [tokens, k]: inputs, queries or attention probabilities
    #: float32 [n, k]: the model's own weight, not a copy and not to be written to; keys
    #: [window, head_dim]; or values, one channel per row, [head_dim, window]
    w: np.ndarray
    head: int | None = None  #: key-value head; None: not a product of attention


def record(
    model: LanguageModel,
    text: Text | str | None = None,
    *,
    tokens: int = 64,
    skip: int = 0,
    layers: Sequence[int] | None = None,
    heads: int = 1,
    linear: Linear | None = None,
) -> dict[Key, tuple[Recorded, ...]]:
    """Run a model on a window of a text and keep operands of its products.

    The window has 256 tokens, or `tokens` if these are more, but never more than the model's
    context. Of every product its last `tokens` rows are kept, so that they stand for tokens that
    have a context to attend to. A row is one token; in attention it is one query head at one
    position, and the query heads that share the key-value head follow one another (smollm2: three,
    so that 64 rows are the last 21 positions and one head of the position before). Keys and values
    are kept for the whole window.

    The same arguments give the same operands. Kept in memory: rows of the layers asked for, and
    references to weights.

    Args:
        model: The model.
        text: What to read; None for the default text of `load_text`.
        tokens: Rows to keep of each product.
        skip: Tokens of the text before the window.
        layers: Layers to record; None for all. The output layer is always recorded.
        heads: Key-value heads to record, from the first.
        linear: Computes the block linears, as in `LanguageModel.logits`, for the activations of
            a quantised model. `Recorded.w` is the model's own weight all the same.

    Returns:
        By layer and product, in order of use: one entry, or `heads` of them for the scores and
        values of attention.

    Raises:
        InputError: A count or a layer out of range, or a text shorter than skip and window.
    """
    config = model.config
    if not 1 <= tokens <= config.context:
        raise InputError(
            f"tokens is {tokens}; from 1 to {config.context}, the context of model {model.name}"
        )
    if skip < 0:
        raise InputError(f"skip is {skip}; 0 or more tokens of the text can be left out")
    if not 1 <= heads <= config.kv_heads:
        raise InputError(
            f"heads is {heads}; from 1 to {config.kv_heads}, the key-value heads of {model.name}"
        )
    layers = range(config.layers) if layers is None else layers
    for layer in layers:
        if not 0 <= layer < config.layers:
            raise InputError(f"layer {layer}: {model.name} has layers 0 to {config.layers - 1}")
    wanted: set[int | None] = {None, *layers}
    ids = _window(model, text, skip, min(max(WINDOW, tokens), config.context))

    found: dict[Key, list[Recorded]] = {}

    def observe(name: str, x: torch.Tensor, w: torch.Tensor) -> None:
        layer, product = layer_product(name)
        if layer not in wanted:
            return
        entries = found.setdefault((layer, product), [])
        # What the pass computes is copied: a view would keep all of its rows and heads in memory.
        rows, operand = x[-tokens:].float().numpy().copy(), w.float().numpy()
        if product not in _CACHE_PRODUCTS:
            entries.append(Recorded(product, layer, rows, operand))
        elif len(entries) < heads:
            entries.append(Recorded(product, layer, rows, operand.copy(), len(entries)))

    with torch.no_grad():
        model.logits(ids, linear, observe=observe)
    return {key: tuple(entries) for key, entries in found.items()}


def _window(model: LanguageModel, text: Text | str | None, skip: int, window: int) -> torch.Tensor:
    """Token ids, int64 [1, window], of the text after `skip` tokens."""
    text = load_text() if text is None else text
    name, content = (text.name, text.content) if isinstance(text, Text) else ("text", text)
    ids = model.tokenizer.encode(content)
    if len(ids) < skip + window:
        skipped = f" after {skip} skipped" if skip else ""
        raise InputError(
            f"{name} has {len(ids)} tokens; {skip + window} are needed, "
            f"a window of {window}{skipped}; use a longer text"
        )
    return torch.tensor([ids[skip : skip + window]], dtype=torch.int64)


def layer_product(name: str) -> Key:
    """Layer and product of a name: the key that `record` files them under.

    Args:
        name: "3.ffn.down", "blocks.3.ffn.down" or "lm_head". Whether a model has the layer is for
            `record` to say.

    Returns:
        Layer from 0 (None for lm_head) and product.

    Raises:
        InputError: Another name; the nearest and all products are told.

    >>> layer_product("3.ffn.down")
    (3, 'ffn.down')
    >>> layer_product("lm_head")
    (None, 'lm_head')
    """
    if name == "lm_head":
        return None, name
    match = re.fullmatch(r"(?:blocks\.)?(?:([0-9]{1,9})\.)?(.*)", name)
    layer, product = (match[1], match[2]) if match else (None, name)
    if layer is not None and product in LAYER_PRODUCTS:
        return int(layer), product
    near = difflib.get_close_matches(product.lower(), [*LAYER_PRODUCTS, "lm_head"], n=1)
    hint = "write"
    if near:
        nearest = near[0] if near[0] == "lm_head" else f"{layer or 0}.{near[0]}"
        hint = f"did you mean {nearest}? Write"
    raise InputError(
        f"--layer is {name!r}; {hint} LAYER.PRODUCT, such as 3.ffn.down, or lm_head; "
        f"products: {', '.join(LAYER_PRODUCTS)}"
    )
