"""PEs beside each other: area per multiply-accumulate, and published values beside ours."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .pe import find_design
from .pe_synthesis import PESynthesis

#: PEs that the others are divided by.
BASELINES = ("int8", "fp16")


@dataclass(frozen=True)
class Published:
    """A published ratio of the areas of two PEs."""

    pe: str
    baseline: str
    ratio: float
    source: str
    why: str  #: what differs between the published number and ours, as far as it is known


_BITMOD_XLSX = "authors' repo yc2367/BitMoD, hardware/PE_Area_Power.xlsx, 28 nm, 1 GHz"
_BITMOD_SIM = "authors' repo BitMoD-HPCA-25, bitmod_sim, 28 nm: 1318.6 / 1968.7 um2"
_FP16_SIZE = (
    "scaled by (45/28)**2 the published FP16 PE is more than twice ours, which is built for area "
    "and not for 1 GHz"
)

PUBLISHED = (
    Published(
        "bitmod", "fp16", 0.7625,
        "BitMoD (HPCA 2025), Table X, 28 nm, 1 GHz: 1517.0 / 1989.5 um2 per PE (derived)",
        _FP16_SIZE,
    ),
    Published(
        "bitmod", "fp16acc16", 0.7625,
        "BitMoD (HPCA 2025), Table X, 28 nm, 1 GHz: 1517.0 / 1989.5 um2 per PE (derived)",
        _FP16_SIZE,
    ),
    Published(
        "dint4", "int8", 1 / 1.93,
        "dINT (EMNLP 2023), Table 2, 1.93 times smaller, as two third-party summaries give it",
        "node, clock, accumulator width and whether the decoder counts are not known to us; the "
        "INT32 accumulator is the same in both of ours and does not shrink with the weight",
    ),
    Published(
        "dint4-dot16", "int8-dot16", 1 / 1.93,
        "dINT (EMNLP 2023), Table 2, 1.93 times smaller, as two third-party summaries give it",
        "sixteen lanes share an accumulator here, so that the multipliers count for more",
    ),
    Published(
        "fp16xint8", "fp16", 0.670,
        f"{_BITMOD_XLSX}: FIGNA-like FP16 x INT8, 1318.6 / 1968.7 um2",
        "ours adds every product to a binary32 accumulator, whose adder is most of it; the "
        "structure of theirs is not described there",
    ),
    Published(
        "ant", "fp16", 0.670, _BITMOD_SIM,
        "that simulator gives ANT the area of a FIGNA-like FP16 x INT8 PE; ours is ANT's own "
        "4-bit integer PE, with both decoders inside",
    ),
    Published(
        "olive", "fp16", 0.670, _BITMOD_SIM,
        "that simulator gives OliVe the area of a FIGNA-like FP16 x INT8 PE; ours is a pair of "
        "OliVe's 4-bit integer lanes, with the decoders inside",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class ComparisonRow:
    """One PE on one technology, relative to the baselines on the same."""

    technology: str
    pe: str
    macs: float  #: multiply-accumulates a cycle
    area_um2: float  #: of the PE alone
    shared_um2: float  #: what the PEs of a column share, once per column
    area_per_mac_um2: float
    delay_ps: float
    clock_ps: float | None
    reached: bool
    vs_int8: float | None  #: area per MAC over that of INT8 x INT8; None if it was not synthesised
    vs_fp16: float | None
    source: str


def compare(results: Sequence[PESynthesis]) -> list[ComparisonRow]:
    """Each PE's area per MAC a cycle, absolute and relative to the INT8 and the FP16 MAC."""
    per_mac = {(r.technology, r.pe): r.area_um2 / find_design(r.pe).macs for r in results}
    rows = []
    for result in results:
        own = per_mac[result.technology, result.pe]
        ratios = {
            base: own / per_mac[result.technology, base]
            if (result.technology, base) in per_mac
            else None
            for base in BASELINES
        }
        rows.append(
            ComparisonRow(
                technology=result.technology,
                pe=result.pe,
                macs=find_design(result.pe).macs,
                area_um2=result.area_um2,
                shared_um2=result.encoder_um2,
                area_per_mac_um2=own,
                delay_ps=result.total.delay_ps,
                clock_ps=result.total.clock_ps,
                reached=result.total.reached,
                vs_int8=ratios["int8"],
                vs_fp16=ratios["fp16"],
                source=result.source,
            )
        )
    return rows


def published_ratios(results: Sequence[PESynthesis]) -> list[dict[str, Any]]:
    """Our area of a PE over that of its baseline on each technology, and the published ratio."""
    found = {(result.technology, result.pe): result for result in results}
    rows = []
    for technology in dict.fromkeys(result.technology for result in results):
        for row in PUBLISHED:
            ours, base = found.get((technology, row.pe)), found.get((technology, row.baseline))
            if ours is None or base is None:
                continue
            ratio = ours.area_um2 / base.area_um2
            macs = find_design(row.pe).macs / find_design(row.baseline).macs
            rows.append(
                {
                    "technology": technology,
                    **{key: value for key, value in asdict(row).items() if key != "ratio"},
                    "clock_ps": ours.total.clock_ps,
                    "reached": ours.total.reached and base.total.reached,
                    "area_ratio": ratio,
                    "area_ratio_per_mac": ratio / macs,
                    "published": row.ratio,
                    "published_source": row.source,
                }
            )
    return rows
