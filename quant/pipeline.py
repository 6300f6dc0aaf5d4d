"""A model through a recipe, block by block.

Two residual streams can run through the blocks. The *float stream* is that of the float model: its
inputs give ranges, Gram matrices and samples to the algorithms that prepare a block. The *quantised
stream* is that of the model as far as it is quantised: rounding with GPTQ takes its Hessians from
it, stage by stage within a block, and learned algorithms start from it. A recipe runs only the
streams that its algorithms read, each a single pass.

In memory are one block's weights, the streams (tokens x hidden x 4 bytes, at most three of them)
and the widest stage's inputs (tokens x ffn x 4 bytes where the quantised stream runs).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .activations import fake_activations, fake_kv
from .algorithms.base import BlockTask, Streams, gram_error
from .calibration import (
    BATCH_TOKENS,
    Calibration,
    Need,
    SiteCollector,
    SiteStats,
    calibration_tokens,
    sample_rows,
)
from .compressed import CompressedMatrix
from .errors import InputError
from .files import Progress
from .freed_memory import freed_memory_kept, return_freed_memory
from .quantized_model import LinearReport, QuantizedBlock, QuantizedModel, product_of
from .recipes import Recipe, resolve_recipe
from .tensor import QuantizedTensor
from .text import Text, load_calibration_text

if TYPE_CHECKING:
    import torch

    from .algorithms.pruning import Pruning
    from .block_store import BlockFolder
    from .models import Cache, LanguageModel, LlamaConfig, Rotary, Structure


def apply_recipe(
    model: "LanguageModel",
    recipe: str | Recipe,
    *,
    calibration: Calibration | None = None,
    text: Text | str | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> QuantizedModel:
    """Quantise a model's block linears with the algorithms of a recipe.

    The same model, recipe, calibration and text give the same bits. Embedding and output layer stay
    as they are, unless the recipe rotates them or gives the output layer a form of its own.

    Args:
        model: The float model; one whose weights are read from disk when needed is fine.
        recipe: A recipe or its name.
        calibration: Which tokens; None for 128 sequences of 512, or as many as the text has. Only
            read if the recipe needs data.
        text: To calibrate on; None for the default calibration text.
        folder: Where to write each block as it is finished, instead of keeping it in memory. An
            interrupted run with the same arguments goes on behind the last finished block.
        progress: Called as work goes on.

    Raises:
        InputError: An unknown recipe, a calibration text that is too short, weights that cannot be
            quantised (names the layer), or a folder that holds another run.
    """
    import torch

    from .block_store import BlockFolder

    recipe = resolve_recipe(recipe)
    config = model.config
    if recipe.format_map is not None:
        recipe.format_map.check(config.layers)
    structural = recipe.structure
    if structural is not None:
        structural.blocks(config)
    pruning = _pruning(recipe)
    if pruning is not None:
        pruning.check(recipe, config)
    if recipe.head is not None:
        recipe.head.check(config.vocab)
    ids, used = None, None
    if recipe.needs_data:
        text = load_calibration_text() if text is None else text
        used = _calibration_for(model, calibration, text)
        ids = calibration_tokens(model, used, text)
    text_name = None if used is None else text.name if isinstance(text, Text) else "text"
    original, structure = model, None
    store = None if folder is None else BlockFolder(folder, model, recipe, used, ids)
    finished: list[QuantizedBlock] = []
    if model.streamed:  # there is little memory: freed arrays go back, whatever time that takes
        return_freed_memory()
    kept = nullcontext() if model.streamed else freed_memory_kept()
    with torch.no_grad(), kept, store or nullcontext():
        if structural is not None:
            assert ids is not None
            structure = _structure(model, recipe, ids, store, progress)
            model = model.narrowed(structure)
            if pruning is not None:
                pruning.check(recipe, model.config)
            if not recipe.without_structure.needs_data:
                ids = None
        rotation = _Rotation(model, recipe)
        passes = _Passes(rotation, recipe, used, ids, progress)
        start = 0 if store is None else store.resume(passes)
        for layer in range(start, config.layers):
            block = passes.block(layer)
            if store is None:
                finished.append(block)
            else:
                store.add(block, passes)
            if progress:
                progress((layer + 1) * 1000, config.layers * 1000, f"{recipe.name}: block {layer}")
        head, ends = None, rotation.ends
        if recipe.head is not None:
            if progress:
                progress(config.layers * 1000, config.layers * 1000, f"{recipe.name}: output layer")
            head = recipe.head.compress(rotation.head().numpy())
            ends = {name: w for name, w in ends.items() if name != "head"}
        if store is not None:
            store.finish(ends, head, text_name)
    blocks: Sequence[QuantizedBlock] = finished if store is None else store.blocks()
    notes = () if store is None else store.notes
    return QuantizedModel(original, recipe, blocks, used, text_name, ends, notes, head, structure)


def _structure(
    model: "LanguageModel",
    recipe: Recipe,
    ids: "torch.Tensor",
    store: "BlockFolder | None",
    progress: Progress | None,
) -> "Structure":
    """What the recipe's structural step keeps; a folder is told."""
    from .algorithms.llm_pruner import prune_structure

    step = recipe.structure
    assert step is not None
    if progress:
        progress(0, model.config.layers * 1000, f"{recipe.name}: heads and channels")
    structure = prune_structure(model, step, ids)
    if store is not None:
        store.narrow(model.narrowed(structure), structure)
    return structure


