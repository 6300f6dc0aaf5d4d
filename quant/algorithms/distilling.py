"""Short distillation of a block whose linears are binary, from the float block.

BinaryMoS and LittleBit are quantisation-aware training: signs, scales and all follow the float
model over whole text corpora. What is here is much less: block by block, the latent weights and
scales of the block's linears are trained with Adam for some dozens of steps on the calibration
tokens, so that the block's output on the quantised stream comes near the float block's on the float
stream. The loss is the layer-wise term of both papers, the squared error of hidden states, with
one change: each token's error is taken over the squares of its target. The first token's stream can
be ten thousand times as strong as the others' (massive activations), and the plain sum would train
for that token alone. Their divergence of the logits (KL) is not used: it needs the whole model at
once. Memory is that of one block, and a run that writes to a folder goes on
behind its last finished block.

What the papers run: BinaryMoS a learning rate of 2e-5 along a cosine, LittleBit 4e-5 and 5 epochs,
both on C4 and WikiText2, with KL plus 10 times the sum of the squared errors of all hidden states
(released code of both). With steps in the dozens such rates would change no sign, so rates here are
larger, and *relative*: Adam moves a number by about its rate whatever its gradient is, so each
array's rate is `rate` times its own mean magnitude. The rate falls to zero along a cosine.

Scales act as the FP16 numbers that are stored, gradients pass straight through that rounding and
through the rounding of activations. Norms, biases, embedding and output layer stay as they are. A
block whose loss on the first batches did not fall, or became NaN, keeps its initialisation, and the
notes say so.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bitwright.quant import CompressedMatrix, InputError

from .base import Algorithm, BlockTask, Phase

if TYPE_CHECKING:
    import torch

    from bitwright.quant import Linear

_JUDGED = 8  #: batches, of those trained on first, whose loss must have fallen


class Student(ABC):
    """A linear in training."""

    @abstractmethod
    def parameters(self) -> "list[torch.Tensor]":
        """The arrays that are trained."""

    @abstractmethod
    def product(self, x: "torch.Tensor") -> "torch.Tensor":
        """Outputs of inputs [..., k], in a graph: those of the matrix that would be stored now."""

    @abstractmethod
    def stored(self) -> CompressedMatrix:
        """The matrix as it is now.

        Raises:
            InputError: A scale is beyond FP16 or not finite.
        """


class Distilled(Algorithm):
    """The options of methods that are initialised, and then distilled if `steps` is not 0."""

    phase: ClassVar[Phase] = "round"
    own_form: ClassVar[bool] = True
    needs_format: ClassVar[bool] = False
    steps: int = Field(default=0, ge=0, le=1_000_000)  #: of Adam per block; 0: none
    batch: int = Field(default=1, ge=1)  #: calibration sequences per step, one batch after another
    rate: float = Field(default=0.03, gt=0, le=1)  #: peak, over each array's mean magnitude

    @property
    def needs_data(self) -> bool:  # type: ignore[override]
        return self.steps > 0

    @property
    def reads_quantized_stream(self) -> bool:  # type: ignore[override]
        return self.steps > 0

    @property
    def trains_blocks(self) -> bool:
        return self.steps > 0

    def student(self, block: BlockTask, name: str, w: Any) -> Student:
        """The initialised linear, ready for training."""
        raise NotImplementedError

    def forms(self, block: BlockTask) -> dict[str, CompressedMatrix]:
        """All of the block's matrices, distilled."""
        from bitwright.quant import SITE_OF

        students = {}
        for name in SITE_OF:
            try:
                students[name] = self.student(block, name, block.to_round(name))
            except InputError as error:
                raise InputError(f"layer blocks.{block.layer}.{name}: {error}") from None
        return distil(block, students, self.steps, self.batch, self.rate, self.name)


