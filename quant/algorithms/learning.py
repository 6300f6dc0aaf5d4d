"""Learning clipping and scales of a block by gradient descent, whatever the weight format.

OmniQuant (Shao et al., ICLR 2024, arXiv 2308.13137) learns two things block by block, without
touching the weights: how far each group of weights is clipped (LWC), and the scales of an
equivalent transformation (LET). ABQ-LLM builds on it. Both use this trainer with a loss of their
own.

**Clipping.** A group is clipped to [sigmoid(b) min(w, 0), sigmoid(g) max(w, 0)]; g and b start at 4
(3 for BitMoD, as in the study's scripts). Rounding is the package's own, codes and all, so that
what is learned is what is stored. Its gradient is a straight-through estimate that holds for every
format: with w clipped to [lo, hi] and rounded to delta * q,

    d(rounded) = d(clipped w) + (rounded - clipped) / delta * d(delta)

where delta follows from lo and hi as in rounding: (hi - lo) / qmax, or max(-lo, hi) / absmax of the
grid. (For integers (rounded - clipped) / delta is q - w / delta, the known estimate.)

**Scales** are learned as logarithms, which keeps them positive; the authors' code clamps them.
Inputs of attn.o share scales between heads that share values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bitwright.quant import InputError

from .base import Algorithm, BlockTask, Phase, scaled_weights

if TYPE_CHECKING:
    import torch

    from bitwright.quant import QuantizedTensor, Recipe

OnNan = Literal["restore", "stop"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast a block is trained."""

    sequences: int  #: calibration sequences used, from the first
    epochs: int
    batch: int  #: sequences per step
    scale_rate: float  #: learning rate of the scales
    clip_rate: float  #: of the clipping logits
    compensation_rate: float = 1e-2


@dataclass(frozen=True, slots=True)
class Example:
    """What a loss sees of one step: tensors [batch, t, hidden] and projections."""

    out: "torch.Tensor"  #: of the quantised block on the quantised stream
    float_out: "torch.Tensor"  #: of the float block on the float stream
    float_out_here: "torch.Tensor"  #: of the float block on the quantised stream
    queries_keys: "tuple[torch.Tensor, torch.Tensor]"  #: projections of the quantised block
    float_queries_keys: "tuple[torch.Tensor, torch.Tensor]"  #: of the float block, float stream


Loss = Callable[[BlockTask, Example], "torch.Tensor"]


class LearnedAlgorithm(Algorithm):
    """The options that OmniQuant and ABQ-LLM share."""

    phase: ClassVar[Phase] = "prepare"
    reads_quantized_stream: ClassVar[bool] = True
    one_format: ClassVar[bool] = True
    sequences: int = Field(default=32, ge=1)  #: calibration sequences trained on
    epochs: int = Field(default=10, ge=1)
    batch: int = Field(default=2, ge=1)  #: sequences per step
    #: Learn scales; auto: where activations are quantised.
    scale: Literal["auto", "on", "off"] = "auto"
    scale_rate: float = Field(default=5e-3, gt=0)
    clip_rate: float = Field(default=1e-2, gt=0)
    on_nan: OnNan = "restore"

    def learns_scales(self, block: BlockTask) -> bool:
        """Whether this recipe's scales are learned."""
        if self.scale == "auto":
            return block.recipe.activations is not None
        return self.scale == "on"

    def schedule(self, compensation_rate: float = 1e-2) -> Schedule:
        """How long and how fast."""
        return Schedule(
            self.sequences,
            self.epochs,
            self.batch,
            self.scale_rate,
            self.clip_rate,
            compensation_rate,
        )


