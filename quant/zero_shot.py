"""Zero-shot tasks: log-likelihoods and greedy text of a model, and EleutherAI's harness over them.

The LM Evaluation Harness (https://github.com/EleutherAI/lm-evaluation-harness) brings the tasks and
metrics and is an extra, `pip install 'bitwright[zero-shot]'`; `loglikelihood`,
`rolling_loglikelihood` and `generate` work without it.

No begin token is put before a text. The first token of a text without context is therefore
predicted from nothing, and is not counted. Other models of the harness predict it from a begin or
end token: metrics that read texts without context (word and byte perplexity, mutual information)
differ from theirs by that one token per text, the others do not.
"""

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from .errors import InputError
from .files import Progress
from .models import Cache, LanguageModel, Linear, Tokenizer

# Positions whose logits are in memory at a time.
_POSITIONS = 512
#: Tokens to generate where a task does not say, as in the harness.
_MAX_TOKENS = 256
# For standard errors of metrics that are no means; the harness's 100,000 can outlast the model.
_RESAMPLES = 1000
#: The names that tasks use for it.
_MAX_TOKENS_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def loglikelihood(
    model: LanguageModel,
    context: str,
    continuation: str,
    linear: Linear | None = None,
    cache: Cache | None = None,
    *,
    window: int | None = None,
) -> tuple[float, bool]:
    """How likely a text goes on in a certain way.

    Args:
        model: The model.
        context: The text so far, of which the last tokens are read if it is too long. If it is
            empty, the first token of the continuation is not counted.
        continuation: What should follow; see `split_tokens` for where its tokens begin.
        linear: Computes the block linears, as in `LanguageModel.logits`.
        cache: Stands for the key-value cache, as in `LanguageModel.logits`.
        window: Tokens that the model reads at most; None for its context.

    Returns:
        The log-likelihood of the continuation in nats, summed over its tokens, and whether it is
        the greedy one: each of its tokens the most likely at its place.

    Raises:
        InputError: An empty continuation, or one longer than the window; a window longer than the
            model's context.
    """
    limit = _limit(model, window)
    before, scored = split_tokens(model.tokenizer, context, continuation)
    if not scored:
        raise InputError("the continuation is empty; its log-likelihood needs at least one token")
    count = len(scored) if before else len(scored) - 1
    if count > limit:
        raise InputError(
            f"a continuation of {len(scored)} tokens does not fit a window of {limit} tokens; "
            f"model {model.name} can read {model.config.context}"
        )
    return _score(model, (before + scored)[-(limit + 1) :], count, linear, cache)


