"""How fast the kernels run on this machine, against torch in the same run.

Every row is one product y[m, n] = x[m, k] @ w[n, k].T: the shortest of several runs after warming
up, with the weights packed and quantised activations at hand. Beside it, in the same run, the
float32 product of torch, and what fraction of the measured memory bandwidth the weights' bytes
take. Then text: tokens a second of the default model with 4-bit weights and 8-bit activations, and
of llama.cpp on the file that the model came in, where `llama-cpp-python` is installed.
"""

import importlib.resources
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numba
import numpy as np

from bitwright.kernels import (
    AnyPrecisionTensor,
    Decoder,
    matmul,
    memory_bandwidth,
    pack_planes,
    pack_tiles,
    packed,
    plan_for,
)
from bitwright.quant import (
    InputError,
    Progress,
    QuantizedTensor,
    apply_recipe,
    fetch_model,
    load_model,
    parse_activation,
    quantize,
    quantize_activations,
)

from .provenance import provenance

SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))  #: (n, k)
ROWS = (1, 4, 8, 64, 256)
#: Kernel name -> weight format, group size (None: one per row), activations, method.
KERNELS: dict[str, tuple[str, int | None, str | None, str]] = {
    "W4A8": ("int4-asym", 128, "a8", "integer"),
    "W4A8 dINT4": ("dint4-sym", 128, "a8", "integer"),
    "W4A8 dINT4, zero points": ("dint4-asym", 128, "a8", "integer"),
    "W8A8": ("int8-sym", None, "a8", "integer"),
    "W3A8": ("int3-asym", 128, "a8", "integer"),
    "W2A8": ("int2-asym", 128, "a8", "integer"),
    "W2A8 planes": ("int2-asym", None, "a8-asym", "planes"),
    "W4A4 planes": ("int4-asym", None, "a4-asym", "planes"),
    "W4A16": ("int4-asym", 128, None, "float"),
    "W4A16 BitMoD": ("bitmod4", 128, None, "float"),
    "W4A16 FP4": ("fp4", 128, None, "float"),
    "W4A16 NF4": ("nf4", 128, None, "float"),
    "W3A16": ("int3-asym", 128, None, "float"),
    "W3A16 BitMoD": ("bitmod3", 128, None, "float"),
    "W2A16": ("int2-asym", 128, None, "float"),
    "W8A16": ("int8-sym", 128, None, "float"),
    "ternary, bytes": ("ternary", None, "a8", "integer"),
    "ternary, planes": ("ternary", None, "a8", "planes"),
    "ternary, look-up": ("ternary", None, "a8", "lookup"),
    "ternary A16": ("ternary", 128, None, "float"),
    "binary, bytes": ("binary", None, "a8", "integer"),
    "binary, planes": ("binary", None, "a8", "planes"),
    "binary, look-up": ("binary", None, "a8", "lookup"),
}
#: Any-precision: one 8-bit tensor read at these widths.
WIDTHS = (3, 4, 8)
TEXT_RECIPE = "w4g64a8-int-asym"
_PROMPT = 256  #: tokens of the prompt that is read
_WRITTEN = 100  #: tokens written
_SECONDS = 0.4  #: about so long each product is repeated


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One product, or one pass over text; the keys of the JSON document."""

    kernel: str
    backend: str
    bits: int  #: of a weight
    act_bits: int  #: of an activation; 32 for real numbers
    m: int
    n: int
    k: int
    ms: float
    torch_float32_ms: float
    torch_bfloat16_ms: float
    speedup_vs_torch_float32: float
    gb_per_s: float  #: bytes of packed weights over time
    #: Of the rate at which as many bytes are read and added up, from memory or from the cache.
    bandwidth_fraction: float


@dataclass(frozen=True, slots=True)
class TextRow:
    """Tokens a second, all cores."""

    what: str
    prompt_tokens_per_s: float
    written_tokens_per_s: float
    mb_per_token: float  #: weights that a written token reads; 0 if not known


@dataclass(frozen=True, slots=True)
class PackingRow:
    """One layout made of codes, a byte each."""

    layout: str
    gb_per_s: float  #: of codes read, all threads


def best_of(work: Callable[[], Any], seconds: float = _SECONDS, least: int = 5) -> float:
    """The shortest of several runs after one that warms up (and compiles), in seconds."""
    work()
    times: list[float] = []
    while len(times) < least or (sum(times) < seconds and len(times) < 200):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def bench_kernels(
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rows: Sequence[int] = ROWS,
    kernels: Sequence[str] = tuple(KERNELS),
    text: str | None = "smollm2",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The document of `bitwright bench kernels`.

    Args:
        shapes: (n, k) of weights.
        rows: Numbers of rows of activations.
        kernels: Names in `KERNELS`.
        text: The model that reads and writes; None: none does.
        seed: Of the random operands.
        progress: Called before each kernel.

    Raises:
        InputError: An unknown kernel, or sizes that are not positive.
    """
    for name in kernels:
        if name not in KERNELS:
            raise InputError(f"kernel {name!r} is not known; there are: {'; '.join(KERNELS)}")
    for size in (*rows, *(side for shape in shapes for side in shape)):
        if size < 1:
            raise InputError(f"size {size} must be positive; give shapes as n,k and rows as m")
    rng = np.random.default_rng(seed)
    results: list[KernelRow] = []
    whole = set(kernels) == set(KERNELS)
    total = len(shapes) * (len(kernels) + 1) + (text is not None)
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        if progress:
            progress(done, total, what)
        done += 1

    for n, k in shapes:
        w = rng.standard_normal((n, k)).astype(np.float32)
        x = {m: rng.standard_normal((m, k)).astype(np.float32) for m in rows}
        tell(f"torch, {n} x {k}")
        torch_ms = {m: _torch_ms(w, x[m]) for m in rows}
        for name in kernels:
            tell(f"{name}, {n} x {k}")
            format, group, act, method = KERNELS[name]
            qt = quantize(w, format, group_size=group or k)
            for m in rows:
                results.append(_row(name, qt, x[m], act, method, torch_ms[m]))
        if whole:
            results += _any_precision(w, x[rows[0]], torch_ms[rows[0]])
    texts: list[TextRow] = []
    if text is not None:
        tell(f"text with {text}")
        texts = _texts(text)
    return {
        "made_by": provenance(seed),
        "machine": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "threads": numba.get_num_threads(),
            "memory_gb_per_s": memory_bandwidth(),
        },
        "results": [asdict(row) for row in results],
        "packing": [asdict(row) for row in (_packing(rng) if whole else [])],
        "text": [asdict(row) for row in texts],
    }