def _pruning(recipe: Recipe) -> "Pruning | None":
    """The step that takes weights out, if there is one."""
    return next((step for step in recipe.steps if step.prunes), None)  # type: ignore[return-value]


def _calibration_for(
    model: "LanguageModel", calibration: Calibration | None, text: Text | str
) -> Calibration:
    """The calibration asked for; the default one shrinks to what text and context allow."""
    if calibration is not None:
        return calibration
    default = Calibration()
    length = min(default.length, model.config.context)
    content = text.content if isinstance(text, Text) else text
    count = len(model.tokenizer.encode(content)) // length
    return default.model_copy(
        update={"length": length, "sequences": max(1, min(default.sequences, count))}
    )


class _Rotation:
    """The model's weights, rotated if the recipe says so."""

    def __init__(self, model: "LanguageModel", recipe: Recipe) -> None:
        import torch

        self.model = model
        self.ends: dict[str, torch.Tensor] = {}
        self._residual, self._head = None, None
        step = recipe.rotation
        if step is None:
            return
        from .algorithms.hadamard_matrix import orthogonal
        from .algorithms.rotation import rotate_ends

        config = model.config
        self._residual = torch.from_numpy(orthogonal(config.hidden, step.seed))
        if step.heads:
            self._head = torch.from_numpy(orthogonal(config.head_dim, step.seed + 1))
        embed, norm, head = rotate_ends(
            model.weight("embed"), model.weight("final_norm"), model.head_weight, self._residual
        )
        self.ends = {"embed": embed, "final_norm": norm, "head": head}

    def embed(self, ids: "torch.Tensor") -> "torch.Tensor":
        model = self.model.with_weights(self.ends) if self.ends else self.model
        return model.embed(ids)

    def head(self) -> "torch.Tensor":
        """The output layer [vocab, hidden]."""
        return self.ends["head"] if self.ends else self.model.head_weight

    def weights(self, layer: int) -> "dict[str, torch.Tensor]":
        weights = self.model.block_weights(layer)
        if self._residual is None:
            return weights
        from .algorithms.rotation import rotate_block

        return rotate_block(weights, self.model.config.of_block(layer), self._residual, self._head)


