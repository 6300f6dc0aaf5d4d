"""`matmul(..., "cuda")`: what is packed, corrected and scaled around the two device functions.

Here numpy stands in for the device functions, which their own tests compare with numpy; the same
products on a device are in test_on_device.py.
"""

from importlib import import_module

import numpy as np
import pytest

from bitwright.kernels import cuda, matmul, reference
from bitwright.quant import InputError, parse_activation, quantize, quantize_activations

backend = import_module("bitwright.kernels.cuda.backend")
RNG = np.random.default_rng(0)
W = RNG.standard_normal((13, 300)).astype(np.float32)
X = RNG.standard_normal((11, 300)).astype(np.float16).astype(np.float32)


def sums(x, w, *, group_size, x_signed, w_signed):
    words = None if group_size is None else group_size // 32
    return cuda.reference_sums(x, w, group_words=words, x_signed=x_signed, w_signed=w_signed)


def gemv(x, codes, scales, tables, *, group_size, selectors, zeros):
    assert len(x) <= 8 and x.dtype == np.float16
    values = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1)[:, : x.shape[1]]
    group = np.arange(x.shape[1]) // group_size
    chosen = np.zeros(scales.shape, np.uint8) if selectors is None else selectors
    w = tables[chosen[:, group], values].astype(np.float64)
    if zeros is not None:
        w -= zeros[:, group]
    return (x.astype(np.float64) @ (w * scales[:, group]).T).astype(np.float32)


@pytest.fixture
def numpy_device(monkeypatch):
    monkeypatch.setattr(backend, "binary_group_sums", sums)
    monkeypatch.setattr(backend, "weight_only_gemv", gemv)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["sym", "asym"])
@pytest.mark.parametrize("size", [128, 300])
def test_planes_are_the_definition_bit_for_bit(numpy_device, bits, kind, size):
    w = quantize(W, f"int{bits}-{kind}", group_size=size)
    for name in ("a8", "a8-asym", "a4-asym", "a3"):
        x = quantize_activations(X, parse_activation(name))
        y = backend.pack(w, "planes")(x)
        assert np.array_equal(y, reference.reference_integer(x, w))


@pytest.mark.parametrize("name", ["int4-sym", "int4-asym", "int2-asym", "fp3", "bitmod4", "nf4"])
@pytest.mark.parametrize("size", [64, 300])
def test_float_is_within_the_bound(numpy_device, name, size):
    """Eleven rows are two launches; activations are FP16 numbers here, so none is rounded."""
    w = quantize(W, name, group_size=size)
    error = np.abs(backend.pack(w, "float")(X) - reference.reference_float(X, w))
    assert (error <= reference.float_bound(X, w.dequantize(), size)).all()


def test_what_the_kernels_do_not_take(numpy_device):
    for name, size, method, text in [
        ("ternary", 128, "planes", "weight format ternary: the CUDA kernel takes integers"),
        ("int4-sym", 96, "planes", "weights have groups of 96; the CUDA kernel takes multiples"),
        ("int8-sym", 128, "float", "weight format int8-sym: the CUDA kernel takes tables of up"),
        ("dint4-asym", 128, "float", "weight format dint4-asym: the CUDA kernel takes tables"),
        ("int4-sym", 40, "float", "weights have groups of 40; the CUDA kernel takes multiples of"),
    ]:
        with pytest.raises(InputError) as error:
            backend.pack(quantize(W, name, group_size=size), method)
        assert text in str(error.value) and "\n" not in str(error.value)
    large = X.copy()
    large[2, 5] = 70000
    with pytest.raises(InputError, match=r"x\[2, 5\] is 70000.0, which is not finite in FP16"):
        backend.pack(quantize(W, "int4-sym", group_size=64), "float")(large)


def test_without_a_device_it_says_so():
    if cuda.no_device_reason() is None:
        pytest.skip("there is a CUDA device")
    with pytest.raises(InputError, match="^backend cuda cannot run: no CUDA device$"):
        matmul(X, quantize(W, "int4-sym", group_size=64), "cuda")
