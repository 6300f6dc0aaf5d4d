"""Software kernels; the bit-serial one is compared with the PE in tests/sim/test_bitmod.py."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bitwright
from bitwright.kernels import bitserial_matmul, matmul
from bitwright.quant import InputError, quantize

ROOT = Path(bitwright.__file__).resolve().parents[1]


@pytest.fixture
def tensor():
    rng = np.random.default_rng(0)
    return quantize(rng.standard_normal((7, 50)).astype(np.float32), "bitmod4", group_size=16)


def test_matmul_is_the_product_with_the_dequantised_weights(tensor):
    x = np.random.default_rng(1).standard_normal((3, 50)).astype(np.float32)
    y = matmul(x, tensor)
    exact = x.astype(np.float64) @ tensor.dequantize().astype(np.float64).T
    # A float32 dot product of k terms in any order errs by at most k * 2**-24 of the sum of
    # magnitudes, to first order; the factor 1.01 covers the higher ones.
    bound = 1.01 * 50 * 2.0**-24 * (np.abs(x) @ np.abs(tensor.dequantize()).T)
    assert np.all(np.abs(y - exact) <= bound)


def test_bad_operands_are_refused(tensor):
    with pytest.raises(InputError, match=r"backend 'cuda' is not known; the backend there is"):
        matmul(np.ones((1, 50), np.float32), tensor, backend="cuda")
    with pytest.raises(InputError, match=r"x has shape \(1, 49\); it must be \[m, k\] with k = 50"):
        matmul(np.ones((1, 49), np.float32), tensor)
    fp16 = quantize(np.ones((1, 8), np.float32), "int4-sym", group_size=8)
    with pytest.raises(InputError, match="scale_format fp16 has no bit-serial arithmetic"):
        bitserial_matmul(np.ones((1, 8), np.float16), fp16)


def test_the_folder_found_by_its_bare_name_explains_itself():
    done = subprocess.run(
        [sys.executable, "-c", "import kernels"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": ""},
    )
    assert "this folder is bitwright.kernels; start with the bitwright command" in done.stderr
