"""GEMM engines around any PE of the family: generator, host side, checks."""

from .cells import Cells, find_cells
from .check import EngineCheck, EngineReport, check_designs, emit_engine, verify_engine
from .generator import EngineDesign
from .host import EngineWork, prepare
from .instance import instantiate
from .traces import BINS, EngineTrace, random_operands, random_trace

__all__ = [
    "BINS",
    "Cells",
    "EngineCheck",
    "EngineDesign",
    "EngineReport",
    "EngineTrace",
    "EngineWork",
    "check_designs",
    "emit_engine",
    "find_cells",
    "instantiate",
    "prepare",
    "random_operands",
    "random_trace",
    "verify_engine",
]