def distil(
    block: BlockTask,
    students: Mapping[str, Student],
    steps: int,
    batch: int,
    rate: float,
    name: str,
) -> dict[str, CompressedMatrix]:
    """Train a block's linears together, and give what is stored of them.

    Args:
        block: Its streams are read.
        students: By local name, all linears.
        steps: Of Adam, at least 1.
        batch: Sequences per step; sequences take turns in their order.
        rate: Peak rate over the mean magnitude of each array.
        name: Of the algorithm, for notes and progress.
    """
    import torch

    assert block.streams is not None and steps > 0
    inputs, targets = block.streams.quantized_in, block.streams.float_out
    parts = [slice(i, i + batch) for i in range(0, len(inputs), batch)]
    initial = {key: student.stored() for key, student in students.items()}
    with torch.enable_grad():
        judged = parts[: min(steps, _JUDGED)]
        before = _mean_loss(block, students, judged)
        groups = [
            {"params": [p], "lr": 0.0, "peak": rate * float(p.detach().abs().mean())}
            for student in students.values()
            for p in student.parameters()
        ]
        optimizer = torch.optim.Adam(groups)
        for step in range(steps):
            part = parts[step % len(parts)]
            out = _forward(block, students, inputs[part])
            loss = _loss(out, targets[part])
            if not bool(torch.isfinite(loss)):
                break
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.step()
            if block.progress:
                text = f"{name}: block {block.layer}, loss {loss.item():.3g}"
                block.progress(step + 1, steps, text)
        try:
            made = {key: student.stored() for key, student in students.items()}
            after = _mean_loss(block, students, judged)
        except InputError:  # a scale that FP16 does not have
            made, after = initial, float("nan")
    if after < before:
        block.note(f"{name}: distilled, loss {before:.4g} -> {after:.4g}")
        return made
    block.note(f"{name}: loss did not fall ({before:.4g} -> {after:.4g}); initialisation kept")
    return initial


def _forward(
    block: BlockTask, students: Mapping[str, Student], x: "torch.Tensor"
) -> "torch.Tensor":
    """The residual stream behind the block with its students in place."""
    from bitwright.quant import block_forward, fake_kv, rotary_table

    kv = block.recipe.kv

    def cache(name: str, y: "torch.Tensor") -> "torch.Tensor":
        assert kv is not None
        return y + (fake_kv(y.detach(), kv) - y.detach())

    return block_forward(
        block.config,
        block.weights,
        x,
        rotary_table(block.config, x.shape[1], x.dtype),
        _linear(block, students),
        cache=None if kv is None else cache,
    )


def _linear(block: BlockTask, students: Mapping[str, Student]) -> "Linear":
    from bitwright.quant import SITE_OF, fake_activations

    act = block.recipe.activations

    def linear(name: str, y: "torch.Tensor") -> "torch.Tensor":
        if act is not None:
            limits = block.stats[SITE_OF[name]].limits if act.static else None
            y = y + (fake_activations(y.detach(), act, limits) - y.detach())
        return students[name].product(y)

    return linear


def _loss(out: "torch.Tensor", target: "torch.Tensor") -> "torch.Tensor":
    """Squared error of a token over the squares of its target, mean over tokens."""
    power = target.square().sum(-1).clamp(min=1e-20)  # a stream of zeros divides nothing
    return ((out - target).square().sum(-1) / power).mean()


def _mean_loss(block: BlockTask, students: Mapping[str, Student], parts: "list[slice]") -> float:
    """Mean loss over some parts."""
    import torch

    assert block.streams is not None
    inputs, targets = block.streams.quantized_in, block.streams.float_out
    with torch.no_grad():
        losses = [
            float(_loss(_forward(block, students, inputs[part]), targets[part])) for part in parts
        ]
    return sum(losses) / len(losses)


# ---------------------------------------------------------------- straight-through estimators


def straight_sign(w: "torch.Tensor") -> "torch.Tensor":
    """sign(w), +1 at 0; the gradient passes unchanged where |w| is at most 1 (BinaryMoS).

    >>> import torch
    >>> w = torch.tensor([-2.0, -0.5, 0.0, 3.0], requires_grad=True)
    >>> signs = straight_sign(w)
    >>> signs.sum().backward()
    >>> signs.tolist(), w.grad.tolist()
    ([-1.0, -1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0])
    """
    bounded = w.clamp(-1, 1)
    return _signs(w) + (bounded - bounded.detach())


def smooth_sign(w: "torch.Tensor", steepness: float = 100.0) -> "torch.Tensor":
    """sign(w), +1 at 0; the gradient is that of tanh(steepness * w) (LittleBit's SmoothSign).

    >>> import torch
    >>> w = torch.tensor([-2.0, 0.0], requires_grad=True)
    >>> signs = smooth_sign(w)
    >>> signs.sum().backward()
    >>> signs.tolist(), w.grad.tolist()
    ([-1.0, 1.0], [0.0, 100.0])
    """
    import torch

    smooth = torch.tanh(steepness * w)
    return _signs(w) + (smooth - smooth.detach())


def half(scales: "torch.Tensor") -> "torch.Tensor":
    """Scales as FP16 stores them; the gradient passes unchanged."""
    return scales + (scales.detach().half().float() - scales.detach())


def _signs(w: "torch.Tensor") -> "torch.Tensor":
    import torch

    one = torch.ones((), dtype=w.dtype)
    return torch.where(w.detach() >= 0, one, -one)


def trained(array: Any) -> "torch.Tensor":
    """A parameter that starts at an array, float32."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(array, np.float32)).requires_grad_(True)
