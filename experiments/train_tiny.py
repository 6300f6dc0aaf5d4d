"""Train `tiny`, the bundled byte-level model: `python -m bitwright.experiments.train_tiny`.

The text is what every Python ships: the help topics, less the part that perplexity is measured on,
and the docstrings of the standard library. The same settings on the same machine, Python and torch
give the same file.
"""

import argparse
import ast
import json
import math
import platform
import sys
import sysconfig
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from bitwright.quant import (
    LanguageModel,
    LlamaConfig,
    Progress,
    atomic_path,
    load_text,
    torch_threads,
)

CONFIG = LlamaConfig(
    layers=5,
    hidden=128,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn=384,
    vocab=256,  # bytes
    rope_base=10_000.0,
    norm_eps=1e-5,
    tied_embeddings=True,
    context=512,
)


@dataclass(frozen=True, slots=True)
class Training:
    """How `tiny` is trained."""

    steps: int = 1200
    batch: int = 8  #: windows of `CONFIG.context` bytes per step
    warmup: int = 60  #: steps of rising learning rate, before it falls to zero along a cosine
    matrix_rate: float = 0.05  #: peak learning rate of the block linears (Muon)
    other_rate: float = 0.003  #: peak learning rate of embedding and norms (AdamW)
    topics_share: float = 0.5  #: windows taken from the help topics; the rest from docstrings
    seed: int = 0
    threads: int = 1  #: the order of float additions, and so the result, depends on it


def training_text() -> tuple[str, str]:
    """The help topics without the default perplexity text, and the standard library's docstrings.

    Topics repeat each other, so every line of 20 characters or more that occurs in the perplexity
    text is dropped from both.
    """
    from pydoc_data.topics import topics

    held_out = load_text().content
    held_lines = {line.strip() for line in held_out.splitlines() if len(line.strip()) >= 20}

    def unseen(text: str) -> str:
        return "\n".join(line for line in text.splitlines() if line.strip() not in held_lines)

    joined = "\n\n".join(topics[key] for key in sorted(topics))
    assert joined.startswith(held_out)
    return unseen(joined.removeprefix(held_out)), unseen("\n\n".join(_docstrings()))


def _docstrings() -> list[str]:
    """Docstrings of the standard library's own modules, in order of path and line."""
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "pydoc_data"}
    found = []
    for path in sorted(root.rglob("*.py")):
        if skip.intersection(path.relative_to(root).parts):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring and len(docstring) >= 80:
                    found.append(docstring)
    return found


class _Bytes:
    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


def train(settings: Training, progress: Progress | None = None) -> LanguageModel:
    """A freshly trained model of shape `CONFIG`."""
    with torch_threads(settings.threads):
        return _train(settings, progress)


def _train(settings: Training, progress: Progress | None) -> LanguageModel:
    generator = torch.Generator().manual_seed(settings.seed)
    weights = _initial_weights(generator)
    model = LanguageModel("tiny", CONFIG, weights, _Bytes(), "in training")

    matrices = [model.weight(name) for name in model.linear_names()]
    linears = set(model.linear_names())
    others = [weight for name, weight in weights.items() if name not in linears]
    optimisers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(matrices, lr=1.0, weight_decay=0.0, momentum=0.95), settings.matrix_rate),
        (
            torch.optim.AdamW(others, lr=1.0, weight_decay=0.0, betas=(0.9, 0.95)),
            settings.other_rate,
        ),
    ]
    topics, docstrings = (
        torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) for text in training_text()
    )
    from_topics = round(settings.topics_share * settings.batch)
    offsets = torch.arange(CONFIG.context + 1)
    for step in range(settings.steps):
        windows = []
        for source, count in ((topics, from_topics), (docstrings, settings.batch - from_topics)):
            start = torch.randint(len(source) - len(offsets), (count, 1), generator=generator)
            windows.append(source[start + offsets].long())
        batch = torch.cat(windows)
        loss = F.cross_entropy(model.logits(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        for optimiser, peak in optimisers:
            optimiser.param_groups[0]["lr"] = peak * _schedule(step, settings)
            optimiser.step()
            optimiser.zero_grad()
        if progress:
            progress(step + 1, settings.steps, f"loss {loss.item():.3f}")
    # Shipped as float16, so rounded to it here: what is measured is what ships.
    rounded = {name: w.detach().half().float() for name, w in weights.items()}
    return LanguageModel("tiny", CONFIG, rounded, _Bytes(), "just trained")


def _initial_weights(generator: torch.Generator) -> dict[str, torch.Tensor]:
    weights = {}
    for name, shape in CONFIG.weight_shapes().items():
        if len(shape) == 1:
            weight = torch.ones(shape)
        else:
            weight = torch.randn(shape, generator=generator) / math.sqrt(CONFIG.hidden)
            if name.endswith((".o", ".down")):  # residual branches start small
                weight /= 2 * CONFIG.layers
        weights[name] = weight.requires_grad_()
    return weights


def _schedule(step: int, settings: Training) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def save(model: LanguageModel, settings: Training, path: Path) -> None:
    """Write float16 weights and, as metadata, the shape and how it was trained."""
    card = {
        "config": asdict(model.config),
        "training": asdict(settings),
        "text": f"pydoc_data.topics without the default perplexity text, and standard library "
        f"docstrings, of Python {platform.python_version()}",
        "torch": torch.__version__,
    }
    tensors = {name: model.weight(name).half() for name in model.config.weight_shapes()}
    # One key only: safetensors writes several in no fixed order.
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"bitwright": json.dumps(card, sort_keys=True)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bitwright.experiments.train_tiny")
    parser.add_argument("--out", type=Path, default=Path("tiny.safetensors"))
    for field in fields(Training):
        parser.add_argument(
            "--" + field.name.replace("_", "-"), type=type(field.default), default=field.default
        )
    arguments = vars(parser.parse_args())
    path = arguments.pop("out")
    settings = Training(**arguments)
    started = time.monotonic()

    def progress(done: int, total: int, what: str) -> None:
        if done % 50 == 0 or done == total:
            print(f"{done}/{total} {what}, {time.monotonic() - started:.0f} s", file=sys.stderr)

    save(train(settings, progress), settings, path)
    print(path)


if __name__ == "__main__":
    main()
