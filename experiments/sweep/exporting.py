"""A sweep's results as JSON, CSV and Parquet, in the order of its points, each file whole or none.

The same rows give the same bytes, however often a sweep was interrupted and whoever computed them.
Whether a point is feasible is decided here, from the constraints on results: the store's rows serve
any sweep that has the same point.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from bitwright.experiments import provenance
from bitwright.quant import InputError, atomic_path, load_text, output_folder
from bitwright.sim import find_dram

from .fields import COLUMNS, KINDS, SETTINGS, Row
from .point import area_source
from .running import Best, Sweep, feasible, label, result_rules
from .store import Store

#: Keys of a record, in order.
KEYS = ("key", "name", "status", "error", *KINDS)
_BATCH = 8192  # rows of Parquet written together

INSTALL_PARQUET = "no results.parquet: pyarrow is missing; pip install 'bitwright[parquet]'"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what a user wants to know of it."""

    files: dict[str, Path]  #: by name
    counts: Counter[str]  #: points by status
    errors: Counter[str]  #: failed points by error
    best: Best


def records(sweep: Sweep, store: Store) -> Iterator[dict[str, Any]]:
    """One flat record per stored point, in order; keys are KEYS."""
    return (record for record, _ in _judged(sweep, store))


def _judged(sweep: Sweep, store: Store) -> Iterator[tuple[dict[str, Any], Row]]:
    rules = result_rules(sweep.spec)
    for _, row in store.rows():
        values = dict(zip(COLUMNS, row, strict=True))
        status = values["status"]
        if status == "ok" and not feasible(rules, row):
            status = "infeasible"
        head = {"key": values["key"], "name": label(sweep, values), "status": status}
        del values["key"], values["status"]
        yield head | values, row  # the columns behind them are in the order of KEYS


def export_sweep(
    sweep: Sweep, store: Store, out: str | Path, command: str | None = None
) -> Exported:
    """Write results.json, results.csv and, where pyarrow is installed, results.parquet.

    Args:
        sweep: The sweep; `store.want(sweep.keys)` was called.
        store: Its rows.
        out: Folder; made if it is missing.
        command: That ran the sweep, for those who want it again; None: none is known.

    Raises:
        InputError: The folder cannot be written, or the disk is full: no file is changed then that
            was not finished.
    """
    folder = output_folder(out)
    names = ["results.json", "results.csv"]
    if find_spec("pyarrow") is not None:
        names.append("results.parquet")
    paths = {name: folder / name for name in names}
    done = Exported(paths, Counter(), Counter(), Best(sweep))
    try:
        with ExitStack() as stack:
            temporary = {n: stack.enter_context(atomic_path(p)) for n, p in paths.items()}
            writers: list[Any] = [
                stack.enter_context(_Json(temporary["results.json"], sweep, command)),
                stack.enter_context(_Csv(temporary["results.csv"])),
            ]
            if "results.parquet" in temporary:
                writers.append(stack.enter_context(_Parquet(temporary["results.parquet"])))
            for record, row in _judged(sweep, store):
                for writer in writers:
                    writer.add(record)
                done.counts[record["status"]] += 1
                if record["error"] is not None:
                    done.errors[record["error"]] += 1
                if record["status"] == "ok":
                    done.best.take(row)
    except OSError as error:
        raise InputError(
            f"cannot write the results to {folder}: {error.strerror or error}; the store keeps all "
            "points, so free some space and give the same command again"
        ) from None
    return done


class _Json:
    """{"meta", "records", "provenance"}, a record a line."""

    def __init__(self, path: Path, sweep: Sweep, command: str | None) -> None:
        self._path, self._sweep, self._command = path, sweep, command
        self._counts: Counter[str] = Counter()
        self._drams: set[str] = set()
        self._areas: set[tuple[str, str]] = set()
        self._first = True

    def __enter__(self) -> "_Json":
        self._file: IO[str] = self._path.open("w", encoding="utf-8")
        self._file.write('{"records": [')
        return self

    def add(self, record: dict[str, Any]) -> None:
        self._counts[record["status"]] += 1
        self._drams.add(record["dram"])
        self._areas.add((record["pe"], record["technology"]))
        self._file.write("\n" if self._first else ",\n")
        self._first = False
        self._file.write(json.dumps(record, allow_nan=False))

    def __exit__(self, kind: Any, *_: object) -> None:
        with self._file:
            if kind is None:
                meta = {**meta_of(self._sweep, self._counts), "command": self._command}
                sources = sources_of(self._sweep, sorted(self._drams), sorted(self._areas))
                self._file.write('\n],\n"meta": ' + json.dumps(meta, indent=1))
                self._file.write(',\n"provenance": ' + json.dumps(sources, indent=1) + "}\n")


