"""Token-level perplexity over non-overlapping windows of a text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .errors import InputError
from .files import Progress
from .models import LanguageModel, Linear
from .text import Text, load_text

# Windows go through the blocks together up to this many tokens, and through the output layer one
# by one: the logits of one window of 512 with a vocabulary of 49,152 already take 96 MiB.
_BATCH_TOKENS = 2048


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


def perplexity(
    model: LanguageModel,
    text: Text | str | None = None,
    tokens: Sequence[int] | None = None,
    window: int = 512,
    max_tokens: int | None = 4096,
    linear: Linear | None = None,
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
        progress: Called per batch of windows with the tokens done.

    Raises:
        InputError: Text shorter than one window, window too long for the model or under 2 tokens,
            or token ids outside the vocabulary.
    """
    if text is not None and tokens is not None:
        raise InputError("give perplexity a text or tokens, not both")
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
    batch = max(1, _BATCH_TOKENS // window)
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for start in range(0, count, batch):
            rows = ids[start : start + batch]
            for row, hidden in zip(rows, model.hidden(rows, linear), strict=True):
                losses = F.cross_entropy(model.head(hidden[:-1]), row[1:], reduction="none")
                total += losses.to(torch.float64).sum()
            if progress:
                done = min(count, start + batch) * window
                progress(done, count * window, "perplexity")
    predicted = count * (window - 1)
    nll = total.item() / predicted
    return PerplexityResult(
        perplexity=math.inf if nll > 700 else math.exp(nll),
        nll=nll,
        tokens=count * window,
        predicted_tokens=predicted,
        window=window,
        text_name=name,
    )
