"""`bitwright bench`: the package's own speed, as ratios to named baselines."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class What(StrEnum):
    paths = "paths"
    kernels = "kernels"
    cuda = "cuda"


def bench(
    what: Annotated[
        What,
        typer.Argument(
            help="paths: quantiser, PE models, verification, simulator; kernels: products and text "
            "on the processor; cuda: products on a GPU."
        ),
    ] = What.paths,
    shapes: Annotated[
        str, typer.Option(help="kernels: weights, as n,k separated by spaces.")
    ] = "4096,4096 11008,4096 4096,11008",
    rows: Annotated[
        str, typer.Option(help="kernels: rows of activations, separated by commas.")
    ] = "1,4,8,64,256",
    only: Annotated[
        str | None, typer.Option(help="kernels: names separated by semicolons, such as 'W4A8'.")
    ] = None,
    text: Annotated[
        bool,
        typer.Option("--text/--no-text", help="kernels: the default model reads and writes."),
    ] = True,
    committed: Annotated[
        bool, typer.Option("--committed", help="kernels: show what was measured for the package.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON document there as well.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random operands.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Throughput of the package's hot paths, of the kernels, or of a GPU, against baselines."""
    import json

    from bitwright.output import progress_bar, show
    from bitwright.quant import InputError, write_text

    if out is not None and not out.parent.is_dir():  # said before minutes are spent
        raise InputError(f"--out {out}: there is no folder {out.parent}; make it first")
    with progress_bar(f"bench {what}") as progress:
        if what == What.paths:
            from bitwright.experiments import bench as run
            from bitwright.experiments import bench_document

            rows_ = run(seed, progress)
            document, table = bench_document(rows_), _paths_table(rows_)
        elif what == What.kernels:
            from bitwright.experiments import KERNELS, bench_kernels, committed_kernels

            pairs = [_pair(part) for part in shapes.split()]
            counts = [_number("--rows", part) for part in rows.split(",")]
            if committed:
                document = committed_kernels(pairs, counts, None if only is None else _names(only))
            else:
                document = bench_kernels(
                    shapes=pairs,
                    rows=counts,
                    kernels=tuple(KERNELS) if only is None else _names(only),
                    text="smollm2" if text else None,
                    seed=seed,
                    progress=progress,
                )
            table = _kernels_table(document)
        else:
            from bitwright.kernels import cuda

            document = cuda.bench.benchmark(progress=progress)
            table = _cuda_table(document)
    if out is not None:
        write_text(out, json.dumps(document, indent=1) + "\n")
    show(document, as_json, table)


def _pair(text: str) -> tuple[int, int]:
    from bitwright.quant import InputError

    sides = text.split(",")
    if len(sides) != 2:
        raise InputError(f"--shapes has {text!r}; give n,k such as 4096,4096")
    return _number("--shapes", sides[0]), _number("--shapes", sides[1])


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(";"))


def _number(option: str, text: str) -> int:
    from bitwright.quant import InputError

    try:
        return int(text)
    except ValueError:
        raise InputError(f"{option} has {text!r}; whole numbers are needed") from None


def _paths_table(rows: Any) -> Any:
    from rich.table import Table

    table = Table(title="best of 5 runs, all cores")
    for column in ("what", "shape", "rate", "unit", "baseline", "its rate", "ratio"):
        table.add_column(
            column, justify="right" if column in ("rate", "its rate", "ratio") else "left"
        )
    for row in rows:
        table.add_row(
            row.name,
            row.shape,
            f"{row.rate:.1f}",
            row.unit,
            row.baseline,
            f"{row.baseline_rate:.2f}",
            f"{row.speedup:.0f}x",
        )
    return table


def _kernels_table(document: Any) -> Any:
    from rich.console import Group
    from rich.table import Table

    machine = document["machine"]
    title = (
        f"{machine['processor']}, {machine['threads']} threads, memory read at "
        f"{machine['memory_gb_per_s']:.0f} GB/s"
    )
    parts: list[Any] = []
    if document["results"]:
        table = Table(title=title)
        for column in (
            "kernel", "n x k", "m", "ms", "torch float32", "torch bfloat16", "ratio to float32",
            "GB/s", "of memory",
        ):  # fmt: skip
            table.add_column(column, justify="left" if column in ("kernel", "n x k") else "right")
        for row in document["results"]:
            table.add_row(
                row["kernel"],
                f"{row['n']} x {row['k']}",
                str(row["m"]),
                f"{row['ms']:.3f}",
                f"{row['torch_float32_ms']:.3f}",
                f"{row['torch_bfloat16_ms']:.3f}",
                f"{row['speedup_vs_torch_float32']:.1f}x",
                f"{row['gb_per_s']:.1f}",
                f"{100 * row['bandwidth_fraction']:.0f} %",
            )
        parts.append(table)
    if document["packing"]:
        table = Table(title="codes, a byte each, to packed weights")
        table.add_column("layout")
        table.add_column("GB/s", justify="right")
        for row in document["packing"]:
            table.add_row(row["layout"], f"{row['gb_per_s']:.1f}")
        parts.append(table)
    if document["text"]:
        table = Table(title="tokens a second")
        for column in ("what", "prompt", "written", "MB of weights a token"):
            table.add_column(column, justify="left" if column == "what" else "right")
        for row in document["text"]:
            table.add_row(
                row["what"],
                f"{row['prompt_tokens_per_s']:.0f}",
                f"{row['written_tokens_per_s']:.0f}",
                f"{row['mb_per_token']:.0f}",
            )
        parts.append(table)
    return Group(*parts)


def _cuda_table(document: Any) -> Any:
    import json

    return json.dumps(document, indent=1)
