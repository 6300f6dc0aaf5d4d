"""What weights in a form of their own cost on hardware: which PE, which products, which energies.

`simulate_passes` runs the products; here they come from a quantised model, and the energy of the
logic from tensors in each product's format. A method's planes are not rounded tensors: their
energies are measured on the model's own weights rounded to nearest in the format of the pass, on
the same netlists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bitwright.quant import (
    FORMATS,
    LINEARS,
    SITE_OF,
    SITES,
    InputError,
    LanguageModel,
    Pass,
    QuantizedModel,
    QuantizedTensor,
    Recipe,
    VectorWork,
)
from bitwright.rtl import Technology
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
    prefill,
    simulate_passes,
)

from .energy import logic_energy

#: Columns that share a scale in tensors that stand for a pass without groups.
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
    if takes is not None and (act is None or act.format != takes.name):
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
    passes: LayerPasses,
    pe: str,
    technology: Technology,
    *,
    voltage: float | None = None,
    layers: int = 1,
    seed: int = 0,
    post_layout: float = 1.0,
) -> dict[str | None, LogicEnergy]:
    """Energy of the logic for every format that passes have; arguments as in `logic_energy`."""
    formats = {one.format for each in passes.values() for layer in each for one in layer}
    return {
        name: logic_energy(
            model,
            _stand_in(name),
            pe,
            technology,
            voltage=voltage,
            layers=layers,
            seed=seed,
            post_layout=post_layout,
        )
        for name in sorted(formats, key=str)
    }


def _stand_in(name: str | None) -> Recipe:
    """What rounds the weights that stand for a pass: groups, unless the format has its own."""
    fixed = name is None or FORMATS[name].block is not None
    return Recipe(format=name, group_size=None if fixed else _GROUP)


def with_sources(energies: Mapping[str | None, LogicEnergy]) -> LogicEnergy:
    """The first of several energies, naming the sources of all; for cards and provenance."""
    first = next(iter(energies.values()))
    return replace(first, source="; ".join(dict.fromkeys(e.source for e in energies.values())))


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
    logic: Mapping[str | None, LogicEnergy] | None = None,
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
