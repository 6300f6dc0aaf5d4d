"""How well a model reads a text: its perplexity, and its agreement with the model it came from.

Both read token by token over non-overlapping windows. Perplexity alone hides damage: errors that
help one token and hurt another cancel out in it, and they do not in the divergence and flips that
`agreement` reports (Jaiswal et al., LLM-KICK, arXiv 2310.01382, show how much goes unseen).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .errors import InputError
from .files import Progress
from .models import Cache, LanguageModel, Linear, norm
from .text import Text, load_text

# Windows go through the blocks together up to this many tokens, and through the output layer one
# by one: the logits of one window of 512 with a vocabulary of 49,152 already take 96 MiB.
_BATCH_TOKENS = 2048
# Positions whose logits are in float64 at a time: 24 MiB per copy with that vocabulary.
_POSITIONS = 64
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class PerplexityResult:
    """A perplexity and what it was measured on."""

    perplexity: float  #: exp(nll)
    nll: float  #: mean negative log-likelihood of the predicted tokens, in nats
    tokens: int  #: tokens read, whole windows only
    predicted_tokens: int  #: all of them but the first of each window
    window: int  #: context length in tokens
    text_name: str
    bos: bool = False  #: whether windows begin with a begin-of-text token; they never do


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a model's predictions are from its reference's, and what that was measured on."""

    kl: float  #: mean over predicted tokens of KL(reference || model), in nats; never negative
    top1: float  #: fraction of predicted tokens where both rank the same token first; 1 - flips
    reference_perplexity: float  #: as `perplexity` gives it
    perplexity: float  #: as `perplexity` gives it
    perplexity_ratio: float  #: perplexity / reference_perplexity: exp of the difference in nll
    #: 95 % of bootstrap resamples of the windows have a perplexity ratio between these two; both
    #: NaN with a single window.
    ratio_interval: tuple[float, float]
    #: Squared error of the residual stream behind each block over all tokens, relative to the
    #: reference's sum of squares there; empty where the two streams cannot be compared.
    block_errors: tuple[float, ...]
    tokens: int  #: tokens read, whole windows only
    predicted_tokens: int  #: all of them but the first of each window
    window: int  #: context length in tokens
    text_name: str
    bos: bool = False  #: whether windows begin with a begin-of-text token; they never do


