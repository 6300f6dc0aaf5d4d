"""Sweeps: many design points from one file, kept in a store that survives everything.

| file | idea |
| --- | --- |
| fields.py | names of settings and results |
| spec.py | the YAML file and its checks |
| constraints.py | the small language of constraints |
| sampling.py | axes -> points |
| point.py | a point -> its key and its row |
| store.py | rows in SQLite |
| executors.py | this process, processes, a cluster |
| running.py | the loop |
| exporting.py | JSON, CSV, Parquet |
"""

from .executors import (
    Cluster,
    Executor,
    Here,
    Processes,
    connect,
    read_profile,
    slurm,
    slurm_cluster,
)
from .exporting import INSTALL_PARQUET, Exported, export_sweep, records
from .fields import COLUMNS, RESULTS, SETTINGS
from .point import run_chunk
from .running import Best, Sweep, label, plan_sweep, run_sweep
from .spec import Spec, load_sweep, parse_sweep
from .store import Store

__all__ = [
    "COLUMNS",
    "INSTALL_PARQUET",
    "RESULTS",
    "SETTINGS",
    "Best",
    "Cluster",
    "Executor",
    "Exported",
    "Here",
    "Processes",
    "Spec",
    "Store",
    "Sweep",
    "connect",
    "export_sweep",
    "label",
    "load_sweep",
    "parse_sweep",
    "plan_sweep",
    "read_profile",
    "records",
    "run_chunk",
    "run_sweep",
    "slurm",
    "slurm_cluster",
]
