"""Text generation with a quantised model on the processor: packed weights, int8 activations."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bitwright.quant import (
    SITES,
    InputError,
    QuantizedModel,
    QuantizedTensor,
    quantize,
)

from .cpu import decoding
from .cpu.layouts import aligned, padded
from .cpu.packing import FixedPointTiles, IntegerTiles
from .integers import Activations
from .planner import integer_decode

#: Tokens of a prompt that are computed together.
CHUNK = 128
_NORMS = ("attn_norm", "ffn_norm")
_VECTOR = 16


class Decoder:
    """A quantised model that reads and writes tokens one after the other.

    The linears of the blocks run in the exact integer arithmetic of matmul's method "integer", on
    activations quantised per token; norms, attention and its cache are float32; the output layer
    has 8-bit weights in groups of 32. A token's numbers do not depend on how many others were read
    with it, so a prompt and the same tokens one by one give the same bits.

    Args:
        quantized: The model, of `apply_recipe`; its recipe has symmetric integer activations per
            token (a8), one weight format, and no quantised cache or super weights.
        head: What the output layer multiplies its 8-bit weights with: "float", the float32 hidden
            states, or "integer", hidden states quantised to 8 bits per token, which is faster.
        room: Tokens that prompt and continuation may have together; None: the model's context.

    Raises:
        InputError: The recipe asks for something else (says what).

    >>> from bitwright.quant import apply_recipe, load_model
    >>> model = load_model("tiny")
    >>> decoder = Decoder(apply_recipe(model, "w4g32a8-int-asym"))
    >>> len(list(decoder.generate(model.tokenizer.encode("The"), 5)))
    5
    """

    def __init__(
        self, quantized: QuantizedModel, room: int | None = None, head: str = "float"
    ) -> None:
        if head not in ("float", "integer"):
            raise InputError(f"head is {head!r}; it must be float or integer")
        self.config = config = quantized.base.config
        if config.blocks:
            raise InputError(
                f"the blocks of model {quantized.base.name} differ in size; a Decoder takes equal "
                "ones, leave structural pruning out"
            )
        self.room = min(room or config.context, config.context)
        self._length = 0
        format, self._qmax = _checked(quantized)
        weights = quantized.model
        self._embed: np.ndarray = weights.weight("embed").numpy()
        self._final: np.ndarray = weights.weight("final_norm").numpy()
        last = weights.head_weight.numpy()
        shared = weights.token_rows
        self._token_rows = None if shared is None else shared.numpy()
        size = 32 if config.hidden % 32 == 0 else config.hidden
        tensor = quantize(last, "int8-sym", group_size=size)
        self._head: FixedPointTiles | IntegerTiles
        self._head = (FixedPointTiles if head == "float" else IntegerTiles)(tensor, "code")
        layers = range(config.layers)
        self._norms = np.stack(
            [
                np.stack([weights.weight(f"blocks.{i}.{name}").numpy() for name in _NORMS])
                for i in layers
            ]
        )
        rows = (config.heads + 2 * config.kv_heads) * config.head_dim
        self._biases = np.zeros((config.layers, rows), np.float32)
        parts = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
        start = 0
        for letter, heads in parts.items():
            stop = start + heads * config.head_dim
            if letter in config.biased:
                for i in layers:
                    name = f"blocks.{i}.attn.{letter}.bias"
                    self._biases[i, start:stop] = weights.weight(name).numpy()
            start = stop
        self._sites = [_stacked(quantized, names) for names in SITES.values()]
        first = self._sites[0][1]
        self._tables = first.table, first.mask, first.unit
        decode = integer_decode(format)
        assert decode is not None
        self._blocks = decoding.forward(format.bits, decode)
        cos, sin = quantized.base.rotary(self.room)
        self._rotary = cos.numpy(), sin.numpy()
        shape, padded_room = (config.layers, config.kv_heads), padded(self.room, _VECTOR)
        self._keys = aligned((*shape, config.head_dim, padded_room), np.float32)
        self._values = aligned((*shape, padded_room, config.head_dim), np.float32)

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one token reads, output layer included."""
        tiles = sum(part.nbytes for arrays, _ in self._sites for part in arrays[:5])
        return tiles + self._head.nbytes

    def reset(self) -> None:
        """Forget all tokens."""
        self._length = 0

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Go on with some tokens.

        Args:
            tokens: Ids, at least one.

        Returns:
            float32 [vocab]: scores of the token after the last one.

        Raises:
            InputError: No token, an unknown one, or no room.
        """
        return self._scores(self._read(tokens)[-1:])[0]

    def read_all(self, tokens: Sequence[int]) -> np.ndarray:
        """As `read`, with the scores after every one of the tokens: float32 [tokens, vocab]."""
        return np.ascontiguousarray(self._scores(self._read(tokens)))

    def generate(self, tokens: Sequence[int], count: int, stop: int | None = None) -> Iterator[int]:
        """Read a prompt and continue it greedily, always with the token of the highest score.

        Args:
            tokens: The prompt, behind what was read before.
            count: Tokens to write at most.
            stop: A token that ends the text; it is not given.

        Raises:
            InputError: As `read`.
        """
        scores = self.read(tokens)
        for written in range(count):
            token = int(scores.argmax())
            if token == stop:
                return
            yield token
            if written + 1 < count:
                scores = self.read([token])

    def _read(self, tokens: Sequence[int]) -> np.ndarray:
        ids = np.asarray(tokens, np.int64).reshape(-1)
        if not len(ids):
            raise InputError("tokens are empty; give at least one")
        if ids.min() < 0 or ids.max() >= self.config.vocab:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise InputError(f"tokens hold {wrong}; ids are 0 .. {self.config.vocab - 1}")
        if self._length + len(ids) > self.room:
            raise InputError(
                f"{len(ids)} tokens behind {self._length} do not fit the decoder's room of "
                f"{self.room}; reset() it, or make one with more room"
            )
        parts = []
        for start in range(0, len(ids), CHUNK):
            x = self._embed[ids[start : start + CHUNK]].copy()
            qkv, o, gate_up, down = (arrays for arrays, _ in self._sites)
            self._blocks(
                x, self._length, self._norms, self._biases, qkv, o, gate_up, down,
                *self._tables, self._qmax, *self._rotary, self._keys,
                self._values, np.float32(self.config.norm_eps), self.config.heads, self.config.ffn,
            )  # fmt: skip
            self._length += len(x)
            parts.append(x)
        return np.concatenate(parts)

    def _scores(self, x: np.ndarray) -> np.ndarray:
        h = self._normed(x)
        if isinstance(self._head, IntegerTiles):
            starts = self._head.starts
            shape = len(h), len(starts) - 1
            numbers = np.zeros((len(h), int(starts[-1])), np.int8)
            sums, scales = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
            decoding.quantise_rows(h, starts, self._head.group_size, 127, numbers, sums, scales)
            scores = self._head.multiply(Activations(numbers, np.zeros_like(sums), scales, sums))
        else:
            scores = self._head.by_tiles(h)
        if not np.isfinite(scores).all():
            raise InputError(
                "scores are not finite: an activation is larger than FP16 scales reach; use a "
                "recipe that scales activations down, such as +smoothquant"
            )
        return scores if self._token_rows is None else scores[:, self._token_rows]

    def _normed(self, x: np.ndarray) -> np.ndarray:
        mean = np.square(x).mean(axis=1, keepdims=True, dtype=np.float32)
        eps = np.float32(self.config.norm_eps)
        return x / np.sqrt(mean + eps) * self._final


def _checked(quantized: QuantizedModel) -> tuple[Any, int]:
    """The weight format and the largest activation code."""
    recipe, config = quantized.recipe, quantized.base.config
    act = recipe.activations
    if act is None or act.format_obj.kind != "int-sym" or act.granularity != "token":
        name = "FP16" if act is None else act.name
        raise InputError(
            f"recipe {recipe.name} has {name} activations; a Decoder takes symmetric integers per "
            "token, such as w4g64a8-int-asym"
        )
    if recipe.kv is not None:
        raise InputError(f"recipe {recipe.name} quantises the cache; a Decoder keeps it in float32")
    if recipe.compressed:
        raise InputError(
            f"recipe {recipe.name} stores weights in a form of its own; a Decoder takes codes of "
            "one format"
        )
    tensors = [t for t in quantized.tensors.values() if isinstance(t, QuantizedTensor)]
    formats = {(t.format.name, t.group_size if t.groups > 1 else 0) for t in tensors}
    if len(formats) != 1 or integer_decode(tensors[0].format) is None:
        raise InputError(
            f"recipe {recipe.name} has weights in {len(formats)} kinds of "
            f"{tensors[0].format.name}; a Decoder takes one format, integers or up to 4 bits, in "
            "groups of one size"
        )
    if any(block.super_weights for block in quantized.blocks):
        raise InputError(f"recipe {recipe.name} keeps super weights; a Decoder takes none")
    if config.head_dim % _VECTOR or "o" in config.biased:
        raise InputError(
            f"model {quantized.base.name} has heads of {config.head_dim}, biases on "
            f"{', '.join(config.biased) or 'nothing'}; a Decoder takes heads of a multiple of "
            f"{_VECTOR} and no bias on o"
        )
    return tensors[0].format, (1 << act.format_obj.bits - 1) - 1


def _stacked(quantized: QuantizedModel, names: Sequence[str]) -> tuple[tuple[Any, ...], Any]:
    """The linears of a site below each other, packed and stacked over the layers."""
    packed = []
    for block in quantized.blocks:
        tensor = _joined([block.tensors[name] for name in names])  # type: ignore[misc]  # checked
        decode = integer_decode(tensor.format)
        packed.append(IntegerTiles(tensor, decode))  # type: ignore[arg-type]
    fields = []
    for name in ("tiles", "extra", "bias", "sums", "scale"):
        each = [getattr(part, name) for part in packed]
        whole = aligned((len(each), *each[0].shape), each[0].dtype)
        for layer, part in enumerate(each):
            whole[layer] = part
        fields.append(whole)
    return (*fields, packed[0].starts, packed[0].group_size), packed[0]


def _joined(tensors: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """Tensors of one format and k below each other."""
    if len(tensors) == 1:
        return tensors[0]
    first = tensors[0]

    def below(name: str) -> Any:
        arrays = [getattr(t, name) for t in tensors]
        return None if arrays[0] is None else np.concatenate(arrays)

    return QuantizedTensor(
        format=first.format,
        group_size=first.group_size,
        codes=below("codes"),
        scale_format=first.scale_format,
        group_scales=below("group_scales"),
        channel_scales=below("channel_scales"),
        zero_points=below("zero_points"),
        selectors=below("selectors"),
        tensor_scale=first.tensor_scale,
    )