def learn(
    block: BlockTask,
    loss: Loss,
    schedule: Schedule,
    *,
    clip: bool,
    scale: bool,
    compensate: bool = False,
    on_nan: OnNan = "restore",
    name: str,
) -> None:
    """Train a block's clipping and scales, and leave the block with them.

    A block whose loss over all sequences did not fall keeps its initial state. If the loss becomes
    NaN or infinite the block is restored and noted, or the run stops.

    Args:
        block: Its streams are read; clipped weights and scales are set.
        loss: Of one step, a scalar.
        schedule: How long.
        clip: Learn clipping.
        scale: Learn scales.
        compensate: Learn a rank-1 addition a b^T to "ffn.down" before rounding (ABQ-LLM).
        on_nan: What to do when the loss is NaN.
        name: Of the algorithm, for notes and errors.

    Raises:
        InputError: The loss became NaN and `on_nan` is "stop".
    """
    import torch

    with torch.enable_grad():
        trainer = _Trainer(block, schedule, clip, scale, compensate)
        before, after = trainer.total_loss(loss, initial=True), float("nan")
        try:
            if np.isfinite(before) and trainer.run(loss, name):
                after = trainer.total_loss(loss)
        except InputError:  # weights that can no longer be rounded: infinite, or beyond FP16 scales
            pass
    if not np.isfinite(after):
        if on_nan == "stop":
            raise InputError(
                f"{name}: the loss of block {block.layer} became NaN or infinite; lower its "
                "learning rates, or let it go on with on_nan=restore"
            )
        block.note(f"{name}: loss became NaN or infinite; block restored")
        return
    if after >= before:
        block.note(f"{name}: loss did not fall ({before:.4g}); block kept as it was")
        return
    trainer.leave()


