"""Functional coverage of the FP16 multiply-accumulate PEs: all bins, and those of a clock cycle.

Products and sums are integers in units of 2**-48, as in the reference; the length of one is where
its highest bit stands. In binary16 subnormal numbers have the length of the smallest normal one.
"""

from collections.abc import Iterator

from bitwright.rtl import coverage
from bitwright.sim import fp16

_SUBNORMAL_PLACES = fp16.UNIT - 24  #: of the last place of a binary16 subnormal


def bins(config: fp16.Fp16Config) -> tuple[str, ...]:
    """All bins of a PE."""
    bits = _significand_bits(config)
    common = (
        *coverage.fp16_bins("activation"),
        *coverage.fp16_bins("weight"),
        *(f"{count} subnormal operands" for count in range(3)),
        "significands multiply to 21 bits",
        "significands multiply to 22 bits",
        *coverage.sign_bins("product"),
        *(
            name
            for operand in ("accumulator", "product")
            for name in (
                *coverage.distance_bins(operand, bits + 2),
                *coverage.sticky_bins(operand),
            )
        ),
        "operands of equal length",
        "sum carries",
        "sum keeps its length",
        # Two operands of lengths that differ by 0 or 1 cancel down to the last place of the longer
        # one, or half of it.
        *(f"sum cancels by {places}" for places in range(1, bits + 1)),
        "sum cancels to zero",
        *coverage.rounding_bins("sum"),
        "sum rounded to a new exponent",
        *coverage.sign_bins("result"),
    )
    if config.acc == "fp32":
        return common
    return (
        *common,
        *coverage.rounding_bins("product"),
        "product rounded to a new exponent",
        "product rounded to the smallest normal",
        "product rounded to zero",
        "product subnormal",
        "sum subnormal",
        *(f"{what} saturates {end}" for what in ("product", "sum") for end in ("above", "below")),
    )


def covered(mac: fp16.Fp16Mac) -> Iterator[str]:
    """The bins of the last clock cycle of a reference."""
    if mac.multiplied is not None:
        yield from _product(mac.config, mac.multiplied)
    if mac.added is not None:
        yield from _sum(mac.config, *mac.added)


def _significand_bits(config: fp16.Fp16Config) -> int:
    return 24 if config.acc == "fp32" else 11


def _product(config: fp16.Fp16Config, pair: fp16.Pair) -> Iterator[str]:
    yield coverage.fp16_bin("activation", pair.act)
    yield coverage.fp16_bin("weight", pair.weight)
    subnormal = [0 < bits & 0x7FFF < 0x400 for bits in (pair.act, pair.weight)]
    yield f"{sum(subnormal)} subnormal operands"
    if all(bits & 0x7C00 for bits in (pair.act, pair.weight)):
        significands = [bits & 0x3FF | 0x400 for bits in (pair.act, pair.weight)]
        length = (significands[0] * significands[1]).bit_length()
        yield f"significands multiply to {length} bits"
    product = fp16.exact_product(pair.act, pair.weight)
    yield coverage.sign_bin("product", product)
    if config.acc == "fp16":
        yield from _rounding_fp16("product", product)
        rounded = abs(fp16.round_fp16(product))
        smallest_normal = 1 << fp16.UNIT - 14
        if product and not rounded:
            yield "product rounded to zero"
        if 0 < rounded < smallest_normal:
            yield "product subnormal"
        if abs(product) < smallest_normal == rounded:
            yield "product rounded to the smallest normal"


def _sum(config: fp16.Fp16Config, acc: int, product: int, last: int) -> Iterator[str]:
    total = acc + product
    if acc and product:
        yield from _meeting(config, acc, product)
    if config.acc == "fp16":
        yield from _rounding_fp16("sum", total)
        if 0 < abs(total) < 1 << fp16.UNIT - 14:
            yield "sum subnormal"
    else:
        yield from _rounding("sum", total, max(total.bit_length() - 24, 0), 24)
    if last:
        yield coverage.sign_bin("result", total)


def _meeting(config: fp16.Fp16Config, acc: int, product: int) -> Iterator[str]:
    """How two operands lie to each other, and how long their sum is."""
    bits = _significand_bits(config)
    shortest = 0 if config.acc == "fp32" else _SUBNORMAL_PLACES + bits
    lengths = [max(value.bit_length(), shortest) for value in (acc, product)]
    longest, distance = max(lengths), lengths[1] - lengths[0]
    if distance:
        name, value = ("accumulator", acc) if distance > 0 else ("product", product)
        yield coverage.distance_bin(name, abs(distance), bits + 2)
        yield coverage.sticky_bin(name, abs(value), max(longest - bits, 0))
    else:
        yield "operands of equal length"
    total = acc + product
    change = max(total.bit_length(), shortest) - longest
    if total == 0:
        yield "sum cancels to zero"
    elif change < 0:
        yield f"sum cancels by {-change}"
    else:
        yield "sum carries" if change else "sum keeps its length"


def _rounding_fp16(name: str, exact: int) -> Iterator[str]:
    places = max(exact.bit_length() - 11, _SUBNORMAL_PLACES)
    unlimited = fp16.round_nearest_even(abs(exact), places) << places
    if unlimited > fp16.FP16_MAX << fp16.UNIT:
        yield f"{name} saturates {'below' if exact < 0 else 'above'}"
    else:
        yield from _rounding(name, exact, places, 11)


def _rounding(name: str, exact: int, places: int, bits: int) -> Iterator[str]:
    yield coverage.rounding_bin(name, abs(exact), places)
    if fp16.round_nearest_even(abs(exact), places) == 1 << bits:
        yield f"{name} rounded to a new exponent"
