"""BinaryMoS: signs of weights with scales of rows and columns that a router mixes for each token.

"Mixture of Scales: Memory-Efficient Token-Adaptive Binarization for Large Language Models" (Jo et
al., arXiv 2406.12311; dongwonjo/BinaryMoS, binarization/binarized_modules.py). E experts have a
scale vector of the inputs each (A, [E, k]) and one of the outputs (B, [E, n]). For a token x

    g = softmax(x R^T),  a = g A,  b = g B,  y = ((x * a) sign(W)^T) * b

All experts start equal, from the rank-1 SVD of |W| (`rank_one`); the router R [E, k] starts at
random, uniform within 1 / sqrt(k) of 0. The paper trains all of them and the weights (quantisation-
aware, against the float model); by default what is here is the initialisation alone. sign(0) is +1
here and 0 in the authors' code.

| entry | type | content |
|---|---|---|
| signs | uint8 | [n, k], a bit each, 1 is +1, row by row |
| inputs, outputs | float16 | A [E, k], B [E, n] |
| router | float16 | R [E, k]; absent with one expert (OneBit's form) |

True bits per weight: 1 + 16 (E (n + k) + E k) / (n k), without the last E k where E = 1. The
authors count 1.

A router cannot live in a static matrix: its scales depend on the token. With equal experts the
mixture is the same whatever the router says, since g adds up to 1, so `dequantize` is exact then;
where experts differ it is refused and `forward` is what there is. Scales of inputs come before an
activation is quantised, and cannot be folded into the signs.

With `steps` experts, router and latent weights are trained block by block (`distilling.py`), far
less than the paper trains; the gradient of a sign passes where |w| is at most 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self
from zlib import crc32

import numpy as np
from jaxtyping import Float16, Float32, UInt8
from pydantic import Field

from bitwright.quant import (
    CompressedMatrix,
    InputError,
    Operands,
    Pass,
    SiteStats,
    VectorWork,
    as_weights,
    pack_bits,
    plane_tensor,
    unpack_bits,
)

from .base import BlockTask
from .distilling import Distilled, Student, half, straight_sign, trained
from .rank_one import rank_one, to_half

if TYPE_CHECKING:
    import torch


class BinaryMoS(Distilled):
    """Signs, and scales of rows and columns from experts."""

    name: Literal["binarymos"] = "binarymos"
    experts: int = Field(default=4, ge=1, le=64)
    seed: int = Field(default=0, ge=0)  #: of the routers

    def round(
        self, block: BlockTask, name: str, w: np.ndarray, stats: SiteStats | None
    ) -> "BinaryMoSMatrix":
        """Weights [n, k] as signs and equal experts; each linear has a router of its own."""
        rng = np.random.default_rng([self.seed, block.layer, crc32(name.encode())])
        return binarymos(w, self.experts, rng)

    def student(self, block: BlockTask, name: str, w: np.ndarray) -> "BinaryMoSStudent":
        """The initialised linear, ready for training."""
        return BinaryMoSStudent(w, self.round(block, name, w, None))


@dataclass(frozen=True, eq=False)
class BinaryMoSMatrix(CompressedMatrix):
    """Signs with mixed scales.

    Raises:
        InputError: Shapes that contradict each other.
    """

    signs: UInt8[np.ndarray, "n k"]  #: 1: +1, 0: -1
    inputs: Float16[np.ndarray, "experts k"]
    outputs: Float16[np.ndarray, "experts n"]
    router: Float16[np.ndarray, "experts k"] | None  #: None with one expert

    method: ClassVar[str] = "binarymos"

    def __post_init__(self) -> None:
        (n, k), experts = self.signs.shape, len(self.inputs)
        wanted = {"inputs": (experts, k), "outputs": (experts, n)}
        if self.router is not None:
            wanted["router"] = (experts, k)
        for name, shape in wanted.items():
            found = getattr(self, name).shape
            if found != shape:
                raise InputError(f"{name} is {list(found)}; {n} x {k} weights need {list(shape)}")
        if (self.router is None) != (experts == 1):
            raise InputError(
                f"{experts} expert{'s' * (experts > 1)} and {'no' * (self.router is None) or 'a'} "
                "router; two or more experts have one, a single expert none"
            )

    @property
    def shape(self) -> tuple[int, int]:
        n, k = self.signs.shape
        return n, k

    @property
    def experts(self) -> int:
        """How many there are."""
        return len(self.inputs)

    @property
    def equal_experts(self) -> bool:
        """Whether the router makes no difference."""
        return bool(
            (self.inputs == self.inputs[0]).all() and (self.outputs == self.outputs[0]).all()
        )

    @property
    def varies(self) -> bool:
        return not self.equal_experts

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        """The weights: exact for every router, since experts are equal.

        Raises:
            InputError: Experts differ.
        """
        if not self.equal_experts:
            raise InputError(
                "binarymos: experts differ, so weights depend on the token and no matrix stands "
                "for them; compute outputs with forward(x)"
            )
        scales = self.outputs[0].astype(np.float32)[:, None] * self.inputs[0].astype(np.float32)
        return np.where(self.signs == 1, scales, -scales)

    def gates(self, x: Float32[np.ndarray, "tokens k"]) -> Float32[np.ndarray, "tokens experts"]:
        """How much of each expert a token takes: softmax of the router's outputs, in float32."""
        if self.router is None:
            return np.ones((len(x), 1), np.float32)
        logits = x @ self.router.astype(np.float32).T
        powers = np.exp(logits - logits.max(1, keepdims=True))
        gates: np.ndarray = powers / powers.sum(1, keepdims=True)
        return gates

    def forward(self, x: Float32[np.ndarray, "tokens k"]) -> Float32[np.ndarray, "tokens n"]:
        """Outputs, with scales mixed for each token."""
        g = self.gates(x)
        a, b = g @ self.inputs.astype(np.float32), g @ self.outputs.astype(np.float32)
        y: np.ndarray = ((x * a) @ (self.signs.astype(np.float32) * 2 - 1).T) * b
        return y

    def settings(self) -> dict[str, Any]:
        n, k = self.shape
        return {"n": n, "k": k, "experts": self.experts}

    def entries(self) -> dict[str, np.ndarray]:
        made = {
            "signs": pack_bits(self.signs, 1),
            "inputs": self.inputs,
            "outputs": self.outputs,
        }
        return made if self.router is None else {**made, "router": self.router}

    @classmethod
    def restored(cls, settings: Mapping[str, Any], entries: Mapping[str, np.ndarray]) -> Self:
        n, k = settings["n"], settings["k"]
        signs = unpack_bits(entries["signs"], 1, n * k).reshape(n, k)
        return cls(signs, entries["inputs"], entries["outputs"], entries.get("router"))

    @property
    def nominal_bits(self) -> float:
        return 1.0

    def passes(self) -> tuple[Pass, ...]:
        """The router, whose results mix scales, and the signs."""
        n, k = self.shape
        router = () if self.router is None else (_router_pass(self.experts, k),)
        bits = self.stored_bits - sum(one.bits for one in router)
        return (*router, Pass("signs", n, k, "binary", bits))

    def operands(self, x: np.ndarray) -> Operands:
        signs = (
            x * (self.gates(x) @ self.inputs.astype(np.float32)),
            plane_tensor(self.signs, "binary"),
        )
        if self.router is None:
            return (signs,)
        return (x, self.router.astype(np.float32)), signs

    def vector_work(self) -> tuple[VectorWork, ...]:
        """Weights of the experts from the router, a token's own scales from theirs, and scaling."""
        n, k = self.shape
        mixing = (
            ()
            if self.router is None
            else (
                VectorWork("weigh experts", "softmax", self.experts),
                VectorWork("mix scales", "mix", n + k, self.experts),
            )
        )
        scaling = (
            VectorWork("scale inputs", "scale", k),
            VectorWork("scale outputs", "scale", n),
        )
        return (*mixing, *scaling)


