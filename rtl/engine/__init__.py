"""GEMM engines around any PE of the family: generator, host side, checks."""

from .cells import BitmodCells, Cells, find_cells
from .check import EngineCheck, EngineReport, check_designs, emit_engine, verify_engine
from .column_unit import column_unit_block, operand_register_block
from .generator import EngineDesign
from .host import EngineWork, Operands, engine_operands, prepare
from .instance import instantiate
from .traces import BINS, EngineTrace, random_operands, random_trace

__all__ = [
    "BINS",
    "BitmodCells",
    "Cells",
    "EngineCheck",
    "EngineDesign",
    "EngineReport",
    "EngineTrace",
    "EngineWork",
    "Operands",
    "check_designs",
    "column_unit_block",
    "emit_engine",
    "engine_operands",
    "find_cells",
    "instantiate",
    "operand_register_block",
    "prepare",
    "random_operands",
    "random_trace",
    "verify_engine",
]
