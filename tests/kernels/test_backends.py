"""The torch and JAX backends against the definition and against the PEs' models.

Small ragged shapes; weights hold every code of their format, those included that quantisation never
produces. Each comparison counts its numbers, so that an empty one cannot pass.
"""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from bitwright.kernels import matmul, reference
from bitwright.quant import FORMATS, Format, InputError, QuantizedTensor, quantize
from bitwright.sim import PES

levels_in_byte = import_module("bitwright.kernels.planner").levels_in_byte
M, N, K, GROUP = 5, 21, 96, 40
EXACT = ("integer", "planes", "lookup")
#: Activations: format and columns of a group (None: those of the weights).
ACTS = (("int8-sym", K), ("int8-asym", K), ("int4-asym", K), ("int3-sym", None))

jax_needed = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")
backends = pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=jax_needed)])


def acts(seed: int = 0, m: int = M, k: int = K) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, k)).astype(np.float32)


def weights(
    name: str, seed: int = 1, n: int = N, k: int = K, group: int | None = None, scale: str = ""
) -> QuantizedTensor:
    """Scales as `quantize` gives them, and any codes, zero points and selectors."""
    rng = np.random.default_rng(seed)
    real = rng.standard_normal((n, k)).astype(np.float32)
    w = quantize(real, name, group or FORMATS[name].block or GROUP, scale or None)  # type: ignore[arg-type]
    valid = [code for code in range(1 << w.format.bits) if code not in w.format.invalid_codes]
    chosen: dict[str, Any] = {"codes": rng.choice(np.array(valid, np.uint8), w.shape)}
    grouped = (w.n, w.groups)
    if w.zero_points is not None:
        chosen["zero_points"] = rng.integers(0, w.format.qmax + 1, grouped).astype(np.uint8)
    if w.selectors is not None:
        chosen["selectors"] = rng.integers(0, w.format.choices, grouped).astype(np.uint8)
    return replace(w, **chosen)


def same(y: np.ndarray, wanted: np.ndarray) -> int:
    """How many numbers agree bit for bit; all must."""
    assert y.dtype == wanted.dtype == np.float32
    assert np.array_equal(y.view(np.uint32), wanted.view(np.uint32))
    return y.size


def methods_of(format: Format) -> tuple[str, ...]:
    if not levels_in_byte(format):
        return ()
    if format.name in ("binary", "ternary"):
        return EXACT
    return EXACT[:2] if format.kind in ("int-sym", "int-asym") else EXACT[:1]


@backends
@pytest.mark.parametrize("name", FORMATS)
def test_exact_methods_are_the_definition_for_every_format(backend: str, name: str) -> None:
    w = weights(name)
    compared = 0
    for act_format, group in ACTS:
        x = quantize(acts(), act_format, group or w.group_size)
        if not methods_of(w.format):
            with pytest.raises(InputError, match="spans too many binary places; use method float"):
                matmul(x, w, backend, method="integer")
            continue
        wanted = reference.reference_integer(x, w)
        for method in methods_of(w.format):
            compared += same(matmul(x, w, backend, method=method), wanted)
    assert compared == len(ACTS) * len(methods_of(w.format)) * M * N


@backends
@pytest.mark.parametrize("name", FORMATS)
def test_float_is_within_its_bound_for_every_format(backend: str, name: str) -> None:
    x, w = acts(), weights(name)
    y = matmul(x, w, backend)
    assert y.shape == (M, N) and y.dtype == np.float32
    bound = reference.float_bound(x, w.dequantize(), w.group_size)
    assert (np.abs(y - reference.reference_float(x, w)) <= bound).all()
    assert 0 < bound.max() < 1e-3 * np.abs(y).max()


@jax_needed
def test_jax_multiplies_within_the_bound_even_at_its_default_precision() -> None:
    import jax

    x, w = acts(), acts(1, N)
    y = np.asarray(jax.numpy.matmul(x, w.T))
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    if jax.default_backend() != "cpu":
        pytest.skip("default precision is float32's on the processor alone")
    assert (np.abs(y - exact) <= reference.float_bound(x, w)).all()


