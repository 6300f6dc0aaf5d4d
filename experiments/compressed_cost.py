"""What weights in a form of their own cost on hardware: which PE, which products, which energies.

`simulate_passes` runs the products; here they come from a quantised model, and the energy of the
logic from the codes that the method stores and the inputs that they meet, product by product.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bitwright.quant import (
    FORMATS,
    LINEARS,
    SITE_OF,
    SITES,
    CompressedMatrix,
    InputError,
    LanguageModel,
    Operands,
    Pass,
    QuantizedModel,
    QuantizedTensor,
    Recipe,
    VectorWork,
)
from bitwright.rtl import Technology, tile_energy
from bitwright.sim import (
    PES,
    Accelerator,
    LayerPasses,
    LayerWork,
    LogicEnergy,
    ModelShape,
    PEArea,
    SimulationResult,
    activation_format,
    decode,
    fitting_pe,
    output_rows,
    pass_name,
    prefill,
    simulate_passes,
)

from .energy import TOKENS, activations_for, chosen_layers, logic_energy, mean_energy
from .recording import record

#: Columns that share a scale in weights beside the passes.
_GROUP = 128


def layer_passes(quantized: QuantizedModel) -> LayerPasses:
    """The passes of every linear, layer by layer; a tensor of a format is one pass."""
    passes: dict[str, list[Sequence[Pass]]] = {name: [] for name in LINEARS}
    for block in quantized.blocks:
        for name, tensor in block.tensors.items():
            passes[name].append(_passes(tensor))
    return passes


def _passes(tensor: object) -> Sequence[Pass]:
    if not isinstance(tensor, QuantizedTensor):
        return tensor.passes()  # type: ignore[attr-defined]
    grouped = tensor.group_size if tensor.groups > 1 else None
    bits = tensor.stored_bits
    return (Pass("codes", tensor.n, tensor.k, tensor.format.name, bits, grouped),)


def layer_work(quantized: QuantizedModel) -> LayerWork:
    """The vector unit's work on every linear, layer by layer.

    What is done to inputs alone is counted with the first linear that has them.
    """
    work: dict[str, list[Sequence[VectorWork]]] = {name: [] for name in LINEARS}
    for block in quantized.blocks:
        for name, tensor in block.tensors.items():
            own = () if isinstance(tensor, QuantizedTensor) else tensor.vector_work()
            first = SITES[SITE_OF[name]][0] == name
            work[name].append([one for one in own if first or not one.shared])
    return work


def placed(recipe: Recipe, passes: LayerPasses) -> str:
    """The PE that fits a recipe's passes: the look-up table, the bit-serial PE, or FP16.

    Activations in a block format with a PE of its own (MXFP4, MXINT8, NVFP4) ask for that one.

    Raises:
        InputError: The recipe's activations are not those that this PE takes.
    """
    act = recipe.activations
    pe = act.format if act is not None and act.format in PES else fitting_pe(passes)
    takes = activation_format(pe)
    # A sum over all of a row's inputs has one scale; formats with blocks have theirs in the PE.
    grouped = act is not None and act.granularity == "group" and act.format_obj.block is None
    if takes is not None and (act is None or act.format != takes.name or grouped):
        raise InputError(
            f"recipe {recipe.name} runs on the {pe} PE, which takes 8-bit activations; write "
            f"{recipe.name if act is None else recipe.name.replace(f'+{act.name}', '')}+a8"
        )
    if takes is None and act is not None:
        raise InputError(
            f"recipe {recipe.name} runs on the {pe} PE, which takes FP16 activations; leave "
            f"{act.name} out"
        )
    if act is not None and act.format == pe:
        weights = {one.format for layers in passes.values() for layer in layers for one in layer}
        if weights != {pe}:
            written = ", ".join(sorted(name or "fp16" for name in weights))
            raise InputError(
                f"recipe {recipe.name}: {act.name} runs on the {pe} PE, whose weights are {pe} "
                f"too, not {written}; leave {act.name} out"
            )
    return pe


def pass_energies(
    model: LanguageModel,
    quantized: QuantizedModel,
    pe: str,
    technology: Technology,
    *,
    voltage: float | None = None,
    layers: int = 1,
    seed: int = 0,
    post_layout: float = 1.0,
) -> LogicEnergy:
    """Energy of the logic for every pass, on the method's own codes and what they meet.

    Inputs are those of the unquantised model, as in `logic_energy`, taken to each pass by the
    method (`CompressedMatrix.operands`). A pass that none of the chosen layers has is measured on
    the first layer that has it.

    Args:
        model: The float model.
        quantized: The same with compressed matrices.
        pe: Of `placed`.
        technology: The cells.
        voltage: Supply; None: the technology's.
        layers: How many layers stand for all.
        seed: Of the sample.
        post_layout: Factor for what layout adds, 1: nothing.
    """
    passes = layer_passes(quantized)
    formats = {one.format for each in passes.values() for layer in each for one in layer}
    widest = max(formats, key=lambda name: 16 if name is None else FORMATS[name].bits)
    settings: dict[str, Any] = {"voltage": voltage, "layers": layers, "seed": seed}
    # Attention and the output layer have no pass.
    rest = logic_energy(
        model, _stand_in(widest), pe, technology, **settings, post_layout=post_layout
    )
    measured = _measured_layers(passes, chosen_layers(model, layers))
    hardware = tile_energy.TileHardware(pe, technology, voltage=voltage)
    recorded = record(model, tokens=TOKENS, layers=sorted(measured))
    energies: dict[str, list[tile_energy.TileEnergy]] = {}
    for layer, wanted in measured.items():
        for product in LINEARS:
            inputs = recorded[layer, product][0].x
            operands = _operands(quantized.blocks[layer].tensors[product], inputs)
            for one, (x, w) in zip(passes[product][layer], operands, strict=True):
                name = pass_name(product, one)
                if name in wanted:
                    found = tile_energy.measure(
                        hardware,
                        activations_for(x, pe),
                        _taken(w, pe),
                        seed=seed,
                        source=f"{model.name} {layer}.{name}, {quantized.recipe.name}",
                    )
                    energies.setdefault(name, []).append(found)
    products = {
        name: mean_energy(found, f"{model.name} {name}, {len(found)} layers")
        for name, found in energies.items()
    }
    source = rest.source.replace(f"({_stand_in(widest).name},", f"({quantized.recipe.name},")
    return replace(rest, products={**rest.products, **products}, source=source)


def _measured_layers(passes: LayerPasses, chosen: Sequence[int]) -> dict[int, set[str]]:
    """Layer -> the passes that are measured on it."""
    has: dict[str, list[int]] = {}
    for product, matrices in passes.items():
        for number, matrix in enumerate(matrices):
            for one in matrix:
                has.setdefault(pass_name(product, one), []).append(number)
    measured: dict[int, set[str]] = {}
    for name, layers in has.items():
        for layer in [one for one in chosen if one in layers] or layers[:1]:
            measured.setdefault(layer, set()).add(name)
    return dict(sorted(measured.items()))


def _operands(tensor: QuantizedTensor | CompressedMatrix, x: np.ndarray) -> Operands:
    return ((x, tensor),) if isinstance(tensor, QuantizedTensor) else tensor.operands(x)


def _taken(w: QuantizedTensor | np.ndarray, pe: str) -> QuantizedTensor | np.ndarray:
    """Weights as a PE gets them: the bit-serial PE's scale unit takes 8-bit scales alone."""
    if pe != "bitmod" or not isinstance(w, QuantizedTensor) or w.scale_format == "int8":
        return w
    scales = w.scales()
    channels = (scales.max(axis=1) / np.float32(255)).astype(np.float32)
    ratios = scales / np.where(channels == 0, np.float32(1), channels)[:, None]
    codes = np.clip(np.rint(ratios), 0, 255).astype(np.uint8)
    return replace(w, scale_format="int8", group_scales=codes, channel_scales=channels)