def split_tokens(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """The tokens of a context and those of what follows it, divided as the harness does.

    Spaces at the end of the context go to the continuation, for most tokenizers put a space and the
    word behind it into one token. Both texts are encoded together, and the continuation has what
    stands behind as many tokens as the context alone. That is inexact where a token spans the two;
    if it leaves nothing, they are encoded apart.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    before = tokenizer.encode(context)
    return before, tokenizer.encode(context + continuation)[len(before) :] or tokenizer.encode(
        continuation
    )


def rolling_loglikelihood(
    model: LanguageModel,
    text: str,
    window: int | None = None,
    linear: Linear | None = None,
    cache: Cache | None = None,
) -> float:
    """The log-likelihood of a whole text in nats, but for its first token.

    A text longer than the window is read in steps of that many tokens, each step with its last
    token before them as context. The last step reads a full window, however few tokens are left to
    predict in it. So each token but the first counts once.

    Args:
        model: The model.
        text: The text; 0 is returned if it has fewer than two tokens.
        window: Tokens that the model reads at most; None for its context.
        linear: Computes the block linears, as in `LanguageModel.logits`.
        cache: Stands for the key-value cache, as in `LanguageModel.logits`.

    Raises:
        InputError: A window longer than the model's context.
    """
    limit = _limit(model, window)
    ids = model.tokenizer.encode(text)
    total, done = 0.0, 1
    while done < len(ids):
        end = min(done + limit, len(ids))
        total += _score(model, ids[max(0, end - limit - 1) : end], end - done, linear, cache)[0]
        done = end
    return total


def generate(
    model: LanguageModel,
    prompt: str,
    max_tokens: int = _MAX_TOKENS,
    stop: Sequence[str] = (),
    linear: Linear | None = None,
    cache: Cache | None = None,
    *,
    window: int | None = None,
) -> str:
    """What the model writes behind a prompt when it always takes the most likely token.

    Every token takes a pass over the whole text so far, for `LanguageModel` keeps no keys and
    values between passes.

    Args:
        model: The model.
        prompt: Of which the last tokens are read if it and `max_tokens` more are too long.
        max_tokens: Tokens to write at most.
        stop: Writing ends where the first of these appears, which is not returned. A model's end
            token is only heeded if its text is among them.
        linear: Computes the block linears, as in `LanguageModel.logits`.
        cache: Stands for the key-value cache, as in `LanguageModel.logits`.
        window: Tokens that the model reads at most; None for its context.

    Raises:
        InputError: An empty prompt, `max_tokens` longer than the window or under 1, or a window
            longer than the model's context.
    """
    limit = _limit(model, window)
    if not 1 <= max_tokens <= limit:
        raise InputError(
            f"max_tokens {max_tokens} must be from 1 to {limit}, "
            f"the window that model {model.name} reads here"
        )
    # The last token written is never read.
    ids = model.tokenizer.encode(prompt)[-(limit + 1 - max_tokens) :]
    if not ids:
        raise InputError(
            "the prompt is empty; generation needs a token to go on from, "
            "and no begin token is added"
        )
    # Decoding new tokens alone would lose a space that some tokenizers put into them.
    start = len(model.tokenizer.decode(ids))
    text = ""
    with torch.no_grad():
        for _ in range(max_tokens):
            hidden = model.hidden(torch.tensor([ids]), linear, cache=cache)[0, -1]
            ids.append(int(model.head(hidden).argmax()))
            text = model.tokenizer.decode(ids)[start:]
            found = [text.index(end) for end in stop if end and end in text]
            if found:
                return text[: min(found)]
    return text


def zero_shot_scores(
    model: LanguageModel,
    tasks: Sequence[str],
    *,
    linear: Linear | None = None,
    cache: Cache | None = None,
    shots: int | None = 0,
    limit: int | None = None,
    window: int | None = None,
    stop: Sequence[str] = (),
    task_folder: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """The model's scores on tasks of the LM Evaluation Harness.

    The harness fetches the data of a task when it is first used.

    Args:
        model: The model; `QuantizedModel.model` for a quantised one.
        tasks: Names of tasks or groups, "piqa"; wildcards as in "arc_*" are allowed.
        linear: Computes the block linears; `QuantizedModel.linear()`.
        cache: Stands for the key-value cache; `QuantizedModel.cache()`.
        shots: Solved examples before each question; None leaves it to the task.
        limit: Questions per task, the first ones; None for all.
        window: Tokens that the model reads at most; None for its context.
        stop: As in `lm_eval_model`.
        task_folder: Where to look for further tasks, files `*.yaml` as the harness defines them.
        progress: Called per request of a task.

    Returns:
        Task or group -> metric -> value: {"piqa": {"acc": 0.68, "acc_stderr": 0.01, ...}}. Metrics
        behind another filter than "none" keep it in their name: "exact_match,strict-match".

    Raises:
        InputError: The harness is not installed, a task is unknown or wants sampling, or its data
            cannot be had.
    """
    adapter = lm_eval_model(model, linear, cache, window=window, stop=stop, progress=progress)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    if task_folder is not None and not Path(task_folder).is_dir():
        raise InputError(f"task folder {task_folder} is missing; name one that holds *.yaml files")
    manager = TaskManager(include_path=None if task_folder is None else str(task_folder))
    names = _matching(manager, tasks)
    try:
        with redirect_stdout(sys.stderr):  # the harness prints how far it is
            found = simple_evaluate(
                model=adapter,
                tasks=names,
                num_fewshot=shots,
                limit=limit,
                bootstrap_iters=_RESAMPLES,
                log_samples=False,
                task_manager=manager,
            )
    except OSError as error:  # what its data sets raise, offline or otherwise out of reach
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"data of zero-shot tasks {', '.join(names)} cannot be had ({reason}); "
            "go online, or name tasks whose data is here"
        ) from None
    return {task: _metrics(values) for task, values in found["results"].items()}


def lm_eval_model(
    model: LanguageModel,
    linear: Linear | None = None,
    cache: Cache | None = None,
    *,
    window: int | None = None,
    stop: Sequence[str] = (),
    progress: Progress | None = None,
) -> Any:
    """The model as an `lm_eval.api.model.LM`, to be given to the harness.

    It answers one request after the other. Chat templates are not supported.

    Args:
        model: The model.
        linear: Computes the block linears, as in `LanguageModel.logits`.
        cache: Stands for the key-value cache, as in `LanguageModel.logits`.
        window: Tokens that the model reads at most; None for its context.
        stop: Ends generated text, besides what a task asks for: "<|endoftext|>", say.
        progress: Called per request.

    Raises:
        InputError: The harness is not installed, or the window is longer than the model's context.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise InputError(
            "zero-shot tasks need the lm-eval package; pip install 'bitwright[zero-shot]'"
        ) from None
    limit = _limit(model, window)

    def answered(requests: Sequence[Any], what: str, answer: Callable[..., Any]) -> list[Any]:
        answers = []
        for request in requests:
            answers.append(answer(*request.args))
            if progress:
                progress(len(answers), len(requests), what)
        return answers

    class LmEvalModel(LM):
        """What the harness asks a model for."""

        def loglikelihood(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            def answer(context: str, continuation: str) -> tuple[float, bool]:
                return loglikelihood(model, context, continuation, linear, cache, window=limit)

            return answered(requests, "log-likelihoods", answer)

        def loglikelihood_rolling(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[float]:
            def answer(text: str) -> float:
                return rolling_loglikelihood(model, text, limit, linear, cache)

            return answered(requests, "log-likelihoods of texts", answer)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            def answer(prompt: str, options: Mapping[str, Any]) -> str:
                max_tokens, ends = _greedy_options(options)
                ends = [*ends, *stop]
                return generate(model, prompt, max_tokens, ends, linear, cache, window=limit)

            return answered(requests, "generation", answer)

    return LmEvalModel()


def _greedy_options(options: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Tokens to write at most and stop strings of a task's generation arguments."""
    sampled = options.get("do_sample")
    if sampled or (sampled is None and options.get("temperature")):
        raise InputError("a task asks for sampled text; only greedy generation is supported")
    ends = options.get("until") or []
    given = (options[key] for key in _MAX_TOKENS_KEYS if options.get(key) is not None)
    return int(next(given, _MAX_TOKENS)), [ends] if isinstance(ends, str) else list(ends)


def _matching(manager: Any, tasks: Sequence[str]) -> list[str]:
    """The harness's names for the tasks asked for."""
    names: dict[str, None] = {}
    for task in tasks:
        matches = manager.match_tasks([task])
        if not matches:
            near = difflib.get_close_matches(task, manager.all_tasks, n=1)
            hint = f"did you mean {near[0]}?" if near else "see lm-eval ls tasks"
            raise InputError(f"unknown zero-shot task {task!r}; {hint}")
        names |= dict.fromkeys(matches)
    if not names:
        raise InputError("no zero-shot task given; name at least one, such as piqa")
    return list(names)


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among a task's results; "acc,none" becomes "acc"."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in values.items()
        if "," in name and isinstance(value, int | float)
    }


def _score(
    model: LanguageModel,
    ids: list[int],
    count: int,
    linear: Linear | None,
    cache: Cache | None,
) -> tuple[float, bool]:
    """Log-likelihood of the last `count` tokens given those before, and whether all rank first.

    Log-likelihoods are float32 and their sum float64.
    """
    total, greedy = 0.0, True
    if count == 0:
        return total, greedy
    row = torch.tensor(ids)
    with torch.no_grad():
        hidden = model.hidden(row[None, :-1], linear, cache=cache)[0, -count:]
        parts = zip(hidden.split(_POSITIONS), row[-count:].split(_POSITIONS), strict=True)
        for states, expected in parts:
            logits = model.head(states)
            losses = F.cross_entropy(logits, expected, reduction="none")
            total -= losses.to(torch.float64).sum().item()
            greedy = greedy and bool((logits.argmax(-1) == expected).all())
    return total, greedy


def _limit(model: LanguageModel, window: int | None) -> int:
    """Tokens that the model reads at most."""
    context = model.config.context
    if window is None:
        return context
    if not 1 <= window <= context:
        raise InputError(
            f"window {window} must be from 1 to {context}, the context of model {model.name}"
        )
    return window
