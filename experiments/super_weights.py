"""Super weights of a model, and what they are worth: perplexity with and without them.

One forward pass of one sequence finds them (`quant/algorithms/super_weights.py`; Yu et al., arXiv
2411.07191). Then perplexity is measured with each of them set to 0, with all of them, and, to
compare, with as many weights of about the same size, and with many more of the largest other ones:
where a handful of weights does more than a thousand larger ones it is their place that matters.
Last, rounding to nearest with and without the super weights restored in FP16 behind it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bitwright.quant import (
    Calibration,
    InputError,
    LanguageModel,
    Linear,
    Progress,
    Recipe,
    Spike,
    Text,
    apply_recipe,
    calibration_tokens,
    load_calibration_text,
    load_text,
    perplexity,
    quantize,
    resolve_recipe,
    spikes,
)

from .provenance import provenance

#: Weights nearest in size among which a random one is drawn.
_NEAREST = 1000
#: Weights that are set to 0, by matrix: rows and columns.
Places = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, slots=True)
class FoundWeight:
    """A super weight of "ffn.down" of a block."""

    layer: int
    spike: Spike


@dataclass(frozen=True, slots=True)
class SuperWeightStudy:
    """What was found, and the perplexities."""

    meta: dict[str, Any]
    found: tuple[FoundWeight, ...]
    #: Largest input and output of "ffn.down" by layer, absolute: held against the threshold.
    largest: tuple[tuple[float, float], ...]
    rows: tuple[tuple[str, int, float], ...]  #: what was done, weights changed, perplexity

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "meta": self.meta,
            "super_weights": [{"layer": one.layer, **asdict(one.spike)} for one in self.found],
            "largest": [
                {"layer": layer, "input": source, "output": output}
                for layer, (source, output) in enumerate(self.largest)
            ],
            "perplexity": [
                {"what": what, "weights": weights, "perplexity": value}
                for what, weights, value in self.rows
            ],
        }


def find_super_weights(
    model: LanguageModel,
    *,
    threshold: float = 50.0,
    most: int = 4,
    share: float = 0.5,
    prompt: int = 512,
    seed: int = 0,
) -> tuple[tuple[FoundWeight, ...], tuple[tuple[float, float], ...]]:
    """The super weights of a model by one forward pass, and the largest activations by layer.

    Args:
        model: The float model.
        threshold: What input and output of "ffn.down" both exceed at a super weight, absolute.
        most: Super weights per block at most.
        share: Of the output's spike that a super weight makes up at least.
        prompt: Tokens of the sequence, from the default calibration text.
        seed: Chooses the sequence.

    Raises:
        InputError: A prompt that does not fit the model.
    """
    import torch

    ids = calibration_tokens(
        model, Calibration(sequences=1, length=prompt, seed=seed), load_calibration_text()
    )
    found: list[FoundWeight] = []
    largest: list[tuple[float, float]] = []

    def observe(name: str, x: torch.Tensor, w: torch.Tensor) -> None:
        if not name.endswith(".ffn.down"):
            return
        layer = int(name.split(".")[1])
        largest.append((float(x.abs().max()), float((x @ w.T).abs().max())))
        found.extend(FoundWeight(layer, one) for one in spikes(x, w, threshold, most, share))

    with torch.no_grad():
        model.hidden(ids, observe=observe)
    return tuple(found), tuple(largest)


def super_weight_study(
    model: LanguageModel,
    *,
    text: Text | None = None,
    max_tokens: int = 4096,
    window: int = 512,
    threshold: float = 50.0,
    most: int = 4,
    share: float = 0.5,
    prompt: int = 512,
    others: int = 1000,
    recipe: Recipe | str = "w4-int-sym",
    seed: int = 0,
    progress: Progress | None = None,
) -> SuperWeightStudy:
    """Find the super weights and measure what they are worth.

    Args:
        model: The float model.
        text: Text of the perplexity; None for the default one.
        max_tokens: Tokens to read each time.
        window: Context length.
        threshold: As in `find_super_weights`, like `most`, `share` and `prompt`.
        most: Per block.
        share: Of the spike.
        prompt: Tokens.
        others: How many of the largest other weights of the linears are removed together.
        recipe: A weight format, rounded to nearest.
        seed: Chooses the sequence and the random weights.
        progress: Called before each perplexity.

    Raises:
        InputError: A recipe that does more than round weights, or none of them; `others` outside
            1 .. all weights less one; or as `perplexity`.
    """
    recipe = resolve_recipe(recipe)
    if not recipe.plain or recipe.format is None:
        raise InputError(
            f"recipe {recipe.name} is not plain rounding of weights; give one such as w4-int-sym"
        )
    weights = sum(n * k for n, k in model.config.linear_shapes().values())
    if not 1 <= others < weights:
        raise InputError(f"others is {others}; from 1 to {weights - 1:,}, the linears' weights")
    text = text or load_text()
    where: dict[str, Any] = {"text": text, "max_tokens": max_tokens, "window": window}
    first = perplexity(model, **where)
    found, largest = find_super_weights(
        model, threshold=threshold, most=most, share=share, prompt=prompt, seed=seed
    )
    places = [(f"blocks.{one.layer}.ffn.down", one.spike.row, one.spike.column) for one in found]
    removed: list[tuple[str, Places]] = [
        (f"without {name} [{row}, {column}]", _together([(name, row, column)]))
        for name, row, column in places
    ]
    if places:
        every = f"without all {len(places)}"
        removed += [(every, _together(places))] if len(places) > 1 else []
        removed.append(("without random ones of their size", _random(model, places, seed)))
    removed.append(("without the largest others", _largest(model, places, others)))
    rows = [("as it is", 0, first.perplexity)]
    total = len(removed) + 3
    for done, (what, zeros) in enumerate(removed):
        if progress:
            progress(done + 1, total, what)
        count = sum(len(own) for own, _ in zeros.values())
        value = perplexity(_without(model, zeros), **where).perplexity
        rows.append((what, count, value))
    if progress:
        progress(total - 2, total, recipe.name)
    quantized = apply_recipe(model, recipe)
    plain = quantized.linear()
    rows.append((recipe.name, 0, perplexity(model, linear=plain, **where).perplexity))
    if places:
        if progress:
            progress(total - 1, total, f"{recipe.name}, super weights restored")
        restored = _restored(model, recipe, plain, places)
        value = perplexity(model, linear=restored, **where).perplexity
        rows.append((f"{recipe.name}, super weights in FP16", len(places), value))
    meta = {
        "model": model.name,
        "text": first.text_name,
        "tokens": first.tokens,
        "window": window,
        "threshold": threshold,
        "most": most,
        "share": share,
        "prompt": prompt,
        "recipe": recipe.name,
        **provenance(seed),
    }
    return SuperWeightStudy(meta, found, largest, tuple(rows))


def _together(places: list[tuple[str, int, int]]) -> Places:
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in dict.fromkeys(name for name, _, _ in places):
        own = np.array([(row, column) for other, row, column in places if other == name])
        found[name] = own[:, 0], own[:, 1]
    return found


def _without(model: LanguageModel, zeros: Places) -> LanguageModel:
    changed = {}
    for name, (rows, columns) in zeros.items():
        changed[name] = model.weight(name).clone()
        changed[name][rows, columns] = 0
    return model.with_weights(changed)


def _random(model: LanguageModel, places: list[tuple[str, int, int]], seed: int) -> Places:
    """For each super weight another weight of its matrix, drawn from those nearest in size."""
    rng = np.random.default_rng(seed)
    chosen: list[tuple[str, int, int]] = []
    for name, row, column in places:
        w = np.abs(model.weight(name).numpy())
        far = np.abs(w - w[row, column])
        for other, i, j in (*places, *chosen):
            if other == name:
                far[i, j] = np.inf
        near = np.argsort(far, axis=None, kind="stable")[:_NEAREST]
        near = near[np.isfinite(far.reshape(-1)[near])]
        i, j = divmod(int(rng.choice(near)), w.shape[1])
        chosen.append((name, i, j))
    return _together(chosen)


def _largest(model: LanguageModel, places: list[tuple[str, int, int]], count: int) -> Places:
    """The largest weights of all linears that are no super weights; of equal ones the first."""
    best: list[tuple[float, str, int]] = []
    for name, (n, k) in model.config.linear_shapes().items():
        w = np.abs(model.weight(name).numpy()).reshape(-1)
        own = {row * k + column for other, row, column in places if other == name}
        most = min(n * k, count + len(own))
        edge = np.partition(w, n * k - most)[n * k - most]
        candidates = np.flatnonzero(w >= edge)
        best += [(-float(w[at]), name, int(at)) for at in candidates if int(at) not in own]
        best = sorted(best, key=lambda one: one[0])[:count]
    shapes = model.config.linear_shapes()
    return _together([(name, *divmod(at, shapes[name][1])) for _, name, at in best])


def _restored(
    model: LanguageModel, recipe: Recipe, plain: Linear, places: list[tuple[str, int, int]]
) -> Linear:
    """Super weights are 0 while their matrix is rounded, and have their FP16 value behind it."""
    import torch

    special: dict[str, torch.Tensor] = {}
    for name, (rows, columns) in _together(places).items():
        w = model.weight(name).numpy().copy()
        values = w[rows, columns].astype(np.float16)
        w[rows, columns] = 0
        rounded = quantize(w, recipe).dequantize()
        rounded[rows, columns] = values
        special[name] = torch.from_numpy(rounded)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ special[name].T if name in special else plain(name, x)

    return linear
