"""Lanes whose operands decode to an integer times a power of two: what ANT and OliVe share."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import numpy as np

from bitwright.quant import QuantizedTensor

from .dot import (
    DotStream,
    DotUnit,
    IntAccumulator,
    Ports,
    check_length,
    exact_products,
    lane_layout,
    pair_ends,
    pair_ports,
)


class TypedUnit(DotUnit):
    """A dot-product PE with integers as operands that are decoded from tables.

    D is the sum over the lanes of the decoded activation times the decoded weight.
    """

    accumulator: IntAccumulator

    @abstractmethod
    def decode(self, codes: tuple[int, ...], kind: int) -> tuple[int, ...]:
        """Codes of all lanes to integers: the bit rule, in plain Python."""

    @abstractmethod
    def decode_array(self, codes: np.ndarray, kind: np.ndarray) -> np.ndarray:
        """The same for codes [..., lanes] of kinds [...]: int16."""

    @abstractmethod
    def kinds(self, t: QuantizedTensor) -> np.ndarray:
        """The kind of each group, uint8 [rows, groups]."""

    def partial(self, step: Mapping[str, int]) -> tuple[int, int]:
        acts = tuple(step[f"act{i}"] for i in range(self.lanes))
        codes = tuple(step[f"code{i}"] for i in range(self.lanes))
        left = self.decode(acts, step.get("act_type", 0))
        right = self.decode(codes, step.get("weight_type", 0))
        return sum(a * w for a, w in zip(left, right, strict=True)), 0

    def partials(self, ports: Ports) -> tuple[np.ndarray, np.ndarray]:
        def side(name: str, kind: str) -> np.ndarray:
            codes = np.stack([ports[f"{name}{i}"] for i in range(self.lanes)], axis=1)
            kinds = ports.get(kind, np.zeros(len(codes), np.uint8))
            return self.decode_array(codes, kinds).astype(np.int64)

        total = (side("act", "act_type") * side("code", "weight_type")).sum(1)
        return total, np.zeros_like(total)

    # -------------------------------------------------------------- tensors

    @property
    @abstractmethod
    def largest(self) -> int:
        """Largest magnitude of a decoded operand."""

    def check(self, w: QuantizedTensor) -> None:
        self.check_format(w.format)
        longest = ((1 << self.accumulator.bits - 1) - 1) // self.largest**2
        check_length(self.name, self.accumulator.bits, longest, min(w.group_size, w.k))

    def tensor_stream(self, x: QuantizedTensor, w: QuantizedTensor) -> DotStream:
        acts = lane_layout(x.codes, w.group_size, self.lanes)
        ports = pair_ports(acts, lane_layout(w.codes, w.group_size, self.lanes))
        if "act_type" in self.ports:
            steps = -(-_lengths(w) // self.lanes)
            kind_x = np.broadcast_to(self.kinds(x), (x.n, w.groups))
            shape = (x.n, w.n, acts.shape[1])
            for name, kind in (
                ("act_type", kind_x[:, None]),
                ("weight_type", self.kinds(w)[None]),
            ):
                of_steps = np.repeat(kind, steps, axis=2)
                ports[name] = np.broadcast_to(of_steps, shape).reshape(-1)
        return DotStream(ports, pair_ends(w, self.lanes, x.n))

    def integers(self, t: QuantizedTensor, group_size: int) -> np.ndarray:
        """Decoded integers, int16 [rows, k]."""
        codes = lane_layout(t.codes, group_size, self.lanes)
        lengths = np.diff([*range(0, t.k, group_size), t.k])
        kind = np.broadcast_to(self.kinds(t), (t.n, len(lengths)))
        values = self.decode_array(codes, np.repeat(kind, -(-lengths // self.lanes), axis=1))
        padded = -(-lengths // self.lanes) * self.lanes
        inside = np.concatenate([np.arange(p) < n for p, n in zip(padded, lengths, strict=True)])
        return np.ascontiguousarray(values.reshape(t.n, -1)[:, inside])

    def results(self, x: QuantizedTensor, w: QuantizedTensor) -> Iterator[np.ndarray]:
        size = w.group_size
        return exact_products(self.integers(x, size), self.integers(w, size), size)


def _lengths(w: QuantizedTensor) -> np.ndarray:
    """Columns of each group."""
    return np.diff([*range(0, w.k, w.group_size), w.k])
