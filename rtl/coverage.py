"""Functional coverage: the bins that a bench must hit, by name.

A `Design` names its bins per mode; its reference says after each clock cycle which of them that
cycle hit. Names are plain words. This file has the bins that every design shares and the names that
several PEs use; what only one PE has is named beside its generator.
"""

from collections.abc import Iterator, Mapping

#: Found by `TraceRecorder` and required of every design.
PROTOCOL_BINS = (
    "dot product of one step",
    "dot product of several steps",
    "dot products back to back",
    "gap within a dot product",
    "gap between dot products",
    "reset with work under way",
    "reset while a step is shown",
)

#: A step ends its dot product if all of these ports that it has are 1.
_END_PORTS = ("last", "final_group")


class ProtocolWatch:
    """Names the protocol bins of a trace, cycle by cycle."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._taken = False  # a step, since the last reset
        self._gap = False  # `valid` was low since then
        self._steps = 0  # of the dot product that has begun
        self._unfinished = 0  # dot products that have ended without a result so far

    def cycle(self, step: Mapping[str, int] | None, ready: bool, result: bool) -> Iterator[str]:
        """The bins of a clock cycle without reset.

        Args:
            step: What is shown, None for `valid` = 0.
            ready: Whether it is taken.
            result: Whether `y_valid` is high.
        """
        self._unfinished -= result
        if step is None:
            self._gap = True
        if step is None or not ready:
            return
        if self._taken and self._gap:
            yield "gap within a dot product" if self._steps else "gap between dot products"
        elif self._taken and not self._steps:
            yield "dot products back to back"
        self._taken, self._gap = True, False
        self._steps += 1
        if all(step.get(port, 1) for port in _END_PORTS):
            yield f"dot product of {'one step' if self._steps == 1 else 'several steps'}"
            self._steps = 0
            self._unfinished += 1

    def reset(self, step: Mapping[str, int] | None, result: bool) -> Iterator[str]:
        """The bins of a clock cycle with `rst` high."""
        if self._steps or self._unfinished > result:
            yield "reset with work under way"
        if step is not None:
            yield "reset while a step is shown"
        self._clear()


# ------------------------------------------------------------------ codes and values


def code_bins(name: str, bits: int) -> tuple[str, ...]:
    """A bin per code of a port; `f"{name} {code}"` is the one that a code hits.

    >>> code_bins("code", 2)
    ('code 0', 'code 1', 'code 2', 'code 3')
    """
    return tuple(f"{name} {code}" for code in range(1 << bits))


def sign_bins(name: str) -> tuple[str, ...]:
    """Bins for the sign of an integer."""
    return tuple(sign_bin(name, value) for value in (-1, 0, 1))


def sign_bin(name: str, value: int) -> str:
    """The bin that an integer hits.

    >>> sign_bin("sum", -3)
    'sum negative'
    """
    return f"{name} {'negative' if value < 0 else 'positive' if value else 'zero'}"


def fp16_bins(name: str) -> tuple[str, ...]:
    """Bins for the kinds of finite FP16 numbers, with both signs."""
    kinds = (0x0000, 0x0001, 0x3C00, 0x7BFF)
    return tuple(fp16_bin(name, sign | bits) for sign in (0, 0x8000) for bits in kinds)


def fp16_bin(name: str, bits: int) -> str:
    """The bin that an FP16 pattern hits.

    >>> fp16_bin("activation", 0x8001)
    'activation -subnormal'
    """
    magnitude = bits & 0x7FFF
    if magnitude == 0x7BFF:
        kind = "largest"
    else:
        kind = "normal" if magnitude >> 10 else "subnormal" if magnitude else "zero"
    return f"{name} {'-' if bits >> 15 else '+'}{kind}"


# ------------------------------------------------------------------ arithmetic


def distance_bins(name: str, largest: int) -> tuple[str, ...]:
    """Bins for how far an operand is shifted to meet another: 1, 2, ..., `largest` or more."""
    return tuple(distance_bin(name, distance, largest) for distance in range(1, largest + 1))


def distance_bin(name: str, distance: int, largest: int) -> str:
    """The bin that a distance of 1 or more hits.

    >>> distance_bin("addend", 30, 23)
    'addend shifted by 23 or more'
    """
    return f"{name} shifted by {min(distance, largest)}{' or more' * (distance >= largest)}"


def sticky_bins(name: str) -> tuple[str, ...]:
    """Bins for whether a shift to the right loses set bits."""
    return (f"{name} sticky clear", f"{name} sticky set")


def sticky_bin(name: str, value: int, places: int) -> str:
    """The bin that `value >> places` hits."""
    return f"{name} sticky {'set' if value & (1 << places) - 1 else 'clear'}"


def rounding_bins(name: str) -> tuple[str, ...]:
    """Bins for rounding to nearest even, without the carry."""
    return tuple(rounding_bin(name, value, 2) for value in (4, 5, 7, 2, 6))


def rounding_bin(name: str, value: int, places: int) -> str:
    """The bin that rounding `value / 2**places` to nearest even hits.

    >>> rounding_bin("sum", 6, 2)  # 1.5 becomes 2
    'sum tie, rounded up'
    """
    rest, half = value & (1 << places) - 1, 1 << places >> 1
    if rest == 0:
        return f"{name} exact"
    up = rest > half or (rest == half and value >> places & 1 == 1)
    return f"{name} {'tie, ' * (rest == half)}rounded {'up' if up else 'down'}"
