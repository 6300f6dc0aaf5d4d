"""Software kernels; the bit-serial one is compared with the PE in tests/sim/test_bitmod.py."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bitwright
from bitwright.kernels import bitserial_matmul
from bitwright.quant import InputError, quantize

ROOT = Path(bitwright.__file__).resolve().parents[1]


def test_bad_operands_are_refused():
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
