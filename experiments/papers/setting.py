"""How a paper's rows come about: which model, and whether they are measured or shipped.

Rows of the default model ship with the package; those are the raw runs that its tables show.
Another model, another text or `fresh` measures every row that the tables asked for need. Each row
is written as it is finished, so that the same command goes on behind the last one.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bitwright.experiments import accuracy_study as study
from bitwright.quant import (
    InputError,
    LanguageModel,
    Progress,
    cache_folder,
    load_calibration_text,
    load_model,
    load_text,
    output_folder,
)

from . import cases

DEFAULT_MODEL = "smollm2"
_TOKENS, _WINDOW = 2048, 512
_PAPERS_GROUP = 128  #: columns per group in BitMoD


@dataclass(frozen=True, slots=True)
class PaperSetting:
    """What `bitwright paper` was asked for."""

    model: str = DEFAULT_MODEL  #: a name, a GGUF file or a folder, as `load_model` takes it
    out: Path | None = None  #: rows are kept in its folder `runs`; None: in the cache
    fresh: bool = False  #: measure the default model's rows again
    text: Path | None = None  #: UTF-8 text to read; None: the default one
    tokens: int = _TOKENS  #: to read; whole windows count
    window: int = _WINDOW  #: context length
    progress: Progress | None = None

    @property
    def shipped(self) -> bool:
        """Whether the rows are those that ship with the package."""
        plain = self.text is None and (self.tokens, self.window) == (_TOKENS, _WINDOW)
        return self.model == DEFAULT_MODEL and plain and not self.fresh

    def check(self) -> None:
        """Refuse what cannot be measured, before any work.

        Raises:
            InputError: Sizes that do not go together, or `fresh` with no folder for the rows.
        """
        if self.window < 2 or self.tokens < self.window:
            raise InputError(
                f"--tokens {self.tokens} and --window {self.window}: a window has at least 2 "
                "tokens, and at least one window is read"
            )
        if self.fresh and self.out is None:
            raise InputError("--fresh needs --out, a folder for the rows that are measured")

    def loaded(self) -> LanguageModel:
        """The model, loaded once."""
        return _loaded(self.model)

    def config(self) -> study.StudyConfig:
        """Sizes of the runs: those of the accuracy study, groups as in the paper where they fit.

        Groups have 128 columns if that divides every matrix of the model, else 64.
        """
        if self.shipped:
            return study.StudyConfig()
        model = self.loaded()
        context = model.config.context
        if self.window > context:
            raise InputError(
                f"--window {self.window} is longer than the context of {self.model}, {context}; "
                "choose a shorter one"
            )
        shapes = [s for n, s in model.config.weight_shapes().items() if n.startswith("blocks.")]
        even = all(shape[1] % _PAPERS_GROUP == 0 for shape in shapes if len(shape) == 2)
        return study.StudyConfig(
            window=self.window,
            tokens=self.tokens,
            long_length=min(2048, context),
            learn_length=min(256, context),
            group_size=_PAPERS_GROUP if even else 64,
        )

    def rows(self, keys: Iterable[cases.Key]) -> dict[cases.Key, study.StudyRow]:
        """Rows by key; of the shipped ones, those that there are.

        Raises:
            InputError: As `run_study` and `load_model`.
        """
        wanted = list(dict.fromkeys(keys))
        if self.shipped:
            there = shipped_rows()
            return {key: there[key] for key in wanted if key in there}
        config = self.config()
        known = cases.all_cases(config)
        rows = study.run_study(
            self.loaded(),
            self._folder(config),
            config,
            text=load_text(self.text),
            calibration_text=load_calibration_text(None),
            progress=self.progress,
            only=[known[key] for key in wanted],
        )
        return {row.key: row for row in rows}

    def _folder(self, config: study.StudyConfig) -> Path:
        if self.out is not None:
            return output_folder(self.out / "runs")
        digest = hashlib.sha256(repr((config, str(self.text))).encode())
        model = self.loaded()
        for name in model.config.weight_shapes():
            digest.update(model.weight(name).contiguous().numpy().tobytes())
        return cache_folder("papers", digest.hexdigest()[:16])

    def label(self) -> str:
        """The model in a title."""
        fills = ", which fills in for the paper's models" if self.model == DEFAULT_MODEL else ""
        return f"{Path(self.model).name}{fills}"

    def note(self, paper: str, rows: Iterable[study.StudyRow]) -> str:
        """What the rows were measured on, and by which command."""
        by = next(iter(rows)).made_by
        size = by["config"]
        text = (
            f"ours: {by['model']} on {by['text']}, {size['tokens']} tokens in windows of "
            f"{size['window']}"
        )
        if paper == "bitmod":
            text += f"; groups of {size['group_size']}"
        if self.model == DEFAULT_MODEL:
            text += "; its weights come as 4-bit integers (Q4_1)"
        if self.shipped:
            made = f"bitwright paper {paper} --fresh --out FOLDER"
            text += f"; rows that ship with the package, made by: {made}"
        return text


@cache
def shipped_rows() -> dict[cases.Key, study.StudyRow]:
    """Rows of the default model that ship with the package, by key."""
    files = (study.COMMITTED, cases.COMMITTED)
    return {row.key: row for path in files for row in study.read_rows(path)}


@cache
def _loaded(model: str) -> LanguageModel:
    return load_model(model)
