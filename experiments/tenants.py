"""What compressed differences recover: `python -m bitwright.experiments.tenants`.

A table of the base, the fine-tuned model, and what a server of many tenants can keep instead of it:
BitDelta with one and two planes, Delta-CoMe at a sixteenth of FP16 with its factors rounded to
nearest and by GPTQ, and, beside them, the fine-tuned model itself rounded to 4 bits, which shares
nothing with the base. Perplexity is measured on the held-out part of the text that
`fine_tune` trained on, and on the default text; `recovered` is the share of the fine-tuning's gain
in log-likelihood on the held-out part, 0 for the base and 1 for the fine-tuned model. It can exceed
1: nothing makes the fine-tuned weights the best ones for the held-out text, least of all after few
steps.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.output import progress_bar, show
from bitwright.quant import (
    BitDelta,
    Calibration,
    DeltaCome,
    InputError,
    LanguageModel,
    Linear,
    Progress,
    Text,
    apply_recipe,
    compress_delta,
    load_model,
    load_text,
    perplexity,
)

from .fine_tune import default_text, split
from .provenance import provenance

if TYPE_CHECKING:
    from rich.table import Table

#: The fine-tuned model on its own, rounded to nearest.
ROUNDED = "w4g64-int-sym-s8"
#: Delta-CoMe's leading bands as published, and those for matrices too small for them.
_LEADING, _FEW = ((8, 2), (3, 32)), ((8, 1), (3, 8))


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A way to serve the fine-tuned model."""

    what: str
    held_out: float  #: perplexity on the domain's held-out text
    general: float  #: on the default text
    recovered: float | None  #: of the gain on the held-out text; None if there was none
    bits_per_weight: float  #: that a tenant adds for the matrices of the blocks
    stored_bits: int  #: all that a tenant adds, norms and biases in FP16 included


def compare_tenants(
    base: LanguageModel,
    tuned: LanguageModel,
    train: Text,
    held_out: Text,
    *,
    tokens: int = 4096,
    window: int = 512,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
) -> tuple[TenantRow, ...]:
    """All rows of the table.

    Args:
        base: The model that was fine-tuned.
        tuned: What became of it.
        train: The text it was fine-tuned on; GPTQ calibrates on it.
        held_out: Text of the domain that it did not see.
        tokens: Read of each text at most.
        window: Context in tokens.
        calibration: For GPTQ; None as `compress_delta`.
        progress: Called per row.

    Raises:
        InputError: As `compress_delta` and `perplexity`.
    """
    texts, rows, nlls = (held_out, load_text()), [], []
    shapes = base.config.linear_shapes().values()
    weights = sum(n * k for n, k in shapes)
    leading = _LEADING if min(n * k / (n + k) for n, k in shapes) >= 112 else _FEW
    methods: dict[str, BitDelta | DeltaCome] = {
        "BitDelta, 1 plane": BitDelta(),
        "BitDelta, 2 planes": BitDelta(planes=2),
        "Delta-CoMe 1/16, nearest": DeltaCome(leading=leading),
        "Delta-CoMe 1/16, GPTQ": DeltaCome(leading=leading, rounding="gptq"),
    }
    total = len(methods) + 3

    def add(what: str, model: LanguageModel, bits: int, more: int, linear: Linear | None) -> None:
        found = [
            perplexity(model, text, window=window, max_tokens=tokens, linear=linear)
            for text in texts
        ]
        nlls.append(found[0].nll)
        gain = nlls[0] - nlls[min(1, len(nlls) - 1)]
        share = (nlls[0] - nlls[-1]) / gain if gain > 0 else None
        if len(nlls) == 1:
            share = 0.0
        rows.append(
            TenantRow(
                what, found[0].perplexity, found[1].perplexity, share, bits / weights, bits + more
            )
        )
        if progress:
            progress(len(rows), total, what)

    add("base", base, 0, 0, None)
    own = compress_delta(base, tuned)  # one plane: also says what differs beside the matrices
    add("fine-tuned, FP16", tuned, 16 * weights, own.kept_bits, None)
    for what, method in methods.items():
        delta = own
        if what != "BitDelta, 1 plane":
            delta = compress_delta(base, tuned, method, calibration=calibration, text=train)
        add(what, delta.model, delta.delta_bits, delta.kept_bits, None)
    rounded = apply_recipe(tuned, ROUNDED)
    bits = rounded.stored_bits
    add(f"fine-tuned, {ROUNDED}", rounded.model, bits, own.kept_bits, rounded.linear())
    return tuple(rows)


def _table(title: str, rows: Sequence[TenantRow]) -> "Table":
    from rich.table import Table

    table = Table(title=title)
    table.add_column("a tenant keeps")
    for heading in ("held-out ppl", "default ppl", "recovered", "bits/weight", "MB"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.what,
            f"{row.held_out:.4f}",
            f"{row.general:.4f}",
            "" if row.recovered is None else f"{row.recovered:.1%}",
            f"{row.bits_per_weight:.3f}",
            f"{row.stored_bits / 8e6:.2f}",
        )
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bitwright.experiments.tenants")
    parser.add_argument("--base", default="smollm2", help="name or path, as load_model takes")
    parser.add_argument("--tuned", required=True, help="folder that fine_tune wrote")
    parser.add_argument("--text", type=Path, help="what fine_tune read; default: docstrings")
    parser.add_argument("--tokens", type=int, default=4096, help="read of each text at most")
    parser.add_argument("--window", type=int, default=512, help="context in tokens")
    parser.add_argument("--sequences", type=int, default=16, help="calibration sequences for GPTQ")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    given = parser.parse_args(arguments)
    try:
        if given.sequences < 1:
            raise InputError(f"--sequences {given.sequences} must be at least 1")
        base, tuned = load_model(given.base), load_model(given.tuned)
        train, held_out = split(default_text() if given.text is None else load_text(given.text))
        length = min(given.window, base.config.context)
        calibration = Calibration(sequences=given.sequences, length=length)
        with progress_bar("tenants") as progress:
            rows = compare_tenants(
                base,
                tuned,
                train,
                held_out,
                tokens=given.tokens,
                window=given.window,
                calibration=calibration,
                progress=progress,
            )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    title = f"{base.name} and {tuned.name}; held out: {held_out.name}"
    document: dict[str, Any] = {
        "base": base.name,
        "tuned": str(given.tuned),
        "held_out": held_out.name,
        "tokens": given.tokens,
        "window": given.window,
        "calibration": calibration.model_dump(),
        "made_by": provenance(calibration.seed),
        "rows": [asdict(row) for row in rows],
    }
    show(document, given.json, _table(title, rows))


if __name__ == "__main__":
    main()
