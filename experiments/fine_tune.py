"""Fine-tune a model for a short time: `python -m bitwright.experiments.fine_tune`.

What `compress_delta` compresses is the difference of a fine-tuned model from its base; this makes
one where none can be downloaded. AdamW trains the blocks' matrices, norms and biases on windows of
a text that a seed draws; embedding and output layer stay as they are. The default text is what
every Python ships: the docstrings of the standard library. Every tenth piece of the text is held
out, and `python -m bitwright.experiments.tenants` measures on it.

The same settings on the same machine, Python and torch give the same file. Some dozens of steps are
no fine-tuning that anybody would serve: differences are small, and say how the methods compare on
small differences.
"""

import argparse
import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F

from bitwright.output import progress_bar
from bitwright.quant import (
    InputError,
    LanguageModel,
    Progress,
    Text,
    load_model,
    load_text,
    output_folder,
    save_folder,
    torch_threads,
)

_PIECE = 2000  #: characters; every tenth piece is held out


@dataclass(frozen=True, slots=True)
class FineTuning:
    """How a model is fine-tuned."""

    steps: int = 40
    batch: int = 2  #: windows per step
    length: int = 256  #: tokens of a window
    warmup: int = 4  #: steps of rising rate, before it falls to zero along a cosine
    rate: float = 1e-4  #: peak learning rate of AdamW
    weight_decay: float = 0.0
    seed: int = 0
    threads: int = 1  #: the order of float additions, and so the result, depends on it

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if self.length < 2:
            raise InputError(f"length is {self.length}; at least 2 tokens are needed")
        if not 0 < self.rate < math.inf:
            raise InputError(f"rate is {self.rate}; a positive number is needed")


def default_text() -> Text:
    """Docstrings of the standard library, without lines of the default perplexity text."""
    import platform

    from .train_tiny import training_text

    name = f"docstrings of the standard library of Python {platform.python_version()}"
    return Text(name, training_text()[1])


def split(text: Text) -> tuple[Text, Text]:
    """What is trained on, and what is held out: every tenth piece of 2,000 characters.

    Raises:
        InputError: The text is too short to hold anything out.
    """
    content = text.content
    pieces = [content[i : i + _PIECE] for i in range(0, len(content), _PIECE)]
    held = "".join(piece for i, piece in enumerate(pieces) if i % 10 == 9)
    if not held:
        raise InputError(
            f"text {text.name} has {len(content):,} characters; {9 * _PIECE + 1:,} are needed, for "
            "a tenth is held out"
        )
    rest = "".join(piece for i, piece in enumerate(pieces) if i % 10 != 9)
    return Text(f"{text.name}, nine tenths", rest), Text(f"{text.name}, held-out tenth", held)


def fine_tune(
    model: LanguageModel, text: Text, settings: FineTuning, progress: Progress | None = None
) -> LanguageModel:
    """The model after some steps on a text.

    Args:
        model: Stays as it is.
        text: All of it is trained on; see `split`.
        settings: How long and how fast.
        progress: Called per step.

    Raises:
        InputError: A window beyond the model's context, a text shorter than one, or a loss that
            became NaN.
    """
    with torch_threads(settings.threads):
        return _fine_tune(model, text, settings, progress)


def _fine_tune(
    model: LanguageModel, text: Text, settings: FineTuning, progress: Progress | None
) -> LanguageModel:
    if settings.length > model.config.context:
        raise InputError(
            f"length {settings.length} exceeds the context of model {model.name}, which is "
            f"{model.config.context}; use shorter windows"
        )
    ids = torch.tensor(model.tokenizer.encode(text.content), dtype=torch.int64)
    if len(ids) <= settings.length + 1:
        raise InputError(
            f"text {text.name} has {len(ids):,} tokens; more than {settings.length + 1} are needed"
        )
    weights = {
        name: model.weight(name).detach().clone().requires_grad_(True)
        for name in model.config.weight_shapes()
        if name not in ("embed", "head")
    }
    tuned = model.with_weights(weights)
    optimizer = torch.optim.AdamW(
        weights.values(), lr=settings.rate, weight_decay=settings.weight_decay, betas=(0.9, 0.95)
    )
    generator = torch.Generator().manual_seed(settings.seed)
    offsets = torch.arange(settings.length + 1)
    for step in range(settings.steps):
        start = torch.randint(len(ids) - len(offsets), (settings.batch, 1), generator=generator)
        windows = ids[start + offsets]
        logits = tuned.logits(windows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        if not bool(torch.isfinite(loss)):
            raise InputError(f"the loss became {loss.item()} in step {step}; lower rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = settings.rate * _schedule(step, settings)
        optimizer.step()
        if progress:
            progress(step + 1, settings.steps, f"loss {loss.item():.3f}")
    return model.with_weights({name: w.detach() for name, w in weights.items()})


def _schedule(step: int, settings: FineTuning) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bitwright.experiments.fine_tune")
    parser.add_argument("--model", default="smollm2", help="name or path, as load_model takes")
    parser.add_argument("--text", type=Path, help="UTF-8 file; default: docstrings of Python")
    parser.add_argument("--out", type=Path, required=True, help="folder, Hugging Face style")
    for field in fields(FineTuning):
        parser.add_argument(
            "--" + field.name.replace("_", "-"), type=type(field.default), default=field.default
        )
    given = vars(parser.parse_args(arguments))
    name, path, out = given.pop("model"), given.pop("text"), given.pop("out")
    try:
        settings = FineTuning(**given)
        if out.exists() and any(output_folder(out).iterdir()):
            raise InputError(f"--out {out} is not empty; choose another folder")
        text, _ = split(default_text() if path is None else load_text(path))
        with progress_bar("fine-tune") as progress:
            tuned = fine_tune(load_model(name), text, settings, progress)
        save_folder(tuned, out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(out)


if __name__ == "__main__":
    main()
