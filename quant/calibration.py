"""What algorithms learn from data: one pass over a text, block by block.

A pass keeps the residual stream of all calibration tokens and the weights of one block in memory.
Of the inputs of each *site* (the linears that share an input, `SITES`) it gathers what the
algorithms of a recipe ask for: ranges and mean magnitudes per channel always, the Gram matrix
sum x x^T (a Hessian of the layer's output error, up to a factor) and a sample of rows on request.

Sequence length matters: the ranges of Llama's activations grow with the position, so calibration
should use the length of the task (SLAC; Lee et al., EMNLP 2023). `activation_ranges` shows it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .errors import InputError
from .files import Progress
from .text import Text, load_calibration_text

if TYPE_CHECKING:
    import torch

    from .models import LanguageModel

#: What a pass can gather beside ranges.
Need = Literal["gram", "sample"]
#: Tokens that go through a block together.
BATCH_TOKENS = 4096


class Calibration(BaseModel):
    """Which tokens to calibrate on; checked and immutable.

    `length` is the number of tokens of a sequence; SLAC sets it to the length of the task.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequences: int = Field(default=128, ge=1)
    length: int = Field(default=512, ge=2)
    seed: int = Field(default=0, ge=0)  #: chooses the sequences and the sampled rows
    sample_tokens: int = Field(default=512, ge=1)  #: rows kept where an algorithm needs real rows

    @property
    def tokens(self) -> int:
        """All of them: sequences x length."""
        return self.sequences * self.length


def calibration_tokens(
    model: "LanguageModel", calibration: Calibration, text: Text | str | None = None
) -> "torch.Tensor":
    """Sequences of a text, int64 [sequences, length].

    The text is cut into non-overlapping sequences from its start; a seeded draw without
    replacement chooses which are used, in the order of the text.

    Args:
        model: Its tokenizer, vocabulary and context count.
        calibration: How many and how long.
        text: None for the default calibration text, which the default evaluation text is not in.

    Raises:
        InputError: The text is too short (says how many tokens are missing), or the length exceeds
            the model's context.
    """
    import torch

    text = load_calibration_text() if text is None else text
    name, content = (text.name, text.content) if isinstance(text, Text) else ("text", text)
    if calibration.length > model.config.context:
        raise InputError(
            f"calibration length {calibration.length} exceeds the context of model {model.name}, "
            f"which is {model.config.context}; use shorter sequences"
        )
    ids = model.tokenizer.encode(content)
    if len(ids) < calibration.tokens:
        raise InputError(
            f"calibration text {name} has {len(ids):,} tokens; {calibration.sequences} x "
            f"{calibration.length} = {calibration.tokens:,} are needed, "
            f"{calibration.tokens - len(ids):,} are missing; use a longer text, fewer sequences or "
            "a shorter length"
        )
    count = len(ids) // calibration.length
    rng = np.random.default_rng(calibration.seed)
    chosen = np.sort(rng.choice(count, calibration.sequences, replace=False))
    windows = torch.tensor(ids[: count * calibration.length], dtype=torch.int64)
    return windows.view(count, calibration.length)[torch.from_numpy(chosen)]


