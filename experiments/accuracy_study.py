"""Accuracy of the papers' algorithms on one model: three tables, and the papers' orderings checked.

The tables are those that the BitMoD, dINT and ABQ-LLM papers report, remade on the model at hand:
algorithms x number formats at 3 and 4 bits; W4A8 with every combination of scale search and GPTQ;
and WxAy with and without ABQ-LLM's distribution correction and bit balance. What each paper says of
the order of its rows is checked one by one (`CLAIMS`).

Every finished row is appended to a file, so that an interrupted study goes on where it was.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import bitwright
from bitwright.quant import (
    Calibration,
    InputError,
    LanguageModel,
    Progress,
    QuantizedModel,
    Recipe,
    Text,
    apply_recipe,
    kl_and_top1,
    load_calibration_text,
    load_text,
    output_folder,
    resolve_recipe,
    write_text,
)

from .provenance import commit

#: Rows of the study of the default model, as the command made them.
COMMITTED = Path(__file__).parent / "data" / "accuracy_smollm2.jsonl"
#: Calibration without SLAC: long sequences, as the papers use them; and matched to the task.
LONG, MATCHED = "long", "matched"


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """How much is calibrated, trained and read."""

    window: int = 512  #: of the perplexity, and the sequence length of matched calibration
    tokens: int = 2048  #: to read
    calibration_tokens: int = 4096
    long_length: int = 2048  #: sequence length of calibration without SLAC
    learn_length: int = 256  #: sequence length of learned methods
    learn_sequences: int = 8
    learn_epochs: int = 4
    learn_batch: int = 1
    #: Learning rates of scales and of clipping: larger than the papers', for far fewer steps.
    scale_rate: float = 0.02
    clip_rate: float = 0.05
    group_size: int = 64  #: of the first table; the others have one group per row
    seed: int = 0

    def calibration(self, how: str) -> Calibration:
        """The calibration of a row: "long", "matched" or "learn"."""
        if how == "learn":
            return Calibration(
                sequences=self.learn_sequences, length=self.learn_length, seed=self.seed
            )
        length = self.long_length if how == LONG else self.window
        count = max(1, self.calibration_tokens // length)
        return Calibration(sequences=count, length=length, seed=self.seed)


@dataclass(frozen=True, slots=True)
class Case:
    """One row: a recipe under a calibration."""

    table: str  #: "bitmod", "dint" or "abq"; "papers": of `experiments/papers/cases.py`
    method: str  #: as the papers call it
    weights: str  #: number format, as the papers call it
    recipe: str
    calibration: str  #: "none", "long", "matched" or "learn"
    #: Quantises where no recipe says it; `recipe` is then the nearest one.
    special: Callable[[LanguageModel, Recipe], QuantizedModel] | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.table, self.method, self.weights


@dataclass(frozen=True, slots=True)
class StudyRow:
    """What was measured for a case."""

    table: str
    method: str
    weights: str
    recipe: str
    perplexity: float
    kl: float  #: mean KL divergence from the unquantised model, nats per token
    top1: float  #: fraction of tokens where both models' first choices agree
    bits_per_weight: float  #: true bits
    calibration: dict[str, Any] | None
    seconds: float  #: of quantising
    notes: int  #: lines that the run noted (blocks restored, dead channels, ...)
    made_by: dict[str, Any] = field(default_factory=dict)  #: model, texts, sizes, version, commit

    @property
    def key(self) -> tuple[str, str, str]:
        return self.table, self.method, self.weights


def cases(config: StudyConfig) -> tuple[Case, ...]:
    """All rows, in the order of the tables."""
    return (*_bitmod(config), *_dint(), *_abq(config))


def _bitmod(config: StudyConfig) -> list[Case]:
    learn = learned("omniquant", config)
    methods = [("RTN", "", "none"), ("AWQ", "+awq", MATCHED)]
    methods += [("GPTQ", "+gptq", MATCHED), ("OmniQuant", f"+{learn}", "learn")]
    return [
        Case("bitmod", method, f"{label}{bits}", f"w{bits}g{config.group_size}-{kind}{steps}", how)
        for bits in (4, 3)
        for label, kind in (("INT", "int-asym"), ("FP", "fp"), ("BitMoD", "bitmod"))
        for method, steps, how in methods
    ]


def _dint() -> list[Case]:
    methods = [
        ("plain", "", "none"),
        ("SmoothQuant", "+smoothquant", LONG),
        ("AWQ", "+awq", LONG),
        ("AQAS", "+aqas:grid=10", LONG),
        ("AQAS+SLAC", "+aqas:grid=10", MATCHED),
        ("AQAS+SLAC+GPTQ", "+aqas:grid=10+gptq", MATCHED),
    ]
    formats = [("INT4", "w4a8-int-asym"), ("FP4", "w4a8-fp"), ("dINT4", "w4a8-dint-asym")]
    return [
        Case("dint", method, label, head + steps, how)
        for label, head in formats
        for method, steps, how in methods
    ]


def _abq(config: StudyConfig) -> list[Case]:
    methods = [
        ("RTN", "", "none"),
        ("without correction", f"+{learned('omniquant', config)}", "learn"),
        ("with correction", f"+{learned('abq', config)}", "learn"),
    ]
    return [
        Case("abq", method, label, head + steps, how)
        for label, head in (
            ("W2A8", "w2-int-asym+a8-asym"),
            ("W2*A8", "w2b-int-asym+a8-asym"),
            ("W4A4", "w4-int-asym+a4-asym"),
            ("W6A6", "w6-int-asym+a6-asym"),
            ("W3A8", "w3-int-asym+a8-asym"),
        )
        for method, steps, how in methods
    ]


def learned(name: str, config: StudyConfig) -> str:
    return (
        f"{name}:sequences={config.learn_sequences},epochs={config.learn_epochs},"
        f"batch={config.learn_batch},scale_rate={config.scale_rate},clip_rate={config.clip_rate}"
    )


# ------------------------------------------------------------------ measuring


class Reference:
    """The unquantised model on a text, kept so that every row is compared with the same.

    Args:
        model: It.
        text: What to read.
        window: Context length.
        tokens: To read; whole windows.
    """

    def __init__(self, model: LanguageModel, text: Text, window: int, tokens: int) -> None:
        ids = model.tokenizer.encode(text.content)
        count = min(len(ids), tokens) // window
        if count < 1:
            raise InputError(
                f"{text.name} has {len(ids)} tokens, less than one window of {window}; use a "
                "longer text or a shorter window"
            )
        self.model, self.text = model, text
        self.ids = torch.tensor(ids[: count * window], dtype=torch.int64).view(count, window)
        self.hidden = self._hidden(model, None, None)

    def _hidden(self, model: LanguageModel, linear: Any, cache: Any) -> torch.Tensor:
        step = max(1, 2048 // self.ids.shape[1])
        with torch.no_grad():
            return torch.cat(
                [model.hidden(part, linear, cache=cache) for part in self.ids.split(step)]
            )

    def measure(self, quantized: QuantizedModel) -> tuple[float, float, float]:
        """Perplexity, KL divergence and top-1 agreement of a quantised model."""
        hidden = self._hidden(quantized.model, quantized.linear(), quantized.cache())
        nll, kl, same, count = 0.0, 0.0, 0, 0
        with torch.no_grad():
            for row, ours, theirs in zip(self.ids, hidden, self.hidden, strict=True):
                logits = quantized.model.head(ours[:-1])
                losses = F.cross_entropy(logits, row[1:], reduction="none")
                nll += losses.to(torch.float64).sum().item()
                divergence, agree = kl_and_top1(self.model.head(theirs[:-1]), logits)
                kl += float(divergence.sum())
                same += int(agree.sum())
                count += len(row) - 1
        mean = torch.tensor(nll / count, dtype=torch.float64)
        return float(mean.exp()), kl / count, same / count


def run_study(
    model: LanguageModel,
    out: Path,
    config: StudyConfig,
    tables: Sequence[str] = ("bitmod", "dint", "abq"),
    text: Text | None = None,
    calibration_text: Text | None = None,
    progress: Progress | None = None,
    only: Sequence[Case] | None = None,
) -> list[StudyRow]:
    """Measure every case of some tables; rows that `out` already has are not made again.

    Args:
        model: The float model.
        out: Folder; rows go to rows.jsonl as they are finished.
        config: Sizes.
        tables: Which.
        text: To read; None for the default text.
        calibration_text: None for the default calibration text.
        progress: Called as work goes on.
        only: These cases instead of those of `tables`.

    Raises:
        InputError: An unknown table, a text too short, or rows of another study in `out`.
    """
    unknown = [table for table in tables if table not in ("bitmod", "dint", "abq")]
    if unknown:
        raise InputError(f"table {unknown[0]!r} is unknown; choose bitmod, dint, abq or all")
    text = load_text() if text is None else text
    calibration_text = load_calibration_text() if calibration_text is None else calibration_text
    made_by = {
        "model": model.name,
        "text": text.name,
        "calibration_text": calibration_text.name,
        "config": asdict(config),
        "bitwright": bitwright.__version__,
    }
    path = output_folder(out) / "rows.jsonl"
    done = {row.key: row for row in read_rows(path)} if path.exists() else {}
    for row in done.values():
        found = {key: value for key, value in row.made_by.items() if key != "commit"}
        if found != made_by:
            wrong = next(key for key in made_by if found.get(key) != made_by[key])
            raise InputError(
                f"{path} holds rows of a study with another {wrong}; choose another --out"
            )
    wanted = [case for case in cases(config) if case.table in tables] if only is None else only
    reference: Reference | None = None
    rows: list[StudyRow] = []
    for number, case in enumerate(wanted):
        if case.key not in done:
            if reference is None:
                reference = Reference(model, text, config.window, config.tokens)
            row = _measure(case, model, reference, config, calibration_text, made_by)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
            done[case.key] = row
        rows.append(done[case.key])
        if progress:
            progress(number + 1, len(wanted), f"{case.table}: {case.weights} {case.method}")
    return rows


def _measure(
    case: Case,
    model: LanguageModel,
    reference: Reference,
    config: StudyConfig,
    calibration_text: Text,
    made_by: dict[str, Any],
) -> StudyRow:
    calibration = None if case.calibration == "none" else config.calibration(case.calibration)
    recipe = resolve_recipe(case.recipe)
    start = time.monotonic()
    if case.special is not None:
        quantized = case.special(model, recipe)
    else:
        quantized = apply_recipe(model, recipe, calibration=calibration, text=calibration_text)
    seconds = time.monotonic() - start
    perplexity, kl, top1 = reference.measure(quantized)
    return StudyRow(
        *case.key,
        recipe.name,
        perplexity,
        kl,
        top1,
        quantized.bits_per_weight,
        None if calibration is None else calibration.model_dump(),
        round(seconds, 1),
        len(quantized.notes),
        {**made_by, "commit": commit()},
    )


def read_rows(path: Path) -> list[StudyRow]:
    """Rows of a file that `run_study` wrote; half a last line, of a killed run, is left out.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    rows: list[StudyRow] = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            path.write_text("".join(lines[:-1]), encoding="utf-8")
            break
        try:
            rows.append(StudyRow(**json.loads(line)))
        except (ValueError, TypeError):
            raise InputError(f"{path}, line {number} is no row of a study; remove it") from None
    return rows


