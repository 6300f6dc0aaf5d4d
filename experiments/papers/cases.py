"""Rows that the papers' accuracy tables need beyond those of the accuracy study.

A case is one number format, with an algorithm or without, on one model. Formats that no recipe
names are made here: group scales of fewer bits (BitMoD, Table V), MX-FP3 (Table VI) and other sets
of special values (Table IX). `all_cases` joins them to the study's own, by key.

The rows of the default model ship with the package (`COMMITTED`); this made them:

    bitwright paper bitmod --fresh --out FOLDER
    bitwright paper abq --fresh --out FOLDER
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bitwright.experiments import accuracy_study as study
from bitwright.experiments import assembled
from bitwright.quant import (
    FORMATS,
    Format,
    LanguageModel,
    QuantizedModel,
    QuantizedTensor,
    Recipe,
    quantize,
)

Key = tuple[str, str, str]  #: table, method, weights, as in `StudyRow.key`

COMMITTED = Path(study.__file__).parent / "data" / "papers_smollm2.jsonl"
TABLE = "papers"  #: of the cases here
BASE: Key = (TABLE, "FP16", "FP16")  #: the model as it is


def own(weights: str, method: str = "RTN") -> Key:
    """The key of a case of this file."""
    return TABLE, method, weights


def all_cases(config: study.StudyConfig) -> dict[Key, study.Case]:
    """The study's cases and those of this file, by key."""
    cases = (*study.cases(config), *_cases(config))
    return {case.key: case for case in cases}


def _cases(config: study.StudyConfig) -> list[study.Case]:
    g = config.group_size
    plain: dict[str, str] = {
        # Table I
        "INT4-sym, channel": "w4-int-sym",
        "INT4-asym, channel": "w4-int-asym",
        "FP4, channel": "w4-fp",
        "flint, channel": "w4-flint",
        "INT4-sym": f"w4g{g}-int-sym",
        "flint": f"w4g{g}-flint",
        # Table II
        "INT6-sym": f"w6g{g}-int-sym",
        "INT6-asym": f"w6g{g}-int-asym",
        "E2M3": f"w6g{g}-fp-e2m3",
        "E3M2": f"w6g{g}-fp-e3m2",
        # Table V
        "INT4-asym, INT8 scales": f"w4g{g}-int-asym-s8",
        # Table VI
        "ANT4": f"w4g{g}-ant",
        "OliVe4": f"w4g{g}-olive",
        "MX-FP4": "mxfp4",
        # Table VIII
        **{f"FP{b}-{e.upper()}": f"w{b}g{g}-fp-{e}" for b in (4, 3) for e in ("er", "ea")},
        # Table XII
        "INT8": f"w8g{g}-int-sym",
    }
    cases = [study.Case(*BASE, "fp16", "none")]
    cases += [study.Case(*own(name), recipe, "none") for name, recipe in plain.items()]
    cases += [
        study.Case(
            *own(f"INT4-asym, INT{bits} scales"),
            f"w4g{g}-int-asym-s8",
            "none",
            _every_matrix(_scale_bits(bits, g)),
        )
        for bits in (6, 4, 2)
    ]
    mxfp3 = Format(
        "mxfp3",
        3,
        "levels",
        FORMATS["fp3"].levels,
        scale_format="e8m0",
        block=32,
        source="the levels of fp3 (BitMoD, Table IV) with OCP MX scales",
    )
    cases.append(
        study.Case(*own("MX-FP3"), "mxfp4", "none", _every_matrix(lambda w: quantize(w, mxfp3)))
    )
    for low, high in ((5, 6), (3, 5)):
        format = replace(
            FORMATS["bitmod3"],
            name=f"bitmod3-{low}{high}",
            special_values=(low, -low, high, -high),
            source="BitMoD, Table IX",
        )
        cases.append(
            study.Case(
                *own(f"FP3 with +-{low}, +-{high}"),
                f"w3g{g}-bitmod",
                "none",
                _every_matrix(lambda w, format=format: quantize(w, format, g)),  # type: ignore[misc]
            )
        )
    # Table XI: rotated weights, without the online rotations of QuaRot
    cases += [
        study.Case(
            *own(f"INT{bits}", "QuaRot"), f"w{bits}g{g}-int-asym+hadamard+gptq", study.MATCHED
        )
        for bits in (4, 3)
    ]
    # Table XII
    cases += [
        study.Case(
            *own(label, "SmoothQuant A8"),
            f"w{bits}g{g}a8-{kind}+smoothquant:alpha=0.85",
            study.MATCHED,
        )
        for label, bits, kind in (
            ("INT8", 8, "int-sym"),
            ("INT4", 4, "int-asym"),
            ("BitMoD4", 4, "bitmod"),
            ("INT3", 3, "int-asym"),
            ("BitMoD3", 3, "bitmod"),
        )
    ]
    # ABQ-LLM, Table 4: weights alone, per channel
    cases += [
        study.Case(*own(label, method), head + steps, how)
        for label, head in (
            ("W4A16", "w4-int-asym"),
            ("W3A16", "w3-int-asym"),
            ("W2A16", "w2-int-asym"),
            ("W2*A16", "w2b-int-asym"),
        )
        for method, steps, how in (
            ("without correction", f"+{study.learned('omniquant', config)}", "learn"),
            ("with correction", f"+{study.learned('abq', config)}", "learn"),
        )
    ]
    return cases


def _every_matrix(
    quantise: Callable[[np.ndarray], QuantizedTensor],
) -> Callable[[LanguageModel, Recipe], QuantizedModel]:
    """A model whose block matrices are all quantised by one function."""

    def apply(model: LanguageModel, recipe: Recipe) -> QuantizedModel:
        tensors = {
            name: quantise(model.weight(name).numpy())
            for name, shape in model.config.weight_shapes().items()
            if name.startswith("blocks.") and len(shape) == 2
        }
        return assembled(model, recipe, tensors)

    return apply


def _scale_bits(bits: int, group_size: int) -> Callable[[np.ndarray], QuantizedTensor]:
    """INT4-asym whose group scales are stored in so many bits, as INT8 ones are in 8.

    Codes are chosen with the scales as they are; per row c = max(scale) / (2**bits - 1), and a
    group's scale becomes c * round(scale / c). Unsigned, as the package's INT8 scales are; the
    paper's Eq. 1 is symmetric and would leave one bit less.
    """

    def quantise(w: np.ndarray) -> QuantizedTensor:
        fine = quantize(w, "int4-asym", group_size, "fp16").scales()
        qt = quantize(w, "int4-asym", group_size, "int8")
        unit = (fine.max(axis=1) / np.float32((1 << bits) - 1)).astype(np.float32)
        safe = np.where(unit > 0, unit, np.float32(1))
        steps = np.rint(fine / safe[:, None]).astype(np.uint8)
        return replace(qt, group_scales=steps, channel_scales=unit)

    return quantise
