"""Liberty expressions: the tree against what Python makes of each combination of inputs."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from bitwright.quant import InputError
from bitwright.rtl import netlist, technology

Expression, read_function = netlist.Expression, netlist.read_function
NAMES = ("A", "B", "C", "D")


@pytest.mark.parametrize(
    ("function", "meaning"),
    [
        ("A", lambda a, b, c, d: a),
        ("!A", lambda a, b, c, d: not a),
        ("A'", lambda a, b, c, d: not a),
        ("!A'", lambda a, b, c, d: a),
        ("A''", lambda a, b, c, d: a),
        ("!!A", lambda a, b, c, d: a),
        ("A B", lambda a, b, c, d: a and b),
        ("A*B&C", lambda a, b, c, d: a and b and c),
        ("A + B C", lambda a, b, c, d: a or (b and c)),
        ("A B | C D", lambda a, b, c, d: (a and b) or (c and d)),
        ("A & B ^ C", lambda a, b, c, d: a and (b != c)),
        ("A ^ B & C", lambda a, b, c, d: (a != b) and c),
        ("A ^ B + C", lambda a, b, c, d: (a != b) or c),
        ("!A ^ B", lambda a, b, c, d: (not a) != b),
        ("A ^ B' C", lambda a, b, c, d: (a != (not b)) and c),
        ("A B'", lambda a, b, c, d: a and not b),
        ("A !B", lambda a, b, c, d: a and not b),
        ("(A + B)(C + D)'", lambda a, b, c, d: (a or b) and not (c or d)),
        ("!(A (B + !(C D)))", lambda a, b, c, d: not (a and (b or not (c and d)))),
        ("((A ^ B) ^ C) ^ D", lambda a, b, c, d: (a + b + c + d) % 2),
        ("A ^ B ^ C ^ D", lambda a, b, c, d: (a + b + c + d) % 2),
        (" ( A|B ) & 1 ", lambda a, b, c, d: a or b),
        ("A 0 + 1'", lambda a, b, c, d: False),
        ("A (1)", lambda a, b, c, d: a),
    ],
)
def test_every_combination_of_inputs(function: str, meaning: Callable[..., bool]) -> None:
    tree = read_function(function, NAMES)
    cases = list(product((0, 1), repeat=4))
    for case in cases:
        expected = int(bool(meaning(*map(bool, case))))
        assert tree.value(dict(zip(NAMES, case, strict=True))) == expected, case
    # All sixteen at once, one a bit.
    packed = {name: sum(c[i] << k for k, c in enumerate(cases)) for i, name in enumerate(NAMES)}
    expected = sum(int(bool(meaning(*map(bool, c)))) << k for k, c in enumerate(cases))
    assert tree.value(packed, ones=0xFFFF) == expected


@pytest.mark.parametrize("name", list(technology.TECHNOLOGIES))
def test_packed_bits_are_independent_of_each_other(name: str) -> None:
    rng = np.random.default_rng(0)
    seen = 0
    for cell in technology.TECHNOLOGIES[name].cells.values():
        known = [*cell.pins, *(cell.ff.state if cell.ff else ())]
        for output in cell.outputs.values():
            tree = read_function(output.function, known)
            words = {pin: int(rng.integers(1 << 63)) for pin in known}
            bits = [
                tree.value({pin: word >> lane & 1 for pin, word in words.items()})
                for lane in range(63)
            ]
            whole = tree.value(words, (1 << 63) - 1)
            assert whole == sum(bit << lane for lane, bit in enumerate(bits)), cell.name
            seen += 1
    assert seen >= 46


def test_the_tree_and_its_names() -> None:
    a, b = Expression("name", text="A"), Expression("name", text="B")
    tree = read_function("A B A + B'", NAMES)
    assert tree == Expression("|", (Expression("&", (a, b, a)), Expression("~", (b,))))
    assert list(tree.names()) == ["A", "B", "A", "B"]
    assert read_function("1", ()) == Expression("constant", text="1")


def test_names_with_indices_and_dots() -> None:
    assert list(read_function("D[0] & q.1'", ("D[0]", "q.1")).names()) == ["D[0]", "q.1"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("A + E", "'A + E': expected one of A, B, C, D, found 'E'"),
        ("", "'': expected one of A, B, C, D, found 'its end'"),
        ("A &", "'A &': expected one of A, B, C, D, found 'its end'"),
        ("A ^ | B", "'A ^ | B': expected one of A, B, C, D, found '|'"),
        ("()", "'()': expected one of A, B, C, D, found ')'"),
        ("(A B", "'(A B': a parenthesis is not closed"),
        ("A ) B", "'A ) B': ')' is not expected there"),
        ("' A", '"\' A": expected one of A, B, C, D, found "\'"'),
        ("A ? B", "'A ? B': '?' is not understood"),
    ],
)
def test_broken_expressions(function: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_function(function, NAMES)
    assert str(error.value) == f"cell function {message}"