@dataclass
class SiteStats:
    """What was seen of the inputs of one site; `k` channels.

    The arrays follow the equivalent transformations of a block: see `rescale`.
    """

    tokens: int
    absmax: np.ndarray  #: float32 [k]: largest magnitude per channel
    mean_abs: np.ndarray  #: float32 [k]: mean magnitude per channel
    low: np.ndarray  #: float32 [k]: smallest value per channel
    high: np.ndarray  #: float32 [k]: largest value per channel
    gram: np.ndarray | None = None  #: float32 [k, k]: sum of x x^T over all tokens
    sample: np.ndarray | None = None  #: float32 [rows, k]: rows of randomly chosen tokens

    def rescale(self, divisors: np.ndarray) -> None:
        """The same inputs with channel j divided by divisors[j] > 0."""
        d = divisors.astype(np.float32)
        for name in ("absmax", "mean_abs", "low", "high"):
            setattr(self, name, getattr(self, name) / d)
        if self.gram is not None:
            self.gram = self.gram / np.outer(d, d)
        if self.sample is not None:
            self.sample = self.sample / d

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest value of all channels, zero included."""
        return min(0.0, float(self.low.min())), max(0.0, float(self.high.max()))

    @property
    def hessian(self) -> np.ndarray:
        """2 / tokens * gram, float32 [k, k]."""
        assert self.gram is not None
        return self.gram * np.float32(2 / self.tokens)

    @property
    def dead(self) -> np.ndarray:
        """Channels that were zero in every token: bool [k]."""
        return self.absmax == 0

    @property
    def constant(self) -> np.ndarray:
        """Channels that had one value, not zero, in every token: bool [k]."""
        return (self.low == self.high) & (self.absmax > 0)


class SiteCollector:
    """Gathers `SiteStats` batch by batch.

    Args:
        k: Channels.
        needs: What to gather beside ranges.
        rows: Numbers of the tokens to sample, ascending.
    """

    def __init__(self, k: int, needs: Collection[Need], rows: np.ndarray | None = None) -> None:
        import torch

        self._tokens = 0
        self._sum = torch.zeros(k, dtype=torch.float64)
        self._low = torch.full((k,), np.inf)
        self._high = torch.full((k,), -np.inf)
        self._gram = torch.zeros(k, k, dtype=torch.float64) if "gram" in needs else None
        self._rows = rows if "sample" in needs else None
        self._sampled: list[Any] = []

    def add(self, x: "torch.Tensor") -> None:
        """Count inputs [..., k]."""
        import torch

        from .calibration_numba import add_ranges

        x = x.reshape(-1, x.shape[-1]).detach()
        add_ranges(x.contiguous().numpy(), self._low.numpy(), self._high.numpy(), self._sum.numpy())
        if self._gram is not None:
            _add_gram(self._gram, x)
        if self._rows is not None:
            here = (self._rows >= self._tokens) & (self._rows < self._tokens + len(x))
            self._sampled.append(x[torch.from_numpy(self._rows[here] - self._tokens)].clone())
        self._tokens += len(x)

    def stats(self) -> SiteStats:
        """What was gathered.

        Raises:
            InputError: An input was NaN or infinite.
        """
        import torch

        if not bool(torch.isfinite(self._sum).all()):
            channel = int(torch.nonzero(~torch.isfinite(self._sum))[0])
            raise InputError(
                f"inputs of channel {channel} are NaN or infinite during calibration; check the "
                "model's weights and the text"
            )
        low, high = self._low.numpy(), self._high.numpy()
        return SiteStats(
            tokens=self._tokens,
            absmax=np.maximum(np.abs(low), np.abs(high)),
            mean_abs=(self._sum / max(1, self._tokens)).float().numpy(),
            low=low,
            high=high,
            gram=None if self._gram is None else _mirrored(self._gram).float().numpy(),
            sample=torch.cat(self._sampled).numpy() if self._rows is not None else None,
        )


def _add_gram(gram: "torch.Tensor", x: "torch.Tensor", rows: int = 384) -> None:
    """gram += x^T x on and above the diagonal; what lies below is not right (see `_mirrored`)."""
    for i in range(0, x.shape[1], rows):
        gram[i : i + rows, i:] += x[:, i : i + rows].T @ x[:, i:]


def _mirrored(gram: "torch.Tensor") -> "torch.Tensor":
    """The symmetric matrix of an upper triangle."""
    upper = gram.triu()
    return upper + upper.triu(1).T


def sample_rows(calibration: Calibration) -> np.ndarray:
    """Numbers of the sampled tokens, ascending; all of them if there are fewer than wanted."""
    total = calibration.tokens
    if total <= calibration.sample_tokens:
        return np.arange(total)
    rng = np.random.default_rng([calibration.seed, 1])
    return np.sort(rng.choice(total, calibration.sample_tokens, replace=False))


@dataclass(frozen=True, slots=True)
class RangeRow:
    """Activation ranges of one site at one sequence length."""

    length: int
    layer: int
    site: str
    absmax: float  #: largest magnitude of any channel
    mean_token_absmax: float  #: mean over tokens of the token's largest magnitude


def activation_ranges(
    model: "LanguageModel",
    lengths: Sequence[int],
    tokens: int = 8192,
    text: Text | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[RangeRow]:
    """Ranges of every site's inputs against the sequence length: the report behind SLAC.

    Every length reads about the same number of tokens.

    Args:
        model: The model.
        lengths: Tokens of a sequence, ascending or not.
        tokens: To read per length; rounded down to whole sequences, at least one.
        text: As in `calibration_tokens`.
        seed: Chooses the sequences.
        progress: Called after each block.

    Raises:
        InputError: As `calibration_tokens`.
    """
    import torch

    from .models import SITE_OF

    rows: list[RangeRow] = []
    for number, length in enumerate(lengths):
        calibration = Calibration(sequences=max(1, tokens // length), length=length, seed=seed)
        ids = calibration_tokens(model, calibration, text)
        largest: dict[tuple[int, str], list[torch.Tensor]] = {}

        def observe(name: str, x: torch.Tensor, w: torch.Tensor) -> None:
            _, layer, local = name.split(".", 2)
            site = SITE_OF.get(local)
            if site is not None and local in ("attn.q", "attn.o", "ffn.gate", "ffn.down"):
                key = int(layer), site
                largest.setdefault(key, []).append(x.abs().amax(1))  # noqa: B023

        batch = max(1, BATCH_TOKENS // length)
        rotary = model.rotary(length)
        with torch.no_grad():
            x = model.embed(ids)
            for layer in range(model.config.layers):
                for start in range(0, len(x), batch):
                    part = slice(start, start + batch)
                    x[part] = _observed_block(model, layer, x[part], rotary, observe)
                if progress:
                    done = number * model.config.layers + layer + 1
                    progress(done, len(lengths) * model.config.layers, f"length {length}")
        for (layer, site), parts in largest.items():
            each = torch.cat(parts)
            rows.append(RangeRow(length, layer, site, each.max().item(), each.mean().item()))
    return rows


def _observed_block(
    model: "LanguageModel", layer: int, x: "torch.Tensor", rotary: Any, observe: Any
) -> "torch.Tensor":
    """A block whose linears alone are observed: attention's products cost too much."""

    def linear(name: str, y: "torch.Tensor") -> "torch.Tensor":
        weight = model.weight(name)
        observe(name, y.flatten(0, -2), weight)
        return y @ weight.T

    return model.block(layer, x, rotary, linear)
