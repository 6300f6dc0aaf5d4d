"""How much each linear suffers from each format, from one pass over calibration tokens.

E is the change of a linear's weights by rounding and G the sum of x x^T over its inputs, so
e_i = (E G E^T)_ii is the squared error of output channel i over all tokens. Three measures of it:

    relative  sum e_i over sum of (W G W^T)_ii: the error of the output, relative to the output
    energy    sum e_i over the tokens: the error itself
    loss      half the sum over tokens t and outputs i of the squared error times the square of
              the derivative of the log-likelihood with respect to that output, over the tokens:
              what the error adds to the loss in nats

The last is the second-order estimate with a Fisher matrix that is diagonal over outputs and tokens,
its diagonal taken as h_i s_t, a factor per output and one per token (K-FAC, Martens and Grosse,
ICML 2015, has none per token). Without s_t the few tokens with massive activations, whose outputs
hardly matter, would decide everything. So e_i is taken from a G whose tokens weigh s_t. Targets are
drawn from the model's own predictions, as the Fisher matrix wants it. Errors of different linears
add up in all three measures, which is what makes a proxy of the whole model separable.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitwright.experiments import accuracy_fingerprint
from bitwright.quant import (
    LINEARS,
    SITE_OF,
    SITES,
    Calibration,
    LanguageModel,
    Progress,
    Recipe,
    SiteCollector,
    Text,
    cache_folder,
    calibration_tokens,
    quantize,
    write_text,
)

MEASURES = ("relative", "energy", "loss")


def sensitivity(
    model: LanguageModel,
    recipes: Sequence[Recipe],
    calibration: Calibration,
    text: Text,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Errors of every linear in every format, by measure: float64 [linears, recipes].

    Cached by the model's weights, the tokens, the recipes and the code.

    Args:
        model: The float model.
        recipes: One format each, without algorithms.
        calibration: Which tokens.
        text: To calibrate on.
        progress: Called per block.

    Raises:
        InputError: As `calibration_tokens` and `quantize`.
    """
    from bitwright.experiments import sources_hash

    key = json.dumps(
        {
            "code": sources_hash("quant", "experiments/search/sensitivity.py"),
            "model": accuracy_fingerprint(model, text),
            "calibration": calibration.model_dump(),
            "recipes": [recipe.name for recipe in recipes],
        }
    )
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    path = cache_folder("sensitivity") / name
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {measure: np.array(stored[measure], np.float64) for measure in MEASURES}
    except (OSError, ValueError, KeyError):
        pass  # not there, or damaged: measure
    ids = calibration_tokens(model, calibration, text)
    slopes = squared_slopes(model, ids, calibration.seed, progress)
    tables = output_errors(model, recipes, ids, slopes, progress)
    write_text(path, json.dumps({measure: table.tolist() for measure, table in tables.items()}))
    return tables


@dataclass(frozen=True, slots=True)
class Slopes:
    """Squares of d log-likelihood / d output of a linear, as outputs[i] * tokens[t]."""

    outputs: np.ndarray  #: float64 [n]: the mean over tokens
    tokens: np.ndarray  #: float64 [t]: the mean over outputs, over its own mean


def squared_slopes(
    model: LanguageModel, ids: Any, seed: int, progress: Progress | None = None
) -> dict[str, Slopes]:
    """The slopes of every linear.

    Args:
        model: The float model.
        ids: Token ids [sequences, length].
        seed: Draws the targets.
        progress: Called per sequence.
    """
    import torch

    squares: dict[str, torch.Tensor] = {}
    tokens: dict[str, list[torch.Tensor]] = {}
    generator = torch.Generator().manual_seed(seed)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        y = x @ model.weight(name).T
        if not y.requires_grad:
            y.requires_grad_()

        def add(slope: torch.Tensor) -> None:
            square = slope.flatten(0, -2).double().square()
            squares[name] = squares.get(name, 0) + square.sum(0)
            tokens.setdefault(name, []).append(square.mean(1))

        y.register_hook(add)
        return y

    for number, row in enumerate(ids):
        with torch.enable_grad():
            hidden = model.hidden(row[None], linear)[0]
            scores = model.head(hidden).log_softmax(-1)
            drawn = torch.multinomial(scores.detach().exp(), 1, generator=generator)
            scores.gather(1, drawn).sum().backward()
        if progress:
            progress(number + 1, 2 * len(ids), "slopes of the loss")
    return {
        name: Slopes(total.numpy() / ids.numel(), _over_mean(torch.cat(tokens[name]).numpy()))
        for name, total in squares.items()
    }


def _over_mean(values: np.ndarray) -> np.ndarray:
    mean = values.mean()
    return values / mean if mean else np.ones_like(values)


def output_errors(
    model: LanguageModel,
    recipes: Sequence[Recipe],
    ids: Any,
    slopes: dict[str, Slopes],
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """The three measures, float64 [linears, recipes]; one block's matrices in memory at a time."""
    import torch

    layers, tokens = model.config.layers, ids.numel()
    tables = {name: np.zeros((layers * len(LINEARS), len(recipes))) for name in MEASURES}
    first = {names[0]: site for site, names in SITES.items()}
    length = ids.shape[1]
    with torch.no_grad():
        x = model.embed(ids)
        rotary = model.rotary(ids.shape[1])
        for layer in range(layers):
            prefix = f"blocks.{layer}."
            plain: dict[str, SiteCollector] = {}  # by site
            weighted: dict[str, SiteCollector] = {}  # by linear
            number = 0

            def linear(full: str, y: torch.Tensor) -> torch.Tensor:
                local = full.removeprefix(prefix)  # noqa: B023
                if local in first:
                    _add(plain, first[local], y)  # noqa: B023
                here = slopes[full].tokens[number * length : (number + 1) * length]  # noqa: B023
                roots = torch.from_numpy(np.sqrt(here).astype(np.float32))
                _add(weighted, local, y * roots[None, :, None])  # noqa: B023
                return y @ model.weight(full).T

            for number in range(len(x)):
                x[number] = model.block(layer, x[number][None], rotary, linear)[0]
            grams = {name: _gram(found) for name, found in (plain | weighted).items()}
            for place, local in enumerate(LINEARS):
                row, w = layer * len(LINEARS) + place, model.weight(prefix + local).numpy()
                gram = grams[SITE_OF[local]]
                power = row_errors(w, gram).sum()
                for column, recipe in enumerate(recipes):
                    change = quantize(w, recipe).dequantize() - w
                    errors = row_errors(change, gram)
                    tables["relative"][row, column] = errors.sum() / power if power else 0.0
                    tables["energy"][row, column] = errors.sum() / tokens
                    slope = slopes[prefix + local].outputs
                    loss = (slope * row_errors(change, grams[local])).sum() / (2 * tokens)
                    tables["loss"][row, column] = loss
            if progress:
                progress(layers + layer + 1, 2 * layers, f"layer errors, block {layer}")
    return tables


def _add(collectors: dict[str, SiteCollector], name: str, x: Any) -> None:
    if name not in collectors:
        collectors[name] = SiteCollector(x.shape[-1], ["gram"])
    collectors[name].add(x)


def _gram(collector: SiteCollector) -> np.ndarray:
    gram = collector.stats().gram
    assert gram is not None
    return gram


def row_errors(error: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Squared error of every output channel over all tokens: diagonal of E G E^T, float64 [n]."""
    product = (error @ gram).astype(np.float64)
    return np.einsum("nk,nk->n", product, error.astype(np.float64))