def committed_kernels(
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rows: Sequence[int] = ROWS,
    kernels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The document that is shipped with the package: measured once, on the machine it names.

    Args:
        shapes: Only these (n, k).
        rows: Only these numbers of rows.
        kernels: Only these names; None: all.
    """
    path = importlib.resources.files("bitwright.experiments") / "data" / "kernels_cpu.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    document["results"] = [
        row
        for row in document["results"]
        if (row["n"], row["k"]) in shapes
        and row["m"] in rows
        and (kernels is None or row["kernel"] in kernels)
    ]
    return document


def _row(
    name: str,
    qt: QuantizedTensor,
    x: np.ndarray,
    act: str | None,
    method: str,
    torch_ms: tuple[float, float],
) -> KernelRow:
    acts: Any = x if act is None else quantize_activations(x, parse_activation(act))
    plan = plan_for(acts, qt, "numba", method)
    seconds = best_of(lambda: matmul(acts, qt, "numba", method=method))
    size = packed(qt, plan).nbytes
    rate = size / seconds / 1e9
    return KernelRow(
        kernel=name,
        backend="numba",
        bits=plan.bits,
        act_bits=plan.act_bits,
        m=plan.m,
        n=plan.n,
        k=plan.k,
        ms=1e3 * seconds,
        torch_float32_ms=torch_ms[0],
        torch_bfloat16_ms=torch_ms[1],
        speedup_vs_torch_float32=torch_ms[0] / (1e3 * seconds),
        gb_per_s=rate,
        bandwidth_fraction=rate / _read_rate(size),
    )


def _any_precision(w: np.ndarray, x: np.ndarray, torch_ms: tuple[float, float]) -> list[KernelRow]:
    stored = AnyPrecisionTensor.from_quantized(quantize(w, "int8-asym", group_size=w.shape[1]))
    found = []
    for bits in WIDTHS:
        seconds = best_of(lambda bits=bits: matmul(x, stored, bits=bits))  # type: ignore[misc]
        size = int(stored.n * stored.k * stored.traffic_bits(bits) / 8)
        rate = size / seconds / 1e9
        found.append(
            KernelRow(
                f"any-precision at {bits}",
                "numba",
                bits,
                32,
                len(x),
                stored.n,
                stored.k,
                1e3 * seconds,
                *torch_ms,
                torch_ms[0] / (1e3 * seconds),
                rate,
                rate / _read_rate(size),
            )  # fmt: skip
        )
    return found


@cache
def _megabytes_rate(megabytes: int) -> float:
    return memory_bandwidth(megabytes, runs=20)


def _read_rate(size: int) -> float:
    """GB/s at which an array of about this size is read again and again."""
    return _megabytes_rate(max(1, round(size / 2**20)))


def _packing(rng: np.random.Generator, side: int = 4096) -> list[PackingRow]:
    found = []
    for bits in (1, 2, 3, 4, 8):
        codes = rng.integers(0, 1 << bits, (side, side), dtype=np.uint8)
        for layout, pack in (("tiles", pack_tiles), ("planes", pack_planes)):
            seconds = best_of(lambda p=pack, c=codes, b=bits: p(c, b, 128))  # type: ignore[misc]
            found.append(PackingRow(f"{layout}, {bits} bits", codes.nbytes / seconds / 1e9))
    return found


def _torch_ms(w: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    """Milliseconds of torch's product in float32 and in bfloat16."""
    import torch

    times = []
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.from_numpy(x).to(dtype), torch.from_numpy(w).to(dtype)
        times.append(1e3 * best_of(lambda a=left, b=right: a @ b.T))  # type: ignore[misc]
    return times[0], times[1]


def _texts(model_name: str) -> list[TextRow]:
    model = load_model(model_name)
    found = []
    quantized = apply_recipe(model, TEXT_RECIPE)
    prompt = [1 + i % 1000 for i in range(_PROMPT)]
    for head in ("float", "integer"):
        decoder = Decoder(quantized, room=_PROMPT + _WRITTEN + 16, head=head)
        read, written = [], []
        for _ in range(4):  # the first one compiles
            decoder.reset()
            start = time.perf_counter()
            decoder.read(prompt)
            middle = time.perf_counter()
            list(decoder.generate([1], _WRITTEN))
            read.append(middle - start)
            written.append(time.perf_counter() - middle)
        found.append(
            TextRow(
                f"{model_name} {TEXT_RECIPE}, output layer in {head}",
                _PROMPT / min(read),
                _WRITTEN / min(written),
                decoder.nbytes / 1e6,
            )
        )
    if model_name == "smollm2" and importlib.util.find_spec("llama_cpp"):
        found.append(_llama_cpp(prompt))
    return found


def _llama_cpp(prompt: list[int]) -> TextRow:
    """llama.cpp on the GGUF that the default model comes in, with as many threads."""
    from llama_cpp import Llama

    path = fetch_model()
    threads = numba.get_num_threads()
    llama = Llama(str(path), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    read, written = [], []
    for _ in range(4):
        llama.reset()
        start = time.perf_counter()
        llama.eval(prompt)
        middle = time.perf_counter()
        for _ in range(_WRITTEN):
            llama.eval([1])
        read.append(middle - start)
        written.append(time.perf_counter() - middle)
    size = path.stat().st_size / 1e6
    return TextRow("llama.cpp, Q4_1", _PROMPT / min(read), _WRITTEN / min(written), size)


def processor_name() -> str:
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
