"""Idle, typical and worst streams of a PE: what its energy on real data lies between.

    idle     nothing is issued, the clock runs: the stalled state of `tile_energy`
    typical  random data: Gaussian activations and weights, quantised as real ones are, on a tile
    worst    the PE alone, its operand ports changing between two patterns in every cycle; the
             highest energy found among pairs of patterns

The worst pair is searched, not proved. A first part of the pairs are extremes (all zeros and all
ones; a pattern and its complement; a pattern and its sign bits turned round; zeros and a pattern)
and pairs of random bits. Of the best pairs so far a next part is bred, each bit turned round with
some probability, `ROUNDS` times. Patterns are bits: not every one is an operand that a model can
have, so the result is above what any operands give among the pairs tried, and below the true
maximum. Control runs as in a stream whose groups are long; for the bit-serial PE one ends every
`SCALE_CYCLES` cycles, as often as it can. What the formats hold for a whole product
(signed or not) stays.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bitwright.sim import bitmod

from . import tile_energy
from .activity import simulate
from .engine import BitmodCells
from .stimuli import LANES, Streams, Terms, bitmod_control

RANDOM_DATA = "random data"  #: source of the typical stream
PAIRS = 512  #: of patterns tried
ROUNDS = 8  #: parts in which they are tried
CYCLES = 32  #: counted for each pair
_RANDOM_TOKENS, _RANDOM_CHANNELS, _RANDOM_K = 64, 64, 512
_PARENTS = 8
_TURNED = 1 / 16  # of a parent's bits
_WARMUP = 16


@dataclass(frozen=True)
class StreamBounds:
    """Energies per PE and clock cycle in pJ, leakage apart."""

    idle_pj: float  #: PE with its share of a tile, nothing issued
    typical: tile_energy.TileEnergy  #: PE with its share, random data
    worst_pj: float  #: PE alone
    pe_idle_pj: float  #: PE alone: its clock
    pe_typical_pj: float  #: PE alone, random data
    leakage_pj: float  #: per cycle, PE with its share
    pe_leakage_pj: float  #: the same of the PE alone
    pairs: int  #: of patterns tried for `worst_pj`
    seed: int

    @property
    def search(self) -> str:
        """How `worst_pj` was found, for people."""
        return f"highest of {self.pairs} pairs tried"

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return {**asdict(self), "typical": self.typical.to_dict(), "search": self.search}


def measure_bounds(
    hardware: tile_energy.TileHardware,
    weights: Callable[[np.ndarray], Any],
    *,
    seed: int = 0,
    pairs: int = PAIRS,
) -> StreamBounds:
    """Energies of the three streams.

    Args:
        hardware: The tile.
        weights: Float weights [n, k] as the PE gets them: a `QuantizedTensor`, or as they are.
        seed: Of random data and of the search.
        pairs: Pairs of patterns to try, at least `ROUNDS`.

    Raises:
        InputError: The PE does not run these weights, or the technology has no energies.
    """
    typical = random_data(hardware, weights, seed=seed)
    power = hardware.parts["PE"].power
    return StreamBounds(
        idle_pj=typical.stalled_pj,
        typical=typical,
        worst_pj=worst_pair_fj(hardware, seed=seed, pairs=pairs) * 1e-3,
        pe_idle_pj=float(power.clock_fJ.sum()) * 1e-3,
        pe_typical_pj=pe_alone_pj(typical),
        leakage_pj=typical.leakage_uw * hardware.clock_ps * 1e-6,
        pe_leakage_pj=float(power.leakage_nW.sum()) * hardware.clock_ps * 1e-9,
        pairs=pairs,
        seed=seed,
    )


def random_data(
    hardware: tile_energy.TileHardware, weights: Callable[[np.ndarray], Any], *, seed: int = 0
) -> tile_energy.TileEnergy:
    """Energy of a tile on Gaussian activations and weights; arguments as in `measure_bounds`."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((_RANDOM_TOKENS, _RANDOM_K)).astype(np.float32)
    w = rng.standard_normal((_RANDOM_CHANNELS, _RANDOM_K)).astype(np.float32)
    return tile_energy.measure(hardware, x, weights(w), seed=seed, source=RANDOM_DATA)


