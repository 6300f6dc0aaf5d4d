"""Energy of the logic on a model's own tensors: what `energy`, `simulate` and `codesign` measure.

Operands come from one forward pass of the unquantised model (`recording`): activations as they
arrive at a layer, quantised as the PE gets them; weights quantised by the recipe. Every product of
the layers asked for runs through the netlists of a tile of the array (`bitwright.rtl.tile_energy`).

A product's energy in a simulation is the mean over the layers measured, `LAYERS` of them by
default: the first, the last, and evenly between.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.quant import (
    FORMATS,
    InputError,
    LanguageModel,
    Progress,
    QuantizedTensor,
    Recipe,
    Text,
    cache_folder,
    load_model,
    quantize,
    resolve_recipe,
    write_text,
)
from bitwright.rtl import Technology, scaling, tile_energy, wire_load
from bitwright.sim import PES, LogicEnergy, ProductEnergy, blocks, pick

from .provenance import sources_hash
from .recording import Key, Recorded, record

LAYERS = 3  #: layers that stand for all of them
TOKENS = 64  #: rows of activations recorded
_CHANNELS = 1024  #: most output channels that tiles are drawn from; of the output layer


@dataclass(frozen=True, slots=True)
class LayerEnergy:
    """One product of one layer."""

    layer: int | None  #: None: the output layer
    product: str
    energy: tile_energy.TileEnergy

    @property
    def name(self) -> str:
        """ "3.ffn.down" or "lm_head"."""
        return self.product if self.layer is None else f"{self.layer}.{self.product}"


def chosen_layers(model: LanguageModel, count: int = LAYERS) -> list[int]:
    """So many layers, the first and the last among them, evenly spaced; one is the middle one."""
    last = model.config.layers - 1
    if count == 1:
        return [last // 2]
    return sorted({round(i * last / max(count - 1, 1)) for i in range(count)})


def measure_layers(
    model: LanguageModel,
    recipe: Recipe | str,
    hardware: tile_energy.TileHardware,
    *,
    only: Sequence[Key] | None = None,
    layers: Sequence[int] | None = None,
    text: Text | str | None = None,
    tokens: int = TOKENS,
    seed: int = 0,
    kv_format: str | None = None,
    progress: Progress | None = None,
) -> list[LayerEnergy]:
    """Energy of a model's products on a tile, layer by layer.

    Args:
        model: The model.
        recipe: Of its block weights.
        hardware: The tile.
        only: Layers and products wanted; None for every product of `layers`.
        layers: Layers; None for `LAYERS` of them.
        text: What the model reads; None for the default text.
        tokens: Rows of activations.
        seed: Of the tiles that are drawn.
        kv_format: Of keys and values; None: the widest that the PE runs, as in `simulate`.
        progress: Called as products are done.

    Raises:
        InputError: A layer that the model does not have, or a format that the PE does not run.
    """
    recipe = resolve_recipe(recipe)
    PES[hardware.pe].step_cycles(recipe.format_obj)  # refuse before any work
    if only is not None:
        layers = sorted({layer for layer, _ in only if layer is not None})
    elif layers is None:
        layers = chosen_layers(model)
    recorded = record(model, text, tokens=tokens, layers=layers)
    wanted = list(recorded) if only is None else list(only)
    found = []
    for done, key in enumerate(wanted):
        (operands, *_) = recorded[key]
        name = LayerEnergy(*key, None).name  # type: ignore[arg-type]

        def tell(tiles: int, _: int, what: str, done: int = done) -> None:
            if progress:
                progress(done, len(wanted), what)

        energy = tile_energy.measure(
            hardware,
            activations_for(operands.x, hardware.pe),
            _weights(operands, recipe, hardware.pe, kv_format),
            seed=seed,
            source=f"{model.name} {name}, {recipe.name}",
            progress=tell,
        )
        found.append(LayerEnergy(*key, energy))
        if progress:
            progress(done + 1, len(wanted), name)
    return found


def activations_for(x: np.ndarray, pe: str) -> np.ndarray:
    """Activations [m, k] with blocks of zeros where an MX PE's smallest scale is too large.

    Probabilities of attention get below 2**-57; a converter in front of the PE flushes them.
    """
    unit = PES[pe]
    if not isinstance(unit, blocks.BlockUnit):
        return x
    qt = quantize(x, unit.format_name)
    small = np.asarray(qt.group_scales) < unit.scale_range[0]
    return np.where(np.repeat(small, qt.group_size, axis=1)[:, : qt.k], np.float32(0), x)


def _weights(operands: Recorded, recipe: Recipe, pe: str, kv_format: str | None) -> Any:
    """The second operand as the PE gets it: block weights by the recipe, keys, values and the
    output layer in the widest mode of the PE (`operands_for` in `bitwright.sim`)."""
    w = operands.w
    if len(w) > _CHANNELS:
        # Blocks of channels, evenly spaced: quantising all of an output layer takes longer than
        # the rest of a measurement.
        step = len(w) // (_CHANNELS // tile_energy.EDGE)
        starts = np.arange(0, len(w) - tile_energy.EDGE, step)
        w = w[(starts[:, None] + np.arange(tile_energy.EDGE)).reshape(-1)]
    if operands.product not in ("attn.scores", "attn.values", "lm_head"):
        return quantise_for(w, recipe, pe)
    own = operands.product != "lm_head" and kv_format not in (None, "fp16")
    if own:
        fmt = pick(FORMATS, str(kv_format), "kv_format")
        return quantise_for(w, Recipe(format=fmt.name, group_size=fmt.block or 128), pe)
    for name in (None, "int8-sym", recipe.format):
        wide = Recipe(format=name)
        try:
            PES[pe].step_cycles(wide.format_obj)
        except InputError:
            continue
        return quantise_for(w, wide, pe)
    raise AssertionError("the recipe's own format runs")


def quantise_for(w: np.ndarray, recipe: Recipe, pe: str) -> "np.ndarray | QuantizedTensor":
    """Weights [n, k] as a PE gets them under a recipe."""
    recipe.require_codes()
    if recipe.format is None:
        return w
    # The bit-serial PE's scale unit takes 8-bit scales whatever the recipe stores.
    scale = "int8" if pe == "bitmod" else recipe.scale_format
    return quantize(w, recipe.format, recipe.group_size or w.shape[1], scale)


# ------------------------------------------------------------------ for a simulation


def logic_energy(
    model: str | LanguageModel,
    recipe: Recipe | str,
    pe: str,
    technology: Technology,
    *,
    clock_ps: float | None = None,
    voltage: float | None = None,
    layers: int = LAYERS,
    seed: int = 0,
    kv_format: str | None = None,
    post_layout: float = 1.0,
    progress: Progress | None = None,
) -> LogicEnergy:
    """Energy of every product of a model, as `simulate` takes it.

    Cached by model, recipe, PE, technology and the code that measures: a second run loads nothing.

    Args:
        model: Its name or path, or the model itself.
        recipe: Of the block weights.
        pe: Name in `PES`.
        technology: The cells.
        clock_ps: Period that mapping aims at; None: the technology's.
        voltage: Supply; None: the technology's.
        layers: How many layers stand for all.
        seed: Of the sample.
        kv_format: Of keys and values, as for `measure_layers`.
        post_layout: Factor for what layout adds, 1: nothing.
        progress: Called as products are done.

    Raises:
        InputError: As `measure_layers`, or a factor that is not positive.
    """
    recipe = resolve_recipe(recipe)
    if not post_layout > 0:
        raise InputError(f"post_layout is {post_layout:g}; above 0, 1 for no layout at all")
    name, identity = _identity(model)
    key = json.dumps(
        {
            "code": sources_hash("quant", "sim", "rtl", "experiments/energy.py"),
            "model": identity,
            "recipe": recipe.model_dump(),
            "pe": pe,
            "technology": technology.digest,
            "source": technology.source,
            "wires": asdict(wire_load.wire_load(technology)),
            "settings": [clock_ps, voltage, layers, seed, kv_format, TOKENS],
        }
    )
    path = cache_folder("energy") / f"logic-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    answer = _load(path)
    if answer is None:
        loaded = load_model(model) if isinstance(model, str) else model
        hardware = tile_energy.TileHardware(pe, technology, clock_ps, voltage=voltage)
        measured = measure_layers(
            loaded,
            recipe,
            hardware,
            layers=chosen_layers(loaded, layers),
            seed=seed,
            kv_format=kv_format,
            progress=progress,
        )
        answer = join_layers(name, recipe, hardware, measured)
        write_text(path, json.dumps(asdict(answer)))
    return replace(answer, post_layout=post_layout)


@lru_cache(maxsize=4)
def _weights_hash(model: LanguageModel) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in model.config.weight_shapes():
        digest.update(model.weight(name).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _identity(model: str | LanguageModel) -> tuple[str, list[Any]]:
    """A model's name, and what tells it from others without loading it."""
    if isinstance(model, LanguageModel):
        return model.name, [model.name, _weights_hash(model)]
    path = Path(model)
    if not path.exists():
        return model, [model]
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return path.name, [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def join_layers(
    name: str,
    recipe: Recipe,
    hardware: tile_energy.TileHardware,
    measured: Sequence[LayerEnergy],
) -> LogicEnergy:
    """Energies of layers as those of products, each the mean over its layers.

    Args:
        name: Of the model.
        recipe: Of its block weights.
        hardware: That they were measured on.
        measured: By `measure_layers`.
    """
    by_product: dict[str, list[tile_energy.TileEnergy]] = {}
    for one in measured:
        by_product.setdefault(one.product, []).append(one.energy)
    products = {
        product: mean_energy(energies, f"{name} {product}, {len(energies)} layers")
        for product, energies in by_product.items()
    }
    layers = sorted({one.layer for one in measured if one.layer is not None})
    return LogicEnergy(
        products=products,
        leakage_uw=hardware.leakage_uw,
        technology=hardware.technology.name,
        voltage=hardware.voltage,
        clock_ps=hardware.clock_ps,
        wires=hardware.wires.card,
        netlists=hardware.hashes,
        glitches=float(np.mean([one.energy.glitches for one in measured])),
        source=(
            f"netlists of a tile of {hardware.pe} PEs on {hardware.technology.name} at "
            f"{hardware.voltage:g} V, synthesis {hardware.hashes['PE']}, on {name}'s own tensors "
            f"({recipe.name}, {_layers(layers)}, {TOKENS} tokens)"
        ),
    )


def _layers(layers: Sequence[int]) -> str:
    """Which layers were measured, in words."""
    if not layers:
        return "output layer"
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def mean_energy(energies: Sequence[tile_energy.TileEnergy], source: str) -> ProductEnergy:
    """Of a product, from its layers."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(energy, name) for energy in energies]))

    skipped = [energy.skipped_pj for energy in energies if energy.skipped_pj is not None]
    parts: Mapping[str, Any] = energies[0].breakdown
    return ProductEnergy(
        active_pj=mean("active_pj"),
        unused_pj=mean("unused_pj"),
        stalled_pj=mean("stalled_pj"),
        edge_pj=mean("edge_pj"),
        skipped_pj=float(np.mean(skipped)) if skipped else None,
        breakdown={
            part: float(np.mean([sum(energy.breakdown[part].values()) for energy in energies]))
            for part in parts
        },
        half_width=max(energy.half_width for energy in energies),
        source=source,
    )


def _load(path: Path) -> LogicEnergy | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        products = {name: ProductEnergy(**row) for name, row in stored.pop("products").items()}
        return LogicEnergy(products=products, **stored)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def scaled_to(energy: LogicEnergy, from_nm: float, to_nm: float, to_v: float) -> LogicEnergy:
    """The energies carried to another node; every one of them is then labelled scaled.

    Leakage stays what it is: the rule has none.

    Args:
        energy: Measured on a technology.
        from_nm: Its node.
        to_nm: Node wanted.
        to_v: Supply wanted.

    Raises:
        InputError: The rule does not cover a node or a supply.
    """
    ratio = scaling.energy_ratio(from_nm, energy.voltage, to_nm, to_v)
    return replace(
        energy,
        scale=energy.scale * ratio,
        source=(
            f"scaled to {to_nm:g} nm at {to_v:g} V (x {ratio:.3g}, {scaling.RULE}), leakage not "
            f"scaled; from {energy.source}"
        ),
    )
