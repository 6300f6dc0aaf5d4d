"""The accelerators of the BitMoD study: arrays, PE energy and area, and weight precisions."""

from collections.abc import Mapping
from dataclasses import dataclass

from bitwright.quant import InputError
from bitwright.sim import ModelShape

MODELS = ("opt-1.3b", "phi-2", "yi-6b", "llama-2-7b", "llama-2-13b", "llama-3-8b")


@dataclass(frozen=True, slots=True)
class PublishedDesign:
    """One accelerator of a published study."""

    name: str
    lanes: int
    serial: bool  #: bit-serial: latency follows the weight bits, ports are half as wide
    prefill_array: tuple[int, int]  #: rows x cols: output channels x tokens
    decode_array: tuple[int, int]
    pe_pj: float  #: per PE and cycle, before place and route
    pe_um2: float
    prefill_bits: float | Mapping[str, float]  #: weight bits: one number, or one per model
    decode_bits: float | Mapping[str, float]  #: group scales included where the study includes them
    source: str
    kv_bits: int = 16  #: keys and values, under rules that tell them from other operands
    encoder_pj: float = 0.0  #: term encoders of 8 x 8 PEs, per cycle, before place and route
    encoder_um2: float = 0.0  #: term encoders of 8 x 8 PEs

    def array(self, phase: str) -> tuple[int, int]:
        """Rows and columns in a phase."""
        return self.prefill_array if phase == "prefill" else self.decode_array

    def weight_bits(self, shape: ModelShape, phase: str) -> float:
        """Weight precision of a model.

        Raises:
            InputError: The study chose it per model and does not have this one.
        """
        bits = self.prefill_bits if phase == "prefill" else self.decode_bits
        if not isinstance(bits, Mapping):
            return bits
        if shape.name not in bits:
            raise InputError(
                f"design {self.name} has no {phase} precision for {shape.name}; the study has "
                f"{', '.join(bits)}"
            )
        return bits[shape.name]


_SIM = "authors' repo: yc2367/BitMoD sim/"


def _bitmod_design(
    name: str, prefill_bits: float, decode_bits: float, source: str
) -> PublishedDesign:
    return PublishedDesign(
        *(name, 4, True, (32, 32), (64, 16), 0.56, 1507.7, prefill_bits, decode_bits, source),
        kv_bits=8,
        encoder_pj=1.86,
        encoder_um2=2419,
    )


def per_model(*bits: float) -> dict[str, float]:
    """Bits of the six models in the order of `MODELS`."""
    return dict(zip(MODELS, bits, strict=True))


#: The five accelerators of Fig. 7 and 8.
HPCA25_DESIGNS: dict[str, PublishedDesign] = {
    design.name: design
    for design in (
        PublishedDesign(
            "fp16", 1, False, (32, 24), (64, 12), 0.77, 1968.7, 16, 16, f"{_SIM}test_baseline.py"
        ),
        PublishedDesign(
            *("ant", 1, False, (32, 32), (64, 16), 0.56, 1318.6, 5.5),
            per_model(5, 5, 5.25, 5, 5, 4.5),
            f"{_SIM}test_ant.py; PE energy: abdelfattah-lab/BitMoD-HPCA-25 bitmod_sim/test_ant.py",
        ),
        PublishedDesign(
            *("olive", 1, False, (36, 32), (72, 16), 0.613, 1318.6, 4.5),
            per_model(3.875, 4, 4.25, 3.75, 3.75, 3.5),
            f"{_SIM}test_olive.py",
        ),
        _bitmod_design("bitmod-lossless", 6.0625, 6.0625, f"{_SIM}test_bitmod.py"),
        _bitmod_design("bitmod-lossy", 4.0625, 3.0625, f"{_SIM}test_bitmod.py"),
    )
}