def pe_alone_pj(energy: tile_energy.TileEnergy) -> float:
    """An active cycle of the PE without encoder, column unit, registers and wires; no leakage."""
    return sum(
        sum(components.values())
        for name, components in energy.breakdown.items()
        if name.startswith("PE ")
    )


def worst_pair_fj(
    hardware: tile_energy.TileHardware, *, seed: int = 0, pairs: int = PAIRS
) -> float:
    """Highest energy of a PE found, fJ per cycle, leakage left out.

    Args:
        hardware: The tile whose PE is meant.
        seed: Of the search.
        pairs: Pairs of patterns to try, at least `ROUNDS`.
    """
    rng = np.random.default_rng(seed)
    ports = _data_ports(hardware)
    shares = [len(share) for share in np.array_split(np.arange(pairs), ROUNDS)]
    tried = _first_pairs(shares[0], ports, rng)
    energy = _energies_fj(hardware, ports, tried)
    for count in shares[1:]:
        parents = tried[np.argsort(-energy, kind="stable")[:_PARENTS]]
        children = parents[rng.integers(len(parents), size=count)]
        children ^= rng.random(children.shape) < _TURNED
        tried = np.concatenate([tried, children])
        energy = np.concatenate([energy, _energies_fj(hardware, ports, children)])
    return float(energy.max())


def _data_ports(hardware: tile_energy.TileHardware) -> dict[str, int]:
    """Operand ports of the PE that change from cycle to cycle, and their bits."""
    inputs = hardware.parts["PE"].netlist.inputs
    if isinstance(hardware.cells, BitmodCells):
        names = [port for port in inputs if port.startswith(("act", "sign", "shift", "live"))]
    else:
        cells = hardware.cells
        names = [p for p in (*cells.x_ports, *cells.w_ports) if not p.endswith("_signed")]
    return {port: len(inputs[port]) for port in names if port in inputs}


def _first_pairs(count: int, ports: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    """Extremes and random patterns: bool [count, 2, bits], each port's lowest bit first."""
    bits = sum(ports.values())
    pairs = rng.integers(0, 2, (count, 2, bits)).astype(bool)
    signs = np.zeros(bits, bool)
    signs[np.cumsum(list(ports.values())) - 1] = True
    kind = np.arange(count) % 4
    pairs[kind == 1, 1] = ~pairs[kind == 1, 0]
    pairs[kind == 2, 1] = pairs[kind == 2, 0] ^ signs
    pairs[kind == 3, 0] = False
    pairs[:1] = [[[False] * bits, [True] * bits]]
    return pairs


def _energies_fj(
    hardware: tile_energy.TileHardware, ports: Mapping[str, int], pairs: np.ndarray
) -> np.ndarray:
    """Energy of the PE on each pair, fJ per cycle: a machine word of equal lanes a pair."""
    part = hardware.parts["PE"]
    length = _WARMUP + CYCLES
    now = np.arange(length) % 2
    streams: Streams = {}
    at = 0
    for port, width in ports.items():
        weight = np.uint64(1) << np.arange(width, dtype=np.uint64)
        values = (pairs[..., at : at + width] * weight).sum(axis=-1, dtype=np.uint64)
        streams[port] = np.repeat(values.T[now], LANES, axis=1)
        at += width
    control = {name: v for name, v in _control(hardware).items() if name in part.netlist.inputs}
    activity = simulate(part.netlist, {**streams, **control}, warmup=_WARMUP)
    return part.power.energy(activity, hardware.clock_ps).dynamic_fJ


def _control(hardware: tile_energy.TileHardware) -> Streams:
    """Control of a running stream: [cycles, 1]."""
    cycle = np.arange(_WARMUP + CYCLES)[:, None]
    if isinstance(hardware.cells, BitmodCells):
        ends = cycle % bitmod.SCALE_CYCLES == bitmod.SCALE_CYCLES - 1
        scale = np.full_like(cycle, 0b10101010)
        return bitmod_control(Terms({}, cycle % 4, np.ones_like(ends), ends, scale))
    planes = cycle % 8
    fixed = {port: np.ones_like(cycle) for port in ("x_signed", "w_signed")}
    control = {"clear": np.zeros_like(cycle), "shift": planes, "negative": planes == 7, **fixed}
    return {name: values.astype(np.uint64) for name, values in control.items()}
