"""The jobs that join everything: evaluation through the PE, co-design, papers, benchmarks."""

from typing import TYPE_CHECKING

from bitwright.lazy import lazy_exports

if TYPE_CHECKING:
    from . import energy_study, opensta
    from .benchmark import bench, bench_document
    from .calibration import NOT_MODELLED, CalibrationCard, logic_card, simulation_card
    from .codesigning import (
        Codesign,
        CodesignConfig,
        codesign,
        default_recipes,
        pareto,
        write_results,
    )
    from .energy import (
        LayerEnergy,
        chosen_layers,
        join_layers,
        logic_energy,
        measure_layers,
        quantise_for,
        scaled_to,
    )
    from .evaluation import Arithmetic, Evaluation, PELinear, evaluate
    from .figures import (
        energy_bars,
        energy_parts,
        latency_bars,
        latency_parts,
        peak_ops_per_s,
        roofline,
        save_figure,
        write_figures,
    )
    from .papers import PAPERS, Rebuilt, ShownTable, find_paper, write_paper
    from .provenance import commit
    from .quantities import numbers, simulation_provenance, source_of
    from .recording import Recorded, layer_product, record

_HOME = {
    "peak_ops_per_s": "figures",
    "latency_parts": "figures",
    "energy_parts": "figures",
    "write_figures": "figures",
    "save_figure": "figures",
    "roofline": "figures",
    "latency_bars": "figures",
    "energy_bars": "figures",
    "Arithmetic": "evaluation",
    "Codesign": "codesigning",
    "CodesignConfig": "codesigning",
    "Evaluation": "evaluation",
    "PAPERS": "papers",
    "PELinear": "evaluation",
    "Rebuilt": "papers",
    "Recorded": "recording",
    "ShownTable": "papers",
    "bench": "benchmark",
    "bench_document": "benchmark",
    "codesign": "codesigning",
    "commit": "provenance",
    "default_recipes": "codesigning",
    "evaluate": "evaluation",
    "find_paper": "papers",
    "layer_product": "recording",
    "opensta": "opensta",
    "simulation_card": "calibration",
    "source_of": "quantities",
    "simulation_provenance": "quantities",
    "numbers": "quantities",
    "logic_card": "calibration",
    "CalibrationCard": "calibration",
    "NOT_MODELLED": "calibration",
    "scaled_to": "energy",
    "energy_study": "energy_study",
    "join_layers": "energy",
    "quantise_for": "energy",
    "measure_layers": "energy",
    "logic_energy": "energy",
    "chosen_layers": "energy",
    "LayerEnergy": "energy",
    "pareto": "codesigning",
    "record": "recording",
    "write_paper": "papers",
    "write_results": "codesigning",
}

__all__ = [
    "peak_ops_per_s",
    "latency_parts",
    "energy_parts",
    "write_figures",
    "save_figure",
    "roofline",
    "latency_bars",
    "energy_bars",
    "PAPERS",
    "Arithmetic",
    "Codesign",
    "CodesignConfig",
    "Evaluation",
    "PELinear",
    "Rebuilt",
    "Recorded",
    "ShownTable",
    "bench",
    "bench_document",
    "codesign",
    "commit",
    "default_recipes",
    "evaluate",
    "find_paper",
    "layer_product",
    "opensta",
    "simulation_card",
    "source_of",
    "simulation_provenance",
    "numbers",
    "logic_card",
    "CalibrationCard",
    "NOT_MODELLED",
    "scaled_to",
    "energy_study",
    "join_layers",
    "quantise_for",
    "measure_layers",
    "logic_energy",
    "chosen_layers",
    "LayerEnergy",
    "pareto",
    "record",
    "write_paper",
    "write_results",
]

__getattr__ = lazy_exports(__name__, _HOME)