# ------------------------------------------------------------------ what the papers say


@dataclass(frozen=True, slots=True)
class Claim:
    """An ordering that a paper reports."""

    table: str
    source: str
    says: str
    #: Pairs (better, worse) of rows, each (method, weights): all must hold.
    pairs: tuple[tuple[tuple[str, str], tuple[str, str]], ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A claim beside this model's numbers."""

    claim: Claim
    holds: int  #: pairs in the papers' order
    numbers: str  #: perplexities, better < worse

    @property
    def reproduced(self) -> bool:
        return self.holds == len(self.claim.pairs)


def _pairs(*pairs: tuple[str, str, str, str]) -> Any:
    return tuple(((a, b), (c, d)) for a, b, c, d in pairs)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "bitmod",
        "BitMoD, Table VI",
        "4 bits: BitMoD below asymmetric integers",
        _pairs(("RTN", "BitMoD4", "RTN", "INT4")),
    ),
    Claim(
        "bitmod",
        "BitMoD, Table VI",
        "3 bits: BitMoD below asymmetric integers",
        _pairs(("RTN", "BitMoD3", "RTN", "INT3")),
    ),
    Claim(
        "bitmod",
        "BitMoD, Tables VI and VIII",
        "BitMoD below the plain floating-point types it extends",
        _pairs(("RTN", "BitMoD4", "RTN", "FP4"), ("RTN", "BitMoD3", "RTN", "FP3")),
    ),
    Claim(
        "bitmod",
        "BitMoD, Tables VI and VIII",
        "3 bits: asymmetric integers below plain FP3",
        _pairs(("RTN", "INT3", "RTN", "FP3")),
    ),
    *(
        Claim(
            "bitmod",
            "BitMoD, Tables VI and XI",
            f"{method} lowers the perplexity of BitMoD at 4 and 3 bits",
            _pairs(*((method, f"BitMoD{b}", "RTN", f"BitMoD{b}") for b in (4, 3))),
        )
        for method in ("AWQ", "OmniQuant")
    ),
    *(
        Claim(
            "bitmod",
            "BitMoD, Table XI",
            f"{method} with BitMoD below {method} with integers",
            _pairs(*((method, f"BitMoD{b}", method, f"INT{b}") for b in (4, 3))),
        )
        for method in ("AWQ", "OmniQuant")
    ),
    Claim(
        "bitmod",
        "BitMoD, Table XI",
        "3-bit integers: AWQ below GPTQ",
        _pairs(("AWQ", "INT3", "GPTQ", "INT3")),
    ),
    Claim(
        "bitmod",
        "BitMoD, Table XI",
        "3-bit BitMoD: OmniQuant below AWQ",
        _pairs(("OmniQuant", "BitMoD3", "AWQ", "BitMoD3")),
    ),
    Claim(
        "dint",
        "dINT (EMNLP 2023), abstract and section on dINT",
        "dINT4 below INT4 at W4A8, by fewer weights rounded to zero",
        _pairs(*((m, "dINT4", m, "INT4") for m in ("plain", "AQAS+SLAC", "AQAS+SLAC+GPTQ"))),
    ),
    Claim(
        "dint",
        "dINT (EMNLP 2023), AQAS",
        "AQAS below SmoothQuant and below AWQ with dINT4",
        _pairs(
            ("AQAS", "dINT4", "SmoothQuant", "dINT4"),
            ("AQAS", "dINT4", "AWQ", "dINT4"),
        ),
    ),
    Claim(
        "dint",
        "dINT (EMNLP 2023), SLAC",
        "calibration of the task's length helps AQAS on Llama models",
        _pairs(*(("AQAS+SLAC", f, "AQAS", f) for f in ("INT4", "FP4", "dINT4"))),
    ),
    Claim(
        "dint",
        "dINT (EMNLP 2023), pipeline",
        "AQAS, SLAC, dINT4 and GPTQ together are the best of the table",
        _pairs(
            *(
                ("AQAS+SLAC+GPTQ", "dINT4", m, f)
                for f in ("INT4", "FP4", "dINT4")
                for m in ("plain", "SmoothQuant", "AWQ", "AQAS", "AQAS+SLAC", "AQAS+SLAC+GPTQ")
                if (m, f) != ("AQAS+SLAC+GPTQ", "dINT4")
            )
        ),
    ),
    *(
        Claim(
            "abq",
            "ABQ-LLM, Table 2",
            f"{w}: distribution correction below OmniQuant",
            _pairs(("with correction", w, "without correction", w)),
        )
        for w in ("W6A6", "W4A4", "W2A8")
    ),
    Claim(
        "abq",
        "ABQ-LLM, Table 2",
        "bit balance: W2*A8 below W2A8",
        _pairs(("with correction", "W2*A8", "with correction", "W2A8")),
    ),
    Claim(
        "abq",
        "ABQ-LLM, Table 2",
        "W6A6 below W4A4 below W2A8 (7B models)",
        _pairs(
            ("with correction", "W6A6", "with correction", "W4A4"),
            ("with correction", "W4A4", "with correction", "W2A8"),
        ),
    ),
    Claim(
        "abq",
        "ABQ-LLM, Table 2",
        "W2*A8 below W4A4",
        _pairs(("with correction", "W2*A8", "with correction", "W4A4")),
    ),
)


