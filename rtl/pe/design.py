"""What emission, verification and synthesis ask of a PE's generator."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from pyrtl import Block

from bitwright.rtl import Reference, Stream, Trace

from .decoders import Decoder


class TensorCase(NamedTuple):
    """A tensor's dot products as a stream, and what the PE's model for whole tensors says."""

    stream: Stream
    gemm: np.ndarray  #: float32 results of the PE's `gemm`, flat
    #: What is left to do outside the PE: y bits of the stream, uint32, to those results.
    finish: Callable[[np.ndarray], np.ndarray]


class Design(Protocol):
    """One PE in its verified form: step port, set-up port, results with `y_valid`.

    Every design has the inputs `clk`, `rst` and `valid` and the outputs `y_valid` and `y`; `ready`
    is an output if `has_ready`, else a step is taken in every cycle with `valid`.
    """

    @property
    def name(self) -> str:
        """The PE's name on the command line."""

    @property
    def top(self) -> str:
        """Module name of the verified design."""

    @property
    def step_ports(self) -> Mapping[str, int]:
        """Input ports that go with `valid`: name -> width."""

    @property
    def setup_ports(self) -> Mapping[str, int]:
        """Input ports written before a stream; 0 at other times."""

    @property
    def has_ready(self) -> bool:
        """Whether the design can hold a step up."""

    @property
    def modes(self) -> tuple[str, ...]:
        """What it can be verified with."""

    @property
    def macs(self) -> float:
        """Multiply-accumulates a cycle; where formats differ, of 4-bit weights."""

    @property
    def shared(self) -> tuple[str, ...]:
        """Blocks that several PEs share; not part of the block "total"."""

    @property
    def registers(self) -> Mapping[str, Sequence[str]]:
        """Block -> the registers that it ends in, in the order of the pipeline; by the names that
        they have in the block "total", numbers at their ends left out."""

    def block(self) -> Block:
        """The verified design."""

    def verilog(self) -> str:
        """Its Verilog, one flat module."""

    def blocks(self) -> dict[str, str]:
        """Verilog of each block, "total" (the PE alone, flat) included."""

    def decoders(self) -> Sequence[Decoder]:
        """Its decoders, to be proved equal to their value tables."""

    def overflow(self, mode: str) -> Stream | None:
        """Long dot products that make an accumulator wrap; None where none can, or in no time."""

    def corners(self, mode: str, compact: bool = False) -> Stream:
        """Every weight code with every activation corner; `compact` for slow simulators."""

    def random(self, mode: str, dots: int, rng: np.random.Generator) -> Stream:
        """Random dot products."""

    def tensor(self, mode: str, x: np.ndarray, w: np.ndarray) -> TensorCase:
        """Real rows: x float [m, k], w float32 [n, k]."""

    def traces(self, mode: str, rng: np.random.Generator) -> list[Trace]:
        """What the clock-by-clock bench tries beside corners, random steps and resets."""

    def bins(self, mode: str) -> Sequence[str]:
        """Its own coverage bins, all of which the clock-by-clock bench of a mode must hit.

        Those of the protocol, which all designs share, are not among them.
        """

    def reference(self) -> Reference:
        """The plain-Python model."""

    def model(self, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
        """y bits, uint32, and y_valid cycle, int64, of the stream's dot products."""

    def kernel(self, function: Callable[..., np.ndarray], stream: Stream) -> np.ndarray:
        """y bits, uint32, through the software kernel."""