def _stand_in(name: str | None) -> Recipe:
    """What rounds the weights of the products beside the passes."""
    fixed = name is None or FORMATS[name].block is not None
    return Recipe(format=name, group_size=None if fixed else _GROUP)


def simulate_compressed(
    shape: ModelShape,
    recipe: Recipe,
    passes: LayerPasses,
    phase: str,
    *,
    tokens: int,
    context: int,
    accelerator: Accelerator,
    pe_area: PEArea | None = None,
    logic: LogicEnergy | None = None,
    work: LayerWork | None = None,
) -> SimulationResult:
    """A prefill or a decode step of a model under a recipe with matrices in a form of their own.

    Args:
        shape: Of the model.
        recipe: Whose passes they are.
        passes: From `layer_passes`.
        phase: "prefill" or "decode".
        tokens: Of the prefill.
        context: Positions that the decode step attends to.
        accelerator: With the PE of `placed`.
        pe_area: Area of the PE, if known.
        logic: From `pass_energies`; None: it is left out.
        work: From `layer_work`; None: the vector unit has none beside the model's own.
    """
    inputs = activation_format(accelerator.pe) is not None
    shape = output_rows(shape, recipe)
    if phase == "prefill":
        workload = prefill(shape, tokens, quantise_inputs=inputs)
    else:
        workload = decode(shape, context, quantise_inputs=inputs)
    result = simulate_passes(workload, passes, accelerator, pe_area=pe_area, logic=logic, work=work)
    result.config["recipe"] = recipe.name
    return result
