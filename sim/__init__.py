"""Processing element models, arrays, memories, workloads and their cost.

`PES` holds the processing elements; `simulate_model` runs a language model on an accelerator.
"""

from typing import TYPE_CHECKING

from bitwright.lazy import lazy_exports

if TYPE_CHECKING:
    from .accelerator import (
        Accelerator,
        Area,
        LayerResult,
        Operand,
        PEArea,
        SimulationResult,
        default_accelerator,
        fetches,
        gemm_cycles,
        simulate,
        simulate_model,
    )
    from .memory import DRAM, DRAMS, SRAMBank, find_dram, sram
    from .pe import PE, PES, bitmod, fp16
    from .presets import PRESETS, find_preset, port_bits, simulate_published
    from .workloads import (
        SHAPES,
        Gemm,
        ModelShape,
        Workload,
        decode,
        load_shape,
        prefill,
        read_gemms,
    )

_HOME = {
    "Accelerator": "accelerator",
    "Area": "accelerator",
    "LayerResult": "accelerator",
    "Operand": "accelerator",
    "PEArea": "accelerator",
    "SimulationResult": "accelerator",
    "default_accelerator": "accelerator",
    "fetches": "accelerator",
    "gemm_cycles": "accelerator",
    "simulate": "accelerator",
    "simulate_model": "accelerator",
    "DRAM": "memory",
    "DRAMS": "memory",
    "SRAMBank": "memory",
    "find_dram": "memory",
    "sram": "memory",
    "PE": "pe",
    "PES": "pe",
    "bitmod": "pe.bitmod",
    "fp16": "pe.fp16",
    "PRESETS": "presets",
    "find_preset": "presets",
    "port_bits": "presets",
    "simulate_published": "presets",
    "Gemm": "workloads",
    "ModelShape": "workloads",
    "SHAPES": "workloads",
    "Workload": "workloads",
    "decode": "workloads",
    "load_shape": "workloads",
    "prefill": "workloads",
    "read_gemms": "workloads",
}

__all__ = [
    "DRAM",
    "DRAMS",
    "PE",
    "PES",
    "PRESETS",
    "SHAPES",
    "Accelerator",
    "Area",
    "Gemm",
    "LayerResult",
    "ModelShape",
    "Operand",
    "PEArea",
    "SRAMBank",
    "SimulationResult",
    "Workload",
    "bitmod",
    "decode",
    "default_accelerator",
    "fetches",
    "find_dram",
    "find_preset",
    "fp16",
    "gemm_cycles",
    "load_shape",
    "port_bits",
    "prefill",
    "read_gemms",
    "simulate",
    "simulate_model",
    "simulate_published",
    "sram",
]

__getattr__ = lazy_exports(__name__, _HOME)
