"""Rows spread over threads: every row once, and the same bits as on one thread."""

import os
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest

from bitwright.quant import quantize, single_threads, spread_rows, torch_threads

threads = import_module("bitwright.quant.threads")


@pytest.fixture(params=(1, 2, 3, 8))
def many(request, monkeypatch):
    """So many threads, however little there is to do."""
    monkeypatch.setattr(threads, "_WEIGHTS_PER_THREAD", 1)
    monkeypatch.setattr("numba.get_num_threads", lambda: request.param)


@pytest.mark.parametrize("n", (1, 2, 7, 64))
def test_every_row_is_done_once(many, n):
    done = []
    spread_rows(lambda first, last: done.extend(range(first, last)), n, 5)
    assert sorted(done) == list(range(n))


def test_small_work_stays_on_one_thread(monkeypatch):
    monkeypatch.setattr("numba.get_num_threads", lambda: 8)
    calls = []
    spread_rows(lambda first, last: calls.append((first, last)), 2, (1 << 18) - 1)
    assert calls == [(0, 2)]


@pytest.mark.parametrize("name", ("int4-asym", "bitmod3", "dint4-asym", "fp4"))
def test_decoding_gives_the_same_bits(monkeypatch, name):
    w = np.random.default_rng(0).standard_normal((7, 50)).astype(np.float32)
    qt = quantize(w, name, group_size=16)
    alone = qt.dequantize()
    monkeypatch.setattr(threads, "_WEIGHTS_PER_THREAD", 1)
    monkeypatch.setattr("numba.get_num_threads", lambda: 3)
    assert np.array_equal(qt.dequantize(), alone)


def test_jobs_of_a_pool_keep_to_one_thread_and_leave_the_others_theirs():
    import numba
    import torch

    before = torch.get_num_threads(), numba.get_num_threads()
    with single_threads() as pool:
        inside = pool.submit(lambda: (torch.get_num_threads(), numba.get_num_threads())).result()
    assert inside == (1, 1)
    assert (torch.get_num_threads(), numba.get_num_threads()) == before


ONE_THREAD = """
import numba, torch
from bitwright.quant import load_model

load_model("tiny")
print(torch.get_num_threads(), numba.get_num_threads(), torch.get_num_threads())
"""


def test_numbas_threads_leave_torch_its_own():
    """numba's pool, once it starts, would give torch as many threads as it has itself."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", ONE_THREAD], env=env, capture_output=True)
    assert done.stdout.split() == [b"1", b"3", b"1"], done.stderr


def test_torch_has_its_threads_back():
    import torch

    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="inside"), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ValueError("inside")
    assert torch.get_num_threads() == before