class _Csv:
    """A row a point, a column a key; nothing stands for None."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "_Csv":
        self._file = self._path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(KEYS)
        return self

    def add(self, record: dict[str, Any]) -> None:
        self._writer.writerow(record.values())

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Parquet:
    """Columns with their types."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        kinds = {"int": pyarrow.int64(), "float": pyarrow.float64(), "text": pyarrow.string()}
        fields = {**dict.fromkeys(KEYS[:4], "text"), **KINDS}
        self._schema = pyarrow.schema([(name, kinds[kind]) for name, kind in fields.items()])
        self._path = path
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> "_Parquet":
        from pyarrow.parquet import ParquetWriter

        self._writer = ParquetWriter(self._path, self._schema)
        return self

    def add(self, record: dict[str, Any]) -> None:
        self._rows.append(record)
        if len(self._rows) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        self._writer.write_table(pyarrow.Table.from_pylist(self._rows, self._schema))
        self._rows.clear()

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None and self._rows:
            self._flush()
        self._writer.close()


# ------------------------------------------------------------------ what the numbers are


def meta_of(sweep: Sweep, counts: Counter[str]) -> dict[str, Any]:
    """What the records share."""
    spec = sweep.spec
    return {
        "name": spec.name,
        "sweep": spec.model_dump(by_alias=True, exclude_none=True),
        "varied": list(sweep.names),
        "objectives": list(spec.objectives),
        "code": sweep.plan.code,
        "counts": {
            "points": len(sweep),
            **{status: counts[status] for status in ("ok", "failed", "infeasible")},
            "skipped": sweep.skipped,
            "equal": sweep.equal,
        },
        **provenance.provenance(spec.seed),
    }


def sources_of(
    sweep: Sweep, drams: list[str], areas: list[tuple[str, str]]
) -> list[dict[str, str]]:
    """Where every number of the document comes from; the first pattern that fits counts."""
    measure = sweep.spec.measure
    stored = "counted: codes, scales and selectors as stored"
    setting = "a setting of the sweep"
    counted = "counted from the shape and the storage formats"
    array = (
        "closed-form model of the array, equal to the RTL in every clock cycle (bitwright verify "
        "PE --engine)"
    )
    interfaces = [find_dram(name) for name in drams]
    dram = "; ".join(f"{one.name}: {one.source}" for one in interfaces)
    area = "; ".join(f"{pe} on {name}: {area_source(pe, name)}" for pe, name in areas)
    area = area if measure.area else "not asked for"
    logic = "not measured"
    if measure.energy:
        logic = (
            "netlists of a tile of PEs on the tensors of the point's model, or of "
            f"{measure.weights} where it has none ({measure.energy_layers} layers)"
        )
    perplexity = "not measured"
    if measure.accuracy:
        perplexity = (
            f"measured on {load_text(measure.text).name}: {measure.tokens} tokens, windows of "
            f"{measure.window}, no BOS"
        )
    sram = "CACTI 7"
    rows = {
        "meta.counts.*": "counted",
        "meta.*": setting,
        **{f"records[].{name}": setting for name in SETTINGS},
        "records[].bits_per_weight": stored,
        "records[].nominal_bits": stored,
        "records[].perplexity": perplexity,
        "records[].area_mm2": f"PEs: {area}; SRAM: {sram}",
        "records[].*logic_uJ": logic,
        "records[].*sram_uJ": sram,
        "records[].*dram_uJ": dram,
        "records[].*leakage_uJ": f"SRAM: {sram}; PEs: {logic if measure.energy else area}",
        "records[].memory_energy_uJ": f"sum of SRAM ({sram}) and DRAM ({dram})",
        "records[].*energy*": f"sum of logic ({logic}), SRAM ({sram}), DRAM ({dram}), leakage",
        "records[].*_bytes": counted,
        "records[].*": array,
    }
    return [{"quantity": pattern, "source": text} for pattern, text in rows.items()]
