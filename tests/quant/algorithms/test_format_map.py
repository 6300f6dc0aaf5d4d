"""A map of formats: one string is one model, bit for bit."""

import numpy as np
import pytest

from bitwright.quant import (
    LINEARS,
    Calibration,
    FormatMap,
    InputError,
    apply_recipe,
    load_model,
    load_quantized,
    quantize,
    resolve_recipe,
    save_quantized,
)

NAMES = ("bitmod3", "int8-sym", "int4-asym")


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def mapped(tiny, seed=0, steps=""):
    """A recipe with a random map for tiny."""
    count = tiny.config.layers * len(LINEARS)
    numbers = np.random.default_rng(seed).integers(0, len(NAMES), count)
    step = FormatMap.of(NAMES, numbers)
    head = {"bitmod3": "w3g32-bitmod", "int8-sym": "w8g32-int-sym-s8"}
    return resolve_recipe(
        f"{head.get(step.choose[0], 'w4g32-int-asym-s8')}{steps}+{step.written()}"
    ), [NAMES[number] for number in numbers]


def test_linears_are_the_models_in_its_order(tiny):
    names = [name.split(".", 2)[2] for name in tiny.linear_names()]
    assert names == list(LINEARS) * tiny.config.layers


@pytest.mark.parametrize("seed", range(4))
def test_the_name_reproduces_the_map(tiny, seed):
    recipe, formats = mapped(tiny, seed)
    again = resolve_recipe(recipe.name)
    assert again == recipe
    assert again.format_map.chosen == tuple(formats)


def test_equal_maps_have_equal_names():
    one = FormatMap(choose=("int4-sym", "fp4", "bitmod3"), map="2002")
    other = FormatMap(choose=("bitmod3", "int4-sym"), map="0110")
    assert one == other
    assert one.written() == "formats:choose=bitmod3|int4-sym,map=0110"
    assert one.short() == "formats 2 bitmod3, 2 int4-sym"


def test_digits_go_on_with_letters():
    from bitwright.quant import FORMATS

    names = tuple(FORMATS)[:20]
    step = FormatMap.of(names, range(20))
    assert step.map == "0123456789abcdefghij"
    assert step.chosen == names


def test_each_linear_is_rounded_as_its_own_recipe_would(tiny):
    recipe, formats = mapped(tiny)
    made = apply_recipe(tiny, recipe)
    assert made.calibration is None  # no data was read
    for (name, tensor), format in zip(made.tensors.items(), formats, strict=True):
        assert tensor == quantize(tiny.weight(name), format, 32, "int8")


def test_true_bits_are_those_of_the_parts(tiny):
    recipe, formats = mapped(tiny)
    stored, weights = 0, 0
    shapes = tiny.config.linear_shapes().values()
    for (n, k), format in zip(shapes, formats, strict=True):
        groups = n * (k // 32)
        # Codes; per group an INT8 scale, BitMoD's 2-bit selector, INT4's zero point; per row FP32.
        bits = {"bitmod3": 3, "int8-sym": 8, "int4-asym": 4}[format] * n * k + 8 * groups + 32 * n
        bits += {"bitmod3": 2, "int8-sym": 0, "int4-asym": 4}[format] * groups
        stored, weights = stored + bits, weights + n * k
    made = apply_recipe(tiny, recipe)
    assert made.stored_bits == stored
    assert made.bits_per_weight == stored / weights


def test_a_uniform_map_is_the_plain_recipe(tiny):
    digits = "0" * (tiny.config.layers * len(LINEARS))
    made = apply_recipe(tiny, f"w3g32-bitmod+formats:choose=bitmod3,map={digits}")
    assert made.tensors == apply_recipe(tiny, "w3g32-bitmod").tensors


def test_formats_with_a_block_keep_theirs(tiny):
    count = tiny.config.layers * len(LINEARS)
    recipe = f"w4g16-int-asym+formats:choose=int4-asym|mxfp4,map={('01' * count)[:count]}"
    sizes = [tensor.group_size for tensor in apply_recipe(tiny, recipe).tensors.values()]
    assert sizes == ([16, 32] * count)[:count]


def test_it_is_stored_and_read_back(tiny, tmp_path):
    recipe, _ = mapped(tiny)
    made = apply_recipe(tiny, recipe)
    save_quantized(tmp_path / "mixed.safetensors", made)
    assert load_quantized(tmp_path / "mixed.safetensors", tiny).tensors == made.tensors


@pytest.mark.slow
def test_awq_searches_with_each_linears_own_format(tiny):
    calibration = Calibration(sequences=2, length=32)
    recipe, formats = mapped(tiny, steps="+awq")
    made = apply_recipe(tiny, recipe, calibration=calibration)
    assert [tensor.format.name for tensor in made.tensors.values()] == formats
    # With one format for all it is AWQ in that format.
    digits = "0" * len(formats)
    uniform = f"w3g32-bitmod+awq+formats:choose=bitmod3,map={digits}"
    plain = apply_recipe(tiny, "w3g32-bitmod+awq", calibration=calibration)
    assert apply_recipe(tiny, uniform, calibration=calibration).tensors == plain.tensors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("formats:choose=int4-asym,map=000", "has 3 digits; the model has 5 layers of 7 linears, "
         "so 35 are needed"),
        ("formats:choose=int4-asym|fp4,map=012", "has the digit '2'; the 2 formats of choose are "
         "0 to 1"),
        ("formats:choose=int4-asym|nope,map=01", "unknown format 'nope'"),
        ("formats:choose=fp4|fp4,map=01", "choose has 2 formats; at most 36, each of them once"),
        ("formats:choose=fp4", "formats needs choose=format|format and map=0110"),
        ("formats:choose=fp4|fp3,map=01", "does not use the recipe's own, int4-asym; begin the "
         "recipe with one of fp4, fp3"),
        ("gptq+formats:choose=int4-asym,map=0", "gptq and formats both choose codes"),
        ("omniquant+formats:choose=int4-asym,map=0", "omniquant learns for one format; it does "
         "not go with formats"),
    ],
    ids=["length", "digit", "format", "twice", "no map", "head", "gptq", "learned"],
)  # fmt: skip
def test_what_cannot_be_is_refused(tiny, name, message):
    with pytest.raises(InputError) as caught:
        apply_recipe(tiny, f"w4g32-int-asym+{name}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
