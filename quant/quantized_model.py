"""A model under a recipe: quantised tensors, and the float weights that changed with them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .algorithms.base import SuperWeight
from .calibration import Calibration
from .compressed import CompressedMatrix
from .recipes import Recipe
from .tensor import QuantizedTensor

if TYPE_CHECKING:
    import torch

    from .algorithms.vqlogits import VqHead
    from .models import Cache, LanguageModel, Linear, LlamaConfig, Structure


@dataclass(frozen=True, slots=True)
class LinearReport:
    """How one linear layer was quantised."""

    name: str
    format: str
    #: Of the weights that were rounded, relative to their mean square; NaN where they depend on the
    #: token.
    relative_mse: float
    #: Squared error of the layer's outputs over the calibration tokens, relative to the outputs'
    #: mean square; NaN where no Gram matrix was gathered.
    relative_output_mse: float
    power: float  #: sum of squares of the weights that were rounded


@dataclass(frozen=True, slots=True)
class QuantizedBlock:
    """What one block became. Names are local: "attn.q", "ffn_norm"."""

    layer: int
    tensors: Mapping[str, QuantizedTensor | CompressedMatrix]  #: empty where linears stay FP16
    floats: "Mapping[str, torch.Tensor]"  #: norms and biases; matrices that stay float
    super_weights: Mapping[str, tuple[SuperWeight, ...]] = field(default_factory=dict)
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)  #: static, by site
    report: tuple[LinearReport, ...] = ()
    notes: tuple[str, ...] = ()


class QuantizedModel:
    """A language model whose block linears are quantised.

    Args:
        original: The model it was made from; its embedding and output layer are used.
        recipe: How it was quantised.
        blocks: All blocks, in order; they may be read from disk when they are asked for.
        calibration: What it was calibrated on; None if no data was needed.
        calibration_text: Name of the text.
        ends: "embed", "final_norm" and "head" where they changed.
        notes: On the run as a whole, a line each.
        head: The output layer in a form of its own; None: the base's, or that of `ends`.
        structure: What a structural step kept of the model; None: all of it.
    """

    def __init__(
        self,
        original: "LanguageModel",
        recipe: Recipe,
        blocks: Sequence[QuantizedBlock],
        calibration: Calibration | None = None,
        calibration_text: str | None = None,
        ends: "Mapping[str, torch.Tensor] | None" = None,
        notes: Sequence[str] = (),
        head: "VqHead | None" = None,
        structure: "Structure | None" = None,
    ) -> None:
        self.original, self.structure = original, structure
        #: The model that the recipe rounds: `original`, or what a structural step left of it.
        self.base = base = original if structure is None else original.narrowed(structure)
        self.recipe, self.blocks = recipe, blocks
        self.calibration, self.calibration_text = calibration, calibration_text
        self.ends = dict(ends or {})
        self._notes = tuple(notes)
        self.head = head
        self.model = base.with_weights(_FloatWeights(self))
        if head is not None:
            import torch

            rows = torch.from_numpy(head.codebook.astype(np.float32))
            self.model = self.model.with_head(rows, torch.from_numpy(head.token_codes))

    @property
    def tensors(self) -> dict[str, QuantizedTensor | CompressedMatrix]:
        """All quantised tensors by the model's names, "blocks.0.attn.q", in order of use."""
        return {
            f"blocks.{block.layer}.{name}": tensor
            for block in self.blocks
            for name, tensor in block.tensors.items()
        }

    @property
    def report(self) -> tuple[LinearReport, ...]:
        """Of every linear, in order of use."""
        return tuple(row for block in self.blocks for row in block.report)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know, a line each."""
        head = () if self.head is None else (self.head.describe(),)
        structure: tuple[str, ...] = ()
        if self.structure is not None:
            weights = [_weights(one.config) for one in (self.base, self.original)]
            structure = (
                f"{weights[0]:,} of {weights[1]:,} weights of the linears kept "
                f"({100 * self.parameters_kept:.1f} %); bits are those of a kept weight",
            )
        blocks = (note for block in self.blocks for note in block.notes)
        return (*self._notes, *structure, *blocks, *head)

    @property
    def stored_bits(self) -> int:
        """Bits of all quantised linears: codes, scales, zero points, selectors, super weights."""
        bits = 0
        for block in self.blocks:
            bits += sum(tensor.stored_bits for tensor in block.tensors.values())
            for kept in block.super_weights.values():
                bits += SuperWeight.BITS * len(kept)
        return bits

    @property
    def head_bits(self) -> int:
        """True bits of the output layer: its own form's, else 16 a weight.

        They are in no other number here. Where embedding and output layer are one matrix and the
        recipe leaves it so, these are the embedding's bits.
        """
        config = self.base.config
        return 16 * config.vocab * config.hidden if self.head is None else self.head.stored_bits

    @property
    def bits_per_weight(self) -> float:
        """True bits per weight over all linears of blocks; 16 if none is quantised.

        Of a smaller model these are the weights that are left, see `parameters_kept`.
        """
        if self.recipe.keeps_weights:
            return 16.0
        return self.stored_bits / _weights(self.base.config)

    @property
    def parameters_kept(self) -> float:
        """Share of the weights of the linears that a structural step has left; 1 without one."""
        return _weights(self.base.config) / _weights(self.original.config)

    @property
    def nominal_bits(self) -> float:
        """Bits per weight as the method's authors count them; of a format those of a code."""
        if not self.recipe.compressed:
            return self.recipe.nominal_bits
        sizes, bits = 0, 0.0
        for block in self.blocks:
            for tensor in block.tensors.values():
                size = tensor.shape[0] * tensor.shape[1]
                sizes, bits = sizes + size, bits + size * tensor.nominal_bits
        return bits / sizes

    def weights(self, layer: int, name: str) -> np.ndarray:
        """What a linear multiplies with: float32 [n, k], super weights in place."""
        block = self.blocks[layer]
        if name not in block.tensors:
            found = block.floats.get(name)
            full = self.base.weight(f"blocks.{layer}.{name}") if found is None else found
            return full.numpy()
        w = block.tensors[name].dequantize()
        for kept in block.super_weights.get(name, ()):
            w[kept.row, kept.column] = kept.value
        return w

    def linear(self, quantize_inputs: bool = True) -> "Linear":
        """The linears in float32 with dequantised weights and fake-quantised inputs.

        Args:
            quantize_inputs: False leaves activations as they are.
        """
        import torch

        from .activations import fake_activations
        from .models import SITE_OF

        recipe = self.recipe.activations if quantize_inputs else None
        turn = self.recipe.input_turn
        # Blocks on disk are dequantised when a pass comes to them, one at a time.
        keep_all = isinstance(self.blocks, list | tuple)
        ready: dict[tuple[int, str], Callable[[torch.Tensor], torch.Tensor]] = {}

        def linear(full: str, x: torch.Tensor) -> torch.Tensor:
            _, number, name = full.split(".", 2)
            layer = int(number)
            if (layer, name) not in ready:
                if not keep_all and any(other != layer for other, _ in ready):
                    ready.clear()
                ready[layer, name] = self._product(layer, name)
            if recipe is not None:
                limits = self.blocks[layer].limits.get(SITE_OF[name]) if recipe.static else None
                if turn is None:
                    x = fake_activations(x, recipe, limits)
                else:  # hardware rounds turned inputs; turned back they meet weights turned back
                    turned = torch.from_numpy(turn.apply(x.flatten(0, -2).numpy()))
                    rounded = fake_activations(turned, recipe, limits)
                    x = torch.from_numpy(turn.undo(rounded.numpy())).view(x.shape)
            return ready[layer, name](x)

        return linear

    def _product(self, layer: int, name: str) -> "Callable[[torch.Tensor], torch.Tensor]":
        tensor = self.blocks[layer].tensors.get(name)
        if isinstance(tensor, CompressedMatrix) and tensor.varies:
            return product_of(tensor)
        return _times(self.weights(layer, name))

    def cache(self) -> "Cache | None":
        """The key-value cache under the recipe; None if it stays in float."""
        from .activations import fake_kv

        kv = self.recipe.kv
        return None if kv is None else lambda name, y: fake_kv(y, kv)


