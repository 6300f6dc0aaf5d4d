"""The bit-plane GEMM on a device, operands and result resident."""

import ctypes
from dataclasses import dataclass
from typing import Self

import numpy as np

from .device import Device
from .tiles import Problem, Tile


@dataclass(eq=False)
class Gemm:
    """One problem's operands on a device, to be launched with any tile; frees them at its end."""

    device: Device
    problem: Problem
    x_planes: np.ndarray
    w_planes: np.ndarray
    w_copies: int = 1  #: of the weights, which runs in a row take in turn

    def __enter__(self) -> Self:
        p = self.problem
        missing = p.words - self.x_planes.shape[2]
        padding = ((0, 0), (0, 0), (0, missing))
        w = np.ascontiguousarray(np.pad(self.w_planes, padding))
        self._x = self.device.upload(np.pad(self.x_planes, padding))
        self._w = self.device.malloc(w.nbytes * self.w_copies)
        for copy in range(self.w_copies):
            self.device.write(self._w + copy * w.nbytes, w)
        self._y = self.device.malloc(4 * p.groups * p.m * p.n)
        return self

    def __exit__(self, *error: object) -> None:
        for pointer in (self._x, self._w, self._y):
            self.device.free(pointer)

    def launch_status(self, tile: Tile, runs: int = 1) -> int:
        """Start `runs` products; their cudaError, 0 if they were started."""
        p = self.problem
        return self.device.status(
            "bitwright_binary_gemm_runs",
            runs,
            self.w_copies,
            tile.index,
            *(ctypes.c_void_p(pointer) for pointer in (self._x, self._w, self._y)),
            *(p.m, p.n, p.words, p.group_words, p.x_bits, p.w_bits),
            *(int(p.x_signed), int(p.w_signed)),
            None,
        )

    def launch(self, tile: Tile, runs: int = 1) -> None:
        """Start `runs` products; raises what `Device.call` raises."""
        self.device.check("bitwright_binary_gemm_runs", self.launch_status(tile, runs))

    def forget(self) -> None:
        """Fill the result with a pattern, so that a kernel that does nothing is found out."""
        p = self.problem
        self.device.write(self._y, np.full(p.groups * p.m * p.n, 0x5A5A5A5A, np.int32))

    def sums(self) -> np.ndarray:
        """The result of the last product, int32 [groups, m, n]."""
        p = self.problem
        return self.device.download(self._y, (p.groups, p.m, p.n), np.int32)
