"""The zoo's table on the default model: the rows that ship with the package.

    bitwright codesign --recipes zoo --model smollm2 --out DIR
    python -P -m bitwright.experiments.zoo_table DIR/results.json experiments/data/zoo_smollm2.jsonl

The first command measures (it goes on where it was interrupted), the second keeps of every record
what the table and the figure show, with its calibration, the card of its simulation and what made
it. Records of several runs may be joined: `zoo_rows` of each, a file's lines one after the other.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bitwright.quant import InputError, output_folder, write_text

from .codesigning import bits_figure
from .figures import save_figure
from .zoo import ZOO, ZooEntry

#: Rows of the zoo on the default model, as the commands above made them.
COMMITTED = Path(__file__).parent / "data" / "zoo_smollm2.jsonl"

#: Of a phase: what a row keeps.
_PHASE = ("latency_s", "dram_bytes", "energy_uJ")
#: Of the run: what every row says of how it was made.
_MADE_BY = (
    "model",
    "model_source",
    "text",
    "calibration_text",
    "tokens",
    "window",
    "prefill_tokens",
    "context",
    "technology",
    "clock_ps",
    "comparison",
    "seed",
    "bitwright",
    "commit",
    "python",
)


@dataclass(frozen=True, slots=True)
class ZooRow:
    """What was measured for a method."""

    recipe: str
    label: str  #: in figures
    nominal_bits: float  #: as the authors count
    bits_per_weight: float  #: all that is stored
    parameters_kept: float  #: of the model's linears; 1 unless the method makes it smaller
    perplexity: float
    pe: str
    area_mm2: float  #: of the array and its SRAM
    prefill: dict[str, Any]  #: latency_s, dram_bytes and energy_uJ by component
    decode: dict[str, Any]  #: the same of one step
    calibration: dict[str, Any] | None  #: None: the method looks at no data
    card: dict[str, Any]  #: what the simulation's numbers rest on
    made_by: dict[str, Any] = field(default_factory=dict)  #: model, texts, sizes, version, commit

    @property
    def entry(self) -> ZooEntry:
        """The method: its paper, and what of it ran."""
        return next(entry for entry in ZOO if entry.recipe == self.recipe)

    def document(self) -> dict[str, Any]:
        """The row with the paper and what of it ran."""
        return {**asdict(self), "source": self.entry.source, "ran": self.entry.ran}


def zoo_rows(document: Mapping[str, Any]) -> list[ZooRow]:
    """The rows of a results.json of the co-design run; recipes that are not the zoo's are left out.

    Raises:
        InputError: It is no results.json of this version, or holds no recipe of the zoo.
    """
    known = {entry.recipe for entry in ZOO}
    try:
        meta = document["meta"]
        made_by = {name: meta[name] for name in _MADE_BY}
        rows = [
            ZooRow(
                **{name: one[name] for name in ("recipe", "label", "nominal_bits")},
                **{name: one[name] for name in ("bits_per_weight", "parameters_kept")},
                **{name: one[name] for name in ("perplexity", "pe", "area_mm2")},
                prefill={name: one["prefill"][name] for name in _PHASE},
                decode={name: one["decode"][name] for name in _PHASE},
                calibration=one["calibration"],
                card=meta["card"][one["recipe"]],
                made_by=made_by,
            )
            for one in document["records"]
            if one["recipe"] in known
        ]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"no results.json of a co-design run of this version: {error} is missing; make one "
            "with bitwright codesign --recipes zoo"
        ) from None
    if not rows:
        raise InputError("it holds no recipe of the zoo; make it with codesign --recipes zoo")
    return rows


def write_rows(rows: Iterable[ZooRow], path: Path) -> None:
    """A JSON line per row."""
    write_text(path, "".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows))


def read_zoo_rows(path: Path = COMMITTED) -> list[ZooRow]:
    """Rows of a file that `write_rows` wrote, in the order of the zoo.

    Raises:
        InputError: The file cannot be read, or holds a line that is no row of the zoo.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    order = {entry.recipe: place for place, entry in enumerate(ZOO)}
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = ZooRow(**json.loads(line))
        except (ValueError, TypeError):
            raise InputError(f"{path}, line {number} is no row of the zoo; remove it") from None
        if row.recipe not in order:
            raise InputError(f"{path}, line {number}: {row.recipe} is not in the zoo; remove it")
        rows.append(row)
    return sorted(rows, key=lambda row: order[row.recipe])


def write_bits_figure(rows: Sequence[ZooRow], out: str | Path) -> dict[str, Path]:
    """bits.png and bits.svg in a folder: perplexity against true bits and against energy.

    Raises:
        InputError: The folder cannot be written.
    """
    figure = bits_figure(rows[0].made_by, [asdict(row) for row in rows])
    return save_figure(figure, output_folder(out) / "bits", ("png", "svg"))


def _main(arguments: Sequence[str]) -> None:
    if len(arguments) != 2:
        raise InputError(
            f"{len(arguments)} arguments; give two: the results.json of codesign --recipes zoo, "
            "and the file for its rows"
        )
    source, target = map(Path, arguments)
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {source}: {error}") from None
    try:
        rows = zoo_rows(document)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    write_rows(rows, target)


if __name__ == "__main__":
    try:
        _main(sys.argv[1:])
    except InputError as mistake:
        print(f"zoo_table: {mistake}", file=sys.stderr)
        sys.exit(2)