def perplexity(
    model: LanguageModel,
    text: Text | str | None = None,
    tokens: Sequence[int] | None = None,
    window: int = 512,
    max_tokens: int | None = 4096,
    linear: Linear | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> PerplexityResult:
    """The model's perplexity on a text.

    The text is cut into non-overlapping windows without begin tokens; an incomplete last window is
    left out. In each window every token but the first is predicted from those before it.
    Log-likelihoods are float32 and their sum float64.

    Args:
        model: The model.
        text: What to read; None for the default text of `load_text`.
        tokens: Token ids to read instead of a text.
        window: Context length in tokens.
        max_tokens: Tokens to read at most; None reads all.
        linear: Computes the block linears, as in `LanguageModel.logits`.
        cache: Stands for the key-value cache, as in `LanguageModel.logits`.
        progress: Called per batch of windows with the tokens done.

    Raises:
        InputError: Text shorter than one window, window too long for the model or under 2 tokens,
            or token ids outside the vocabulary.
    """
    ids, name = _windows("perplexity", model, text, tokens, window, max_tokens)
    losses: list[float] = []
    with torch.no_grad():
        for rows in _batches(ids, progress, "perplexity"):
            for row, hidden in zip(rows, model.hidden(rows, linear, cache=cache), strict=True):
                losses.append(_loss(model.head(hidden[:-1]), row))
    predicted = len(ids) * (window - 1)
    nll = sum(losses) / predicted
    return PerplexityResult(
        perplexity=_exp(nll),
        nll=nll,
        tokens=ids.numel(),
        predicted_tokens=predicted,
        window=window,
        text_name=name,
    )


def agreement(
    reference: LanguageModel,
    model: LanguageModel,
    *,
    linear: Linear | None = None,
    cache: Cache | None = None,
    text: Text | str | None = None,
    tokens: Sequence[int] | None = None,
    window: int = 512,
    max_tokens: int | None = 4096,
    progress: Progress | None = None,
) -> Agreement:
    """How closely a model, quantised for instance, follows the model it was made from.

    Windows are those of `perplexity`. Both models go through them block by block, so that each
    reads the weights of a block once per batch of windows, and the logits of one window of either
    are in memory. Divergences are float64, computed from the float32 logits.

    Block errors compare the residual streams number by number. A rotated model computes the same
    function in another basis, which says nothing about its error, so `block_errors` is empty
    where the embeddings differ; everything else here holds in any basis.

    Args:
        reference: The model to agree with, as it is.
        model: The model to judge; `QuantizedModel.model` for a quantised one.
        linear: Computes the block linears of `model`; `QuantizedModel.linear()`.
        cache: Stands for the key-value cache of `model`; `QuantizedModel.cache()`.
        text: What to read; None for the default text of `load_text`. The reference's tokenizer
            cuts it.
        tokens: Token ids to read instead of a text.
        window: Context length in tokens.
        max_tokens: Tokens to read at most; None reads all.
        progress: Called per batch of windows with the tokens done.

    Raises:
        InputError: Models with different vocabularies or numbers of blocks, or as `perplexity`.
    """
    _check_comparable(reference, model)
    ids, name = _windows("agreement", reference, text, tokens, window, max_tokens)
    same_basis = torch.equal(reference.weight("embed"), model.weight("embed"))
    error, power = torch.zeros(2, reference.config.layers, dtype=torch.float64)
    kl, agreed = 0.0, 0
    reference_losses: list[float] = []
    losses: list[float] = []
    with torch.no_grad():
        for rows in _batches(ids, progress, "agreement"):
            x, y = reference.embed(rows), model.embed(rows)
            rotary_x = reference.rotary(window, x.dtype)
            rotary_y = model.rotary(window, y.dtype)
            for layer in range(reference.config.layers):
                x = reference.block(layer, x, rotary_x)
                y = model.block(layer, y, rotary_y, linear, cache=cache)
                if same_basis:
                    error[layer] += (y - x).to(torch.float64).square().sum()
                    power[layer] += x.to(torch.float64).square().sum()
            x, y = _last_norm(reference, x), _last_norm(model, y)
            for row, expected, got in zip(rows, x, y, strict=True):
                reference_logits, logits = reference.head(expected[:-1]), model.head(got[:-1])
                reference_losses.append(_loss(reference_logits, row))
                losses.append(_loss(logits, row))
                divergence, same = kl_and_top1(reference_logits, logits)
                kl += divergence.sum().item()
                agreed += int(same.sum())
    predicted = len(ids) * (window - 1)
    reference_nll, nll = sum(reference_losses) / predicted, sum(losses) / predicted
    per_window = (np.array(losses) - np.array(reference_losses)) / (window - 1)
    return Agreement(
        kl=kl / predicted,
        top1=agreed / predicted,
        reference_perplexity=_exp(reference_nll),
        perplexity=_exp(nll),
        perplexity_ratio=_exp(nll - reference_nll),
        ratio_interval=_ratio_interval(per_window),
        block_errors=tuple((error / power).tolist()) if same_basis else (),
        tokens=ids.numel(),
        predicted_tokens=predicted,
        window=window,
        text_name=name,
    )


def kl_and_top1(
    reference_logits: torch.Tensor, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divergence in nats and whether the first ranks are equal, per position.

    Args:
        reference_logits: [positions, vocab], finite.
        logits: Likewise.

    Returns:
        KL(reference || model), float64 [positions], and bool [positions]. Of equal logits the one
        with the lowest token id ranks first.

    >>> logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])  # 1/4, 3/4 and 3/4, 1/4
    >>> kl, same = kl_and_top1(logits, logits[[0, 0]])
    >>> [round(value, 4) for value in kl.tolist()], same.tolist()  # log(3) / 2 = 0.5493
    ([0.0, 0.5493], [True, False])
    """
    parts = zip(reference_logits.split(_POSITIONS), logits.split(_POSITIONS), strict=True)
    return torch.cat([_divergence(p, q) for p, q in parts]), (
        reference_logits.argmax(-1) == logits.argmax(-1)
    )


def _divergence(reference_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    log_p = reference_logits.to(torch.float64).log_softmax(-1)
    log_q = logits.to(torch.float64).log_softmax(-1)
    # Rounding can leave nearly equal distributions a little below zero.
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def _check_comparable(reference: LanguageModel, model: LanguageModel) -> None:
    for what, of in (
        ("tokens in the vocabulary", lambda m: m.config.vocab),
        ("blocks", lambda m: m.config.layers),
    ):
        if of(reference) != of(model):
            raise InputError(
                f"model {model.name} has {of(model)} {what}, its reference {reference.name} "
                f"{of(reference)}; agreement needs a model and what was made from it"
            )


def _windows(
    asked_by: str,
    model: LanguageModel,
    text: Text | str | None,
    tokens: Sequence[int] | None,
    window: int,
    max_tokens: int | None,
) -> tuple[torch.Tensor, str]:
    """Token ids [windows, window] and the name of the text; see `perplexity`."""
    if text is not None and tokens is not None:
        raise InputError(f"give {asked_by} a text or tokens, not both")
    if not 2 <= window <= model.config.context:
        raise InputError(
            f"window {window} must be from 2 to {model.config.context}, "
            f"the context of model {model.name}"
        )
    if tokens is None:
        text = load_text() if text is None else text
        name, content = (text.name, text.content) if isinstance(text, Text) else ("text", text)
        if not content.strip():
            raise InputError(f"{name} is empty; it must hold at least one window of tokens")
        tokens = model.tokenizer.encode(content)
    else:
        name = "tokens given"
    if max_tokens is not None and max_tokens < window:
        raise InputError(
            f"{max_tokens} tokens are less than one window of {window}; "
            "ask for more tokens or a shorter window"
        )
    if len(tokens) < window:
        raise InputError(
            f"{name} has {len(tokens)} tokens, less than one window of {window}; "
            "use a longer text or a shorter window"
        )
    count = len(tokens[:max_tokens]) // window
    ids = torch.tensor(tokens[: count * window], dtype=torch.int64).view(count, window)
    if not 0 <= int(ids.min()) <= int(ids.max()) < model.config.vocab:
        raise InputError(
            f"token ids from {int(ids.min())} to {int(ids.max())} must lie in "
            f"[0, {model.config.vocab}), the vocabulary of model {model.name}"
        )
    return ids, name


def _batches(ids: torch.Tensor, progress: Progress | None, what: str) -> Iterator[torch.Tensor]:
    """Some windows at a time; tells `progress` when the caller comes back for more."""
    done = 0
    for rows in ids.split(max(1, _BATCH_TOKENS // ids.shape[1])):
        yield rows
        done += rows.numel()
        if progress:
            progress(done, ids.numel(), what)


def _loss(logits: torch.Tensor, row: torch.Tensor) -> float:
    """Negative log-likelihood in nats, summed over a window's tokens but the first."""
    losses = F.cross_entropy(logits, row[1:], reduction="none")
    return losses.to(torch.float64).sum().item()


def _last_norm(model: LanguageModel, x: torch.Tensor) -> torch.Tensor:
    return norm(model.config, model.weight("final_norm"), x)


def _exp(nll: float) -> float:
    return math.inf if nll > 700 else math.exp(nll)


def _ratio_interval(nll_differences: np.ndarray) -> tuple[float, float]:
    """Bootstrap interval of the perplexity ratio from one mean difference per window.

    Windows are drawn with replacement 1000 times (seed 0), as tokens within one are not
    independent. It tells how much hangs on which windows were read, and is too narrow for a few.
    """
    count = len(nll_differences)
    if count < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    low, high = np.quantile(nll_differences[drawn].mean(axis=1), (0.025, 0.975))
    return _exp(low), _exp(high)