class _Passes:
    """The streams through the blocks, and what happens to each block on the way."""

    def __init__(
        self,
        rotation: _Rotation,
        recipe: Recipe,
        calibration: Calibration | None,
        ids: "torch.Tensor | None",
        progress: Progress | None,
    ) -> None:
        self.config: LlamaConfig = rotation.model.config
        self.rotation, self.recipe, self.calibration = rotation, recipe, calibration
        self.progress = progress
        self.prepare = [step for step in recipe.steps if step.phase == "prepare"]
        self.rounding: Any = next((s for s in recipe.steps if s.phase == "round"), None)
        self.runs_quantized = any(step.reads_quantized_stream for step in recipe.steps)
        static = recipe.activations is not None and recipe.activations.static
        self.trains = self.rounding is not None and self.rounding.trains_blocks
        self.runs_float = bool(self.prepare) or static or self.trains
        self.float_stream: torch.Tensor | None = None
        self.quantized_stream: torch.Tensor | None = None
        if ids is not None:
            x = rotation.embed(ids)
            self.float_stream = x if self.runs_float else None
            # Cloned, for the stages work in place.
            self.quantized_stream = x.clone() if self.runs_quantized else None
            self.rotary: Rotary = rotation.model.rotary(ids.shape[1])
            self.batch = max(1, BATCH_TOKENS // ids.shape[1])

    def block(self, layer: int) -> QuantizedBlock:
        """Quantise a block and move the streams behind it."""
        weights = self.rotation.weights(layer)
        stats: dict[str, SiteStats] = {}
        probe, streams, float_out = None, None, None
        if self.float_stream is not None:
            probe = self.float_stream[:1]
            stats, float_out = self._float_pass(layer, weights)
            if self.quantized_stream is not None and (
                self.trains or any(step.reads_quantized_stream for step in self.prepare)
            ):
                streams = Streams(self.float_stream, float_out, self.quantized_stream)
        task = BlockTask(
            layer,
            self.config.of_block(layer),
            self.recipe,
            dict(weights),
            stats,
            streams,
            probe=probe,
        )
        task.progress = self._within(layer)
        self._report_inputs(task)
        for step in self.prepare:
            step.apply(task)
        self.float_stream = float_out
        if self.recipe.keeps_weights:
            return QuantizedBlock(
                layer, {}, dict(task.weights), limits=self._limits(task), notes=tuple(task.notes)
            )
        if self.trains:
            tensors, report = self._trained_pass(task)
        elif self.quantized_stream is not None:
            tensors, report = self._quantized_pass(task)
        else:
            tensors, report = {}, []
            for site, name in _linears():
                tensors[name] = self._rounded(task, name, None)
                report.append(_reported(task, name, tensors[name], stats.get(site)))
        vectors = {name: w for name, w in task.weights.items() if name not in tensors}
        kept = {name: task.super_weights(name) for name in task.set_aside}
        return QuantizedBlock(
            layer, tensors, vectors, kept, self._limits(task), tuple(report), tuple(task.notes)
        )

    def _limits(self, task: BlockTask) -> dict[str, tuple[float, float]]:
        act = self.recipe.activations
        if act is None or not act.static:
            return {}
        return {site: stats.limits for site, stats in task.stats.items()}

    def _within(self, layer: int) -> Progress | None:
        """Progress inside a block, in thousandths of it."""
        if self.progress is None:
            return None
        outer, layers = self.progress, self.config.layers

        def inner(done: int, total: int, what: str) -> None:
            outer(layer * 1000 + 1000 * done // max(1, total), layers * 1000, what)

        return inner

    def _float_pass(
        self, layer: int, weights: "dict[str, torch.Tensor]"
    ) -> "tuple[dict[str, SiteStats], torch.Tensor]":
        import torch

        from .models import SITES, block_forward

        assert self.float_stream is not None and self.calibration is not None
        needs: set[Need] = set()
        for step in self.prepare:
            needs |= step.needs
        rows = sample_rows(self.calibration)
        first = {names[0]: site for site, names in SITES.items()}
        collectors = {
            site: SiteCollector(weights[names[0]].shape[1], needs, rows)
            for site, names in SITES.items()
        }

        def linear(name: str, x: torch.Tensor) -> torch.Tensor:
            if name in first:
                collectors[first[name]].add(x)
            return x @ weights[name].T

        out = torch.empty_like(self.float_stream)
        for start in range(0, len(out), self.batch):
            part = slice(start, start + self.batch)
            x = self.float_stream[part]
            out[part] = block_forward(self.config.of_block(layer), weights, x, self.rotary, linear)
        return {site: _stats(layer, site, one) for site, one in collectors.items()}, out

    def _quantized_pass(
        self, task: BlockTask
    ) -> tuple[dict[str, QuantizedTensor | CompressedMatrix], list[LinearReport]]:
        import torch

        from .models import SITES, block_stages

        assert self.quantized_stream is not None
        act, kv = self.recipe.activations, self.recipe.kv
        limits = self._limits(task)
        cache: Cache | None = None if kv is None else lambda name, y: fake_kv(y, kv)
        live = dict(task.weights)
        tensors: dict[str, QuantizedTensor | CompressedMatrix] = {}
        report: list[LinearReport] = []
        needs: set[Need] = set() if self.rounding is None else {"gram"}
        stages = block_stages(
            task.config, live, self.quantized_stream, self.rotary, self.batch, cache
        )
        for site, inputs in stages:
            stats = task.stats.get(site)
            if self.rounding is not None:
                collector = SiteCollector(inputs.shape[-1], needs)
            for start in range(0, len(inputs), self.batch):
                part = slice(start, start + self.batch)
                if act is not None:
                    inputs[part] = fake_activations(inputs[part], act, limits.get(site))
                if self.rounding is not None:
                    collector.add(inputs[part])
            if self.rounding is not None:
                stats = _stats(task.layer, site, collector)
                if not task.stats:
                    _report_site(task, site, stats)
            for name in SITES[site]:
                tensors[name] = self._rounded(task, name, stats)
                report.append(_reported(task, name, tensors[name], stats))
                w = tensors[name].dequantize()
                for kept in task.super_weights(name):
                    w[kept.row, kept.column] = kept.value
                live[name] = torch.from_numpy(w)
        return tensors, report

    def _trained_pass(
        self, task: BlockTask
    ) -> tuple[dict[str, QuantizedTensor | CompressedMatrix], list[LinearReport]]:
        """All matrices of the block together, and the quantised stream through them."""
        import torch

        from .models import SITE_OF, block_forward

        assert self.quantized_stream is not None
        tensors = dict(self.rounding.forms(task))
        act, kv = self.recipe.activations, self.recipe.kv
        limits = self._limits(task)
        cache: Cache | None = None if kv is None else lambda name, y: fake_kv(y, kv)
        products = {name: product_of(tensor) for name, tensor in tensors.items()}

        def linear(name: str, x: torch.Tensor) -> torch.Tensor:
            if act is not None:
                x = fake_activations(x, act, limits.get(SITE_OF[name]))
            return products[name](x)

        for start in range(0, len(self.quantized_stream), self.batch):
            part = slice(start, start + self.batch)
            x = self.quantized_stream[part]
            self.quantized_stream[part] = block_forward(
                task.config, task.weights, x, self.rotary, linear, cache=cache
            )
        report = [_reported(task, name, tensors[name], None) for _, name in _linears()]
        return tensors, report

    def _rounded(
        self, task: BlockTask, name: str, stats: SiteStats | None
    ) -> QuantizedTensor | CompressedMatrix:
        try:
            w = task.to_round(name)
            if name in task.masks:
                return self._masked(task, name, w)
            if self.rounding is None:
                return task.round(w, name)
            rounded: QuantizedTensor | CompressedMatrix = self.rounding.round(task, name, w, stats)
            return rounded
        except InputError as error:
            raise InputError(f"layer blocks.{task.layer}.{name}: {error}") from None

    def _masked(self, task: BlockTask, name: str, w: np.ndarray) -> CompressedMatrix:
        """The kept weights, rounded in the recipe's format or to FP16 without one."""
        from .algorithms.masked import mask_matrix

        pruning = _pruning(self.recipe)
        inner: Any = w if self.recipe.format is None else task.round(w, name)
        return mask_matrix(inner, task.masks[name], None if pruning is None else pruning.runs)

    @staticmethod
    def _report_inputs(task: BlockTask) -> None:
        for site, stats in task.stats.items():
            _report_site(task, site, stats)


def _linears() -> list[tuple[str, str]]:
    from .models import SITES

    return [(site, name) for site, names in SITES.items() for name in names]


def _stats(layer: int, site: str, collector: SiteCollector) -> SiteStats:
    try:
        return collector.stats()
    except InputError as error:
        raise InputError(f"blocks.{layer}, {site}: {error}") from None


def _report_site(task: BlockTask, site: str, stats: SiteStats) -> None:
    """Notes on inputs that say nothing: channels that are always zero, or always the same."""
    for what, channels in (("zero", stats.dead), ("constant", stats.constant)):
        if channels.any():
            task.note(
                f"{site}: {int(channels.sum())} of {len(channels)} input channels are {what} in "
                f"all {stats.tokens:,} tokens (first: {int(np.argmax(channels))})"
            )


def _reported(
    task: BlockTask, name: str, tensor: QuantizedTensor | CompressedMatrix, stats: SiteStats | None
) -> LinearReport:
    w = task.matrix(name)
    full = f"blocks.{task.layer}.{name}"
    made = tensor.format.name if isinstance(tensor, QuantizedTensor) else tensor.method
    power = float(np.square(w, dtype=np.float64).sum())
    if isinstance(tensor, CompressedMatrix) and tensor.varies:
        return LinearReport(full, made, float("nan"), float("nan"), power)
    error = tensor.dequantize()
    for kept in task.super_weights(name):
        error[kept.row, kept.column] = kept.value
    error -= w
    output = float("nan")
    if stats is not None and stats.gram is not None:
        whole = gram_error(w, stats.gram)
        output = gram_error(error, stats.gram) / whole if whole else 0.0
    squares = float(np.square(error, dtype=np.float64).sum())
    relative = squares / power if power else (0.0 if squares == 0.0 else float("inf"))
    return LinearReport(full, made, relative, output, power)
