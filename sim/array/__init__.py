"""One array: the engine's model cycle by cycle, its closed form, its jobs, terms left out."""

from . import closed_form, jobs
from .model import (
    COUNT_BITS,
    ArrayConfig,
    ArrayReference,
    ArrayRun,
    Job,
    Outputs,
    Ports,
    State,
    run_array,
    run_reference,
)

__all__ = [
    "COUNT_BITS",
    "ArrayConfig",
    "ArrayReference",
    "ArrayRun",
    "Job",
    "Outputs",
    "Ports",
    "State",
    "closed_form",
    "jobs",
    "run_array",
    "run_reference",
]