class _Trainer:
    def __init__(
        self, block: BlockTask, schedule: Schedule, clip: bool, scale: bool, compensate: bool
    ) -> None:
        import torch

        from bitwright.quant import SITES, rotary_table

        assert block.streams is not None
        self.block, self.schedule = block, schedule
        self.names = [name for names in SITES.values() for name in names]
        self.base = {key: w.detach() for key, w in block.weights.items()}
        count = schedule.sequences
        self.inputs = block.streams.quantized_in[:count].detach().clone()
        self.targets = block.streams.float_out[:count].detach().clone()
        self.rotary = rotary_table(block.config, self.inputs.shape[1], self.inputs.dtype)
        with torch.no_grad():
            self.targets_here, _ = self._float_block(self.inputs)
            _, self.float_qk = self._float_block(block.streams.float_in[:count])
        self.clip = clip
        format = block.recipe.format_obj
        assert format is not None
        start = 3.0 if format.selector_bits > 1 and not format.alternatives else 4.0
        self.logits: dict[str, torch.Tensor] = {}
        self.log_scales: dict[str, torch.Tensor] = {}
        self.factors: list[torch.Tensor] = []
        self.extremes: dict[str, Any] = {}
        if clip:
            for name in self.names:
                n, k = self.base[name].shape
                groups = -(-k // _size(block.recipe, k))
                self.logits[name] = torch.full((2, n, groups), start, requires_grad=True)
        if scale:
            self._initial_scales()
        if compensate:
            n, k = self.base["ffn.down"].shape
            self.factors = [torch.zeros(n, 1), torch.zeros(1, k)]
            # One factor starts at 0, so that nothing changes at first; were both 0, as the released
            # code has it, neither would ever get a gradient.
            generator = torch.Generator().manual_seed(block.layer)
            self.factors[1] = torch.randn(1, k, generator=generator) / k**0.5
            for factor in self.factors:
                factor.requires_grad_(True)

    def _initial_scales(self) -> None:
        """s = sqrt(max|X| / max|W|) per channel, ABQ-LLM's and OmniQuant's start."""
        import torch

        from bitwright.quant import SITES

        from .smoothquant import smoothing_scales

        for site, names in SITES.items():
            weights = [self.base[name].numpy() for name in names]
            s = smoothing_scales(self.block.stats[site], weights, 0.5)
            s = self.block.tie(site, s / np.float32(np.exp(np.log(s).mean())))
            if site == "attn_out":
                s = s.reshape(self.block.config.kv_heads, -1, self.block.config.head_dim)[:, 0]
            log = torch.from_numpy(np.log(np.ascontiguousarray(s))).requires_grad_(True)
            self.log_scales[site] = log

    def _scales(self) -> "dict[str, torch.Tensor]":
        config = self.block.config
        scales = {}
        for site, log in self.log_scales.items():
            s = log.exp()
            if site == "attn_out":
                shape = config.kv_heads, config.heads // config.kv_heads, config.head_dim
                s = s[:, None].expand(shape).reshape(-1)
            scales[site] = s
        return scales

    def _float_block(self, x: "torch.Tensor") -> Any:
        """Output of the float block, and its queries and keys, a batch at a time."""
        import torch

        from bitwright.quant import block_forward

        outs, queries, keys = [], [], []
        for start in range(0, len(x), self.schedule.batch):
            seen: dict[str, torch.Tensor] = {}

            def linear(name: str, y: torch.Tensor, seen: Any = seen) -> torch.Tensor:
                seen[name] = y @ self.base[name].T
                return seen[name]

            part = x[start : start + self.schedule.batch]
            outs.append(block_forward(self.block.config, self.base, part, self.rotary, linear))
            queries.append(seen["attn.q"])
            keys.append(seen["attn.k"])
        return torch.cat(outs), (torch.cat(queries), torch.cat(keys))

    def _bounds(self, name: str, w: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """Clipping bounds [n, groups] of (transformed) weights."""
        import torch

        recipe = self.block.recipe
        k = w.shape[1]
        grouped = _grouped(w, -(-k // _size(recipe, k)), recipe)
        if w is self.base[name] and name in self.extremes:
            low, high = self.extremes[name]
        else:
            low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
            if w is self.base[name]:  # without scales the weights do not move
                self.extremes[name] = low, high
        if name in self.logits:
            share = torch.sigmoid(self.logits[name])
            low, high = low * share[0], high * share[1]
        return low, high

    def _rounded(self) -> "dict[str, torch.Tensor]":
        """All of the block's weights as they would be stored, in a graph."""
        weights = dict(scaled_weights(self.block.config, self.base, self._scales()))
        for name in self.names:
            w = self._compensated(name, weights[name])
            weights[name] = rounded(w, *self._bounds(name, w), self.block.recipe)
        return weights

    def _compensated(self, name: str, w: "torch.Tensor") -> "torch.Tensor":
        return w + self.factors[0] @ self.factors[1] if name == "ffn.down" and self.factors else w

    def _example(self, weights: "Mapping[str, torch.Tensor]", part: slice) -> Example:
        import torch

        from bitwright.quant import block_forward, fake_activations, fake_kv

        recipe = self.block.recipe
        act, kv = recipe.activations, recipe.kv
        seen: dict[str, torch.Tensor] = {}

        def linear(name: str, y: torch.Tensor) -> torch.Tensor:
            if act is not None:
                limits = None
                if act.static:
                    limits = float(y.min().clamp(max=0)), float(y.max().clamp(min=0))
                # Straight through: the rounded values go on, the gradient passes unchanged.
                y = y + (fake_activations(y.detach(), act, limits) - y.detach())
            seen[name] = y @ weights[name].T
            return seen[name]

        def cache(name: str, y: torch.Tensor) -> torch.Tensor:
            assert kv is not None
            return y + (fake_kv(y.detach(), kv) - y.detach())

        out = block_forward(
            self.block.config,
            weights,
            self.inputs[part],
            self.rotary,
            linear,
            cache=None if kv is None else cache,
        )
        return Example(
            out,
            self.targets[part],
            self.targets_here[part],
            (seen["attn.q"], seen["attn.k"]),
            (self.float_qk[0][part], self.float_qk[1][part]),
        )

    def _parts(self) -> list[slice]:
        size = self.schedule.batch
        return [slice(i, min(i + size, len(self.inputs))) for i in range(0, len(self.inputs), size)]

    def total_loss(self, loss: Loss, initial: bool = False) -> float:
        """Mean loss over all sequences; `initial`: of rounding without anything learned."""
        import torch

        with torch.no_grad():
            if initial:
                weights = dict(self.base)
                for name in self.names:
                    qt = self.block.round(self.block.to_round(name), name)
                    weights[name] = torch.from_numpy(qt.dequantize())
            else:
                weights = self._rounded()
            values = [
                float(loss(self.block, self._example(weights, part))) * (part.stop - part.start)
                for part in self._parts()
            ]
        return sum(values) / len(self.inputs)

    def run(self, loss: Loss, name: str) -> bool:
        """Train; False if the loss became NaN or infinite."""
        import torch

        groups = [
            {"params": list(self.logits.values()), "lr": self.schedule.clip_rate},
            {"params": list(self.log_scales.values()), "lr": self.schedule.scale_rate},
            {"params": self.factors, "lr": self.schedule.compensation_rate},
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            return True
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        parts = self._parts()
        steps = self.schedule.epochs * len(parts)
        for step in range(steps):
            value = loss(self.block, self._example(self._rounded(), parts[step % len(parts)]))
            if not bool(torch.isfinite(value)):
                return False
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if self.block.progress:
                text = f"{name}: block {self.block.layer}, loss {value.item():.3g}"
                self.block.progress(step + 1, steps, text)
        learned = [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
        return all(bool(torch.isfinite(p).all()) for p in learned)

    def leave(self) -> None:
        """Give the block its scales and clipped weights."""
        import torch

        with torch.no_grad():
            for site, s in self._scales().items():
                self.block.scale_inputs(site, s.numpy())
            for name in self.names:
                w = self._compensated(name, self.block.weights[name])
                low, high = self._bounds(name, w)
                self.block.clipped[name] = clip(w, low, high, self.block.recipe)


def rounded(
    w: "torch.Tensor", low: "torch.Tensor", high: "torch.Tensor", recipe: "Recipe"
) -> "torch.Tensor":
    """Weights clipped to [low, high] and rounded in the recipe's format, differentiable.

    Args:
        w: [n, k].
        low: [n, groups], not above 0.
        high: [n, groups], not below 0.
        recipe: Its format and group size; nothing else is used.

    Returns:
        [n, k]: exactly what `quantize(clipped).dequantize()` gives; for the gradient see the
        module.
    """
    import torch

    out: torch.Tensor = _rounding().apply(w, low, high, recipe)
    return out


@lru_cache(maxsize=1)
def _rounding() -> Any:
    """The autograd function behind `rounded`; made when torch is wanted."""
    import torch

    class Rounding(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, w: torch.Tensor, low: Any, high: Any, recipe: "Recipe") -> Any:
            from bitwright.quant import quantize

            clipped = clip(w, low, high, recipe)
            tensor = quantize(clipped, recipe.weights_only)
            values = torch.from_numpy(tensor.dequantize())
            ctx.save_for_backward(w, low, high, values)
            ctx.recipe, ctx.tensor = recipe, tensor
            return values

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> Any:
            from .learning_numba import rounding_gradient

            w, low, high, values = (saved.detach() for saved in ctx.saved_tensors)
            to_w = np.empty(tuple(w.shape), np.float32)
            to_low, to_high, to_delta = (np.empty(tuple(low.shape), np.float32) for _ in range(3))
            rounding_gradient(
                gradient.contiguous().numpy(),
                w.contiguous().numpy(),
                values.numpy(),
                low.contiguous().numpy(),
                high.contiguous().numpy(),
                ctx.tensor.scales(),
                _size(ctx.recipe, w.shape[1]),
                to_w,
                to_low,
                to_high,
                to_delta,
            )
            low_slope, high_slope = _delta_slopes(ctx.tensor, (high > -low).numpy())
            return (
                torch.from_numpy(to_w),
                torch.from_numpy(to_low + to_delta * low_slope),
                torch.from_numpy(to_high + to_delta * high_slope),
                None,
            )

    return Rounding


def clip(
    w: "torch.Tensor", low: "torch.Tensor", high: "torch.Tensor", recipe: "Recipe"
) -> np.ndarray:
    """Weights [n, k] clipped to the bounds [n, groups] of their groups, float32."""
    from .learning_numba import clip_groups

    out = np.empty(tuple(w.shape), np.float32)
    arrays = [x.detach().contiguous().numpy() for x in (w, low, high)]
    clip_groups(arrays[0], arrays[1], arrays[2], _size(recipe, w.shape[1]), out)
    return out


def _size(recipe: "Recipe", k: int) -> int:
    return min(recipe.group_size or k, k)


def _grouped(w: "torch.Tensor", groups: int, recipe: "Recipe") -> "torch.Tensor":
    """[n, k] as [n, groups, group_size]; a ragged last group is filled with zeros."""
    import torch.nn.functional as F

    size = _size(recipe, w.shape[1])
    missing = groups * size - w.shape[1]
    return (F.pad(w, (0, missing)) if missing else w).view(len(w), groups, size)


def _delta_slopes(tensor: "QuantizedTensor", upper: np.ndarray) -> tuple[Any, Any]:
    """Slopes of the group scales in the lower and in the upper clipping bound, [n, groups] each.

    0 for formats whose scale is not a function of the bounds alone (mean magnitudes, OliVe's
    pairs).
    """
    format = tensor.format
    if format.zero_point_bits:
        return np.float32(-1 / format.qmax), np.float32(1 / format.qmax)
    if format.scale_rule == "absmean" or format.kind == "olive":
        return np.float32(0), np.float32(0)
    largest = np.array([format.absmax(s) for s in range(format.choices)], np.float32)
    slope = 1 / largest[0 if tensor.selectors is None else tensor.selectors]
    zero = np.float32(0)
    return np.where(upper, zero, -slope), np.where(upper, slope, zero)
