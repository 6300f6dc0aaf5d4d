"""RTL of the processing elements: generators, Verilog, verification, synthesis.

Start with `emit` (Verilog, bench and vectors to a folder), `verify` and `synthesise`.
"""

from typing import TYPE_CHECKING

from bitwright.lazy import lazy_exports

if TYPE_CHECKING:
    from . import (
        bench_runs,
        bulk,
        comparison,
        coverage,
        emission,
        engine,
        formal,
        liberty,
        mutation,
        mutation_check,
        mutation_proof,
        netlist_models,
        pe,
        pe_synthesis,
        technology,
        tools,
        vectors,
        verification,
        verilator,
        yosys,
    )
    from .emission import build, emit, verilog
    from .pe import DESIGNS, Design, find_design
    from .pe_synthesis import PESynthesis, synthesise_pe
    from .proving import prove
    from .synth import SynthesisResult, synthesise
    from .technology import Technology, resolve_technology
    from .vectors import (
        ACTIVATION_CORNERS,
        Reference,
        Stream,
        Trace,
        TraceRecorder,
        random_activations,
        random_lengths,
    )
    from .verification import VerifyRow, verify

# Names load when they are first used; synthesis needs no PyRTL, emission no Yosys.
_HOME = {
    "build": "emission",
    "emit": "emission",
    "verilog": "emission",
    "PESynthesis": "pe_synthesis",
    "synthesise_pe": "pe_synthesis",
    "bench_runs": "bench_runs",
    "bulk": "bulk",
    "comparison": "comparison",
    "coverage": "coverage",
    "emission": "emission",
    "engine": "engine",
    "formal": "formal",
    "liberty": "liberty",
    "mutation": "mutation",
    "mutation_check": "mutation_check",
    "mutation_proof": "mutation_proof",
    "pe": "pe",
    "vectors": "vectors",
    "verification": "verification",
    "pe_synthesis": "pe_synthesis",
    "netlist_models": "netlist_models",
    "technology": "technology",
    "tools": "tools",
    "verilator": "verilator",
    "yosys": "yosys",
    "DESIGNS": "pe",
    "Design": "pe",
    "find_design": "pe",
    "prove": "proving",
    "SynthesisResult": "synth",
    "synthesise": "synth",
    "Technology": "technology",
    "resolve_technology": "technology",
    "ACTIVATION_CORNERS": "vectors",
    "Reference": "vectors",
    "Stream": "vectors",
    "Trace": "vectors",
    "TraceRecorder": "vectors",
    "random_activations": "vectors",
    "random_lengths": "vectors",
    "VerifyRow": "verification",
    "verify": "verification",
}

__all__ = [
    "ACTIVATION_CORNERS",
    "DESIGNS",
    "Design",
    "PESynthesis",
    "Reference",
    "Stream",
    "SynthesisResult",
    "Technology",
    "Trace",
    "TraceRecorder",
    "VerifyRow",
    "build",
    "bench_runs",
    "bulk",
    "comparison",
    "coverage",
    "emission",
    "engine",
    "emit",
    "find_design",
    "formal",
    "liberty",
    "mutation",
    "mutation_check",
    "mutation_proof",
    "netlist_models",
    "pe",
    "pe_synthesis",
    "prove",
    "random_activations",
    "random_lengths",
    "resolve_technology",
    "synthesise",
    "synthesise_pe",
    "technology",
    "tools",
    "vectors",
    "verification",
    "verify",
    "verilator",
    "verilog",
    "yosys",
]

__getattr__ = lazy_exports(__name__, _HOME)