def _weights(config: "LlamaConfig") -> int:
    """Weights of all block linears."""
    return sum(n * k for n, k in config.linear_shapes().values())


def product_of(
    tensor: QuantizedTensor | CompressedMatrix,
) -> "Callable[[torch.Tensor], torch.Tensor]":
    """Multiplies activations [..., k] with a tensor, whether it stands for one matrix or varies."""
    import torch

    if not isinstance(tensor, CompressedMatrix) or not tensor.varies:
        return _times(tensor.dequantize())

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = torch.from_numpy(tensor.forward(x.detach().reshape(-1, x.shape[-1]).numpy()))
        return y.view(*x.shape[:-1], -1)

    return forward


def _times(w: np.ndarray) -> "Callable[[torch.Tensor], torch.Tensor]":
    import torch

    matrix = torch.from_numpy(w)
    return lambda x: x @ matrix.T


class _FloatWeights(Mapping[str, Any]):
    """Float weights of a quantised model that differ from its base's, looked up in its blocks."""

    def __init__(self, quantized: QuantizedModel) -> None:
        self._quantized = quantized
        layers = range(quantized.base.config.layers)
        vectors = [
            "attn_norm",
            "ffn_norm",
            *(f"attn.{c}.bias" for c in quantized.base.config.biased),
        ]
        self._names = [*quantized.ends, *(f"blocks.{i}.{name}" for i in layers for name in vectors)]

    def __getitem__(self, name: str) -> Any:
        if name in self._quantized.ends:
            return self._quantized.ends[name]
        _, layer, local = name.split(".", 2)
        return self._quantized.blocks[int(layer)].floats[local]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