def check_claims(rows: Sequence[StudyRow]) -> list[Verdict]:
    """Every claim whose rows are all there, beside the numbers."""
    found = {row.key: row.perplexity for row in rows}
    verdicts = []
    for claim in CLAIMS:
        values = [tuple(found.get((claim.table, *place)) for place in pair) for pair in claim.pairs]
        if any(value is None for pair in values for value in pair):
            continue
        holds = sum(better < worse for better, worse in values)  # type: ignore[operator]
        numbers = ", ".join(
            f"{show_perplexity(better)} {'<' if better < worse else '>='} {show_perplexity(worse)}"  # type: ignore[operator]
            for better, worse in values[:4]
        )
        if len(values) > 4:
            numbers += f", ... ({holds} of {len(values)})"
        verdicts.append(Verdict(claim, holds, numbers))
    return verdicts


def show_perplexity(perplexity: float | None) -> str:
    """Two decimals, or three digits where it is large."""
    assert perplexity is not None
    return f"{perplexity:.2f}" if perplexity < 1000 else f"{perplexity:.3g}"


def write_study(rows: Sequence[StudyRow], out: Path) -> list[Path]:
    """accuracy.json and accuracy.csv in a folder."""
    import csv
    import io

    verdicts = [
        {
            "table": v.claim.table,
            "source": v.claim.source,
            "says": v.claim.says,
            "reproduced": v.reproduced,
            "numbers": v.numbers,
        }
        for v in check_claims(rows)
    ]
    folder = output_folder(out)
    document = {"rows": [asdict(row) for row in rows], "claims": verdicts}
    write_text(folder / "accuracy.json", json.dumps(document, indent=1) + "\n")
    buffer = io.StringIO()
    names = [n for n in StudyRow.__dataclass_fields__ if n not in ("calibration", "made_by")]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    write_text(folder / "accuracy.csv", buffer.getvalue())
    return [folder / "accuracy.json", folder / "accuracy.csv"]