class BinaryMoSStudent(Student):
    """Latent weights [n, k], experts and router in training."""

    def __init__(self, w: np.ndarray, initial: BinaryMoSMatrix) -> None:
        self.w = trained(w)
        self.inputs, self.outputs = trained(initial.inputs), trained(initial.outputs)
        self.router = None if initial.router is None else trained(initial.router)

    def parameters(self) -> "list[torch.Tensor]":
        return [p for p in (self.w, self.inputs, self.outputs, self.router) if p is not None]

    def product(self, x: "torch.Tensor") -> "torch.Tensor":
        import torch

        signs = straight_sign(self.w)
        if self.router is None:
            return ((x * half(self.inputs)) @ signs.T) * half(self.outputs)
        g = torch.softmax(x @ half(self.router).T, -1)
        return ((x * (g @ half(self.inputs))) @ signs.T) * (g @ half(self.outputs))

    def stored(self) -> BinaryMoSMatrix:
        def stored(scales: "torch.Tensor", what: str) -> np.ndarray:
            return to_half(scales.detach().numpy(), what)

        return BinaryMoSMatrix(
            (self.w.detach().numpy() >= 0).astype(np.uint8),
            stored(self.inputs, "input scales"),
            stored(self.outputs, "output scales"),
            None if self.router is None else stored(self.router, "router"),
        )


def _router_pass(experts: int, k: int) -> Pass:
    return Pass("router", experts, k, None, 16 * experts * k)


def binarymos(
    w: Float32[np.ndarray, "n k"], experts: int, rng: np.random.Generator
) -> BinaryMoSMatrix:
    """Signs of weights, equal experts from the rank-1 SVD of |w|, and a random router.

    Raises:
        InputError: Weights that are not finite, or a scale beyond FP16.
    """
    w = as_weights(w)
    outputs, inputs = rank_one(np.abs(w))
    k = w.shape[1]
    router = rng.uniform(-1, 1, (experts, k)).astype(np.float32) / np.float32(np.sqrt(k))
    return BinaryMoSMatrix(
        (w >= 0).astype(np.uint8),
        np.tile(to_half(inputs, "input scales"), (experts, 1)),
        np.tile(to_half(outputs, "output scales"), (experts, 1)),
        None if experts == 1 else router.astype(np.float16),
    )