@backends
@pytest.mark.parametrize("group", [1, 7, 64, 130])
def test_groups_of_other_lengths(backend: str, group: int) -> None:
    """A group of 64 or more fills words of planes, sign bits included."""
    compared = 0
    for name in ("ternary", "binary", "int5-asym"):
        w = weights(name, n=3, k=130, group=group)
        x = quantize(acts(0, 2, 130), "int8-asym", group)
        wanted = reference.reference_integer(x, w)
        for method in methods_of(w.format):
            compared += same(matmul(x, w, backend, method=method), wanted)
    assert compared == 8 * 2 * 3


@backends
def test_the_longest_group_of_the_largest_numbers(backend: str) -> None:
    """255 * 506 * 2**15 in half units is beyond 32 bits; the correction must be too."""
    k = 1 << 15
    w = weights("dint8-asym", n=1, k=k, group=k)
    codes = np.full((1, k), 253, np.uint8)
    codes[0, 0] = 254  # half a step
    w = replace(w, codes=codes, zero_points=np.zeros((1, 1), np.uint8))
    x = quantize(np.ones((1, k), np.float32), "int8-asym", k)
    x = replace(x, codes=np.full((1, k), 255, np.uint8), zero_points=np.zeros((1, 1), np.uint8))
    assert reference.reference_sums(x, w)[0].item() == 255 * (506 * (k - 1) + 1) > 1 << 31
    assert same(matmul(x, w, backend), reference.reference_integer(x, w)) == 1


@jax_needed
@pytest.mark.parametrize("levels", [(0.0, 1000.0, 0.0, -1.0), (0.0, 1.0, 0.0, -1000.0)])
def test_jax_refuses_sums_that_32_bits_may_not_hold(levels: tuple[float, ...]) -> None:
    w = quantize(np.ones((1, 1 << 15), np.float32), "ternary", 1 << 15)
    w = replace(w, format=Format("wide", 2, "levels", levels))
    x = quantize(np.ones((1, w.k), np.float32), "int8-sym", w.k)
    with pytest.raises(InputError, match="overflow 31 bits on jax; use groups of at most 16777"):
        matmul(x, w, "jax")
    assert same(matmul(x, w, "torch"), reference.reference_integer(x, w)) == 1


def test_panels_of_rows_change_nothing() -> None:
    import torch

    operands = import_module("bitwright.kernels.operands")
    torch_backend = import_module("bitwright.kernels.torch_backend")
    small = replace(torch_backend._library(torch.device("cpu"), False), panel=4 * K)
    x, compared = quantize(acts(), "int8-sym", K), 0
    for name, method in (("int4-asym", "integer"), ("binary", "planes"), ("ternary", "lookup")):
        w = weights(name)
        y = operands.pack(w, method, small)(x)
        compared += same(np.ascontiguousarray(y), reference.reference_integer(x, w))
    assert compared == 3 * M * N


def test_popcount_of_int64_counts_the_sign_bit() -> None:
    import torch

    popcount = import_module("bitwright.kernels.torch_backend")._popcount
    words = np.random.default_rng(0).integers(-(1 << 63), 1 << 63, 1000, dtype=np.int64)
    words[:6] = [0, 1, -1, -(1 << 63), (1 << 63) - 1, 1 << 62]
    wanted = [int(word & np.uint64(2**64 - 1)).bit_count() for word in words.view(np.uint64)]
    assert popcount(torch.from_numpy(words)).tolist() == wanted


# ------------------------------------------------------------------ against the PEs


@backends
@pytest.mark.parametrize(
    ("pe", "act_format", "name"),
    [
        ("dint4", "int8-sym", "dint4-sym"),
        ("dint4-asym", "int8-sym", "dint4-asym"),
        ("int8", "int8-sym", "int8-sym"),
        ("int8", "int8-sym", "int5-sym"),
        ("int4x8", "int8-sym", "int4-sym"),
        ("btc", "int8-asym", "int4-asym"),
        ("btc", "int3-sym", "int2b-asym"),
        ("btc", "int4-asym", "int8-sym"),
        ("btc", "int8-sym", "int3-asym"),
        ("ternary", "int8-sym", "ternary"),
        ("lut", "int8-sym", "ternary"),
        ("lut", "int8-sym", "binary"),
    ],
)
def test_exact_methods_are_the_hardware(backend: str, pe: str, act_format: str, name: str) -> None:
    w, x = weights(name), quantize(acts(), act_format, K)
    wanted = PES[pe].gemm(x, w)
    found = [same(matmul(x, w, backend, method=method), wanted) for method in methods_of(w.format)]
    assert sum(found) == len(methods_of(w.format)) * M * N > 0


