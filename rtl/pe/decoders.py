"""Decoders on their own, beside their value tables: what is proved for all inputs."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from pyrtl import Const, Input, Output, WireVector, concat

from .logic import design, negated_if, shift_left, to_verilog

Values = int | Mapping[str, int] | None


class Decoder(NamedTuple):
    """A combinational module and the table that it must equal."""

    text: str  #: Verilog
    top: str
    inputs: tuple[tuple[str, int], ...]  #: ports and their widths
    #: Called with the inputs' values: the output, or output -> value; None for inputs that do not
    #: occur.
    table: Callable[..., Values]


def decoder(
    top: str,
    inputs: Mapping[str, int],
    build: Callable[..., WireVector | Mapping[str, WireVector]],
    table: Callable[..., Values],
) -> Decoder:
    """A decoder from the function that builds its logic out of its input wires."""
    with design() as block:
        result = build(*(Input(bits, name) for name, bits in inputs.items()))
        for name, wire in ({"value": result} if isinstance(result, WireVector) else result).items():
            out = Output(len(wire), name)
            out <<= wire
    return Decoder(to_verilog(block, top), top, tuple(inputs.items()), table)


def product_of_powers(sign: WireVector, base: WireVector, exponent: WireVector) -> WireVector:
    """(-1)**sign * base << exponent, two's complement, wide enough for every exponent."""
    width = len(base) + (1 << len(exponent))
    shifted = shift_left(concat(Const(0, 1), base), exponent, width)
    return negated_if(sign, shifted)