BITSERIAL = (
    *("bitmod3", "bitmod4", "fp3", "fp4", "fp3-ea", "fp4-er"),
    *("int4-sym", "int5-sym", "int6-sym", "int7-sym", "int8-sym"),
    *("int3-asym", "int4-asym", "int5-asym", "int6-asym", "int7-asym"),
)


@pytest.mark.parametrize("name", BITSERIAL)
@backends
def test_bitserial_is_the_hardware(backend: str, name: str) -> None:
    rng = np.random.default_rng(2)
    # Exponents far apart, so that lanes and groups are aligned over all distances; some zeros.
    x = (acts() * 2.0 ** rng.integers(-20, 13, (M, K))).astype(np.float16)
    x[rng.random((M, K)) < 0.1] = 0
    w = weights(name, scale="int8")
    y = matmul(x.astype(np.float32), w, backend, method="bitserial")
    assert same(y, PES["bitmod"].gemm(x, w)) == M * N


@backends
def test_bitserial_refuses_what_the_hardware_has_not(backend: str) -> None:
    w = weights("int8-asym", scale="int8")
    with pytest.raises(InputError, match="int8-asym needs 9 bits, and the bit-serial PE has 8"):
        matmul(acts(), w, backend, method="bitserial")
    x = acts()
    x[2, 7] = 70000
    with pytest.raises(InputError, match=r"x\[2, 7\] is 70000.0, which is not finite in FP16"):
        matmul(x, weights("bitmod4"), backend, method="bitserial")


# ------------------------------------------------------------------ compiled, missing, lazy


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it loads inductor
def test_torch_compiled_gives_the_same() -> None:
    compared = 0
    x = acts()
    for name, group in (("int4-asym", GROUP), ("bitmod4", GROUP), ("olive4", K)):
        w = weights(name, group=group)
        bound = reference.float_bound(x, w.dequantize(), w.group_size)
        y = matmul(x, w, "torch-compiled")
        assert (np.abs(y - reference.reference_float(x, w)) <= bound).all()
    for name, method in (
        ("int4-asym", "integer"),
        ("dint4-asym", "integer"),
        ("int4-asym", "planes"),
        ("binary", "lookup"),
        ("ternary", "lookup"),
    ):
        w, q = weights(name), quantize(x, "int8-asym", K)
        y = matmul(q, w, "torch-compiled", method=method)
        compared += same(y, reference.reference_integer(q, w))
    assert compared == 5 * M * N


def test_compiled_functions_are_shared_by_all_tensors() -> None:
    import torch

    torch_backend = import_module("bitwright.kernels.torch_backend")
    cpu = torch.device("cpu")
    assert torch_backend._library(cpu, True) is torch_backend._library(cpu, True)
    function = torch_backend._library(cpu, True).functions["float"]
    assert torch_backend._compiled(torch_backend._float) is function


def test_a_backend_without_its_framework_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "jax" else find(name)
    )
    message = r"backend jax cannot run: jax is not installed; pip install 'bitwright\[jax\]'"
    with pytest.raises(InputError, match=message):
        matmul(acts(), weights("int4-sym"), "jax")


def test_numba_loads_no_other_framework() -> None:
    code = """
import sys
import numpy as np
import bitwright.kernels
from bitwright.kernels import matmul, plan_for, reference, scaling, steps, operands
from bitwright.quant import quantize
w = quantize(np.ones((4, 32)), "int4-sym", group_size=16)
matmul(np.ones((2, 32)), w, "numba", activations="a8")
matmul(np.ones((2, 32)), w)
print([name for name in ("torch", "jax", "jaxlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
