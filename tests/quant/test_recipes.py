"""Recipe names, aliases and their checks."""

import re

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.quant import FORMATS, InputError, Recipe, resolve_recipe


@pytest.mark.parametrize(
    ("text", "format", "group_size", "scale_format"),
    [
        ("fp16", None, None, None),
        ("w4g128-int-asym", "int4-asym", 128, "fp16"),
        ("w3g128-bitmod", "bitmod3", 128, "int8"),
        ("w3g64-bitmod-s16", "bitmod3", 64, "fp16"),
        ("w8g32-int-sym-s8", "int8-sym", 32, "int8"),
        ("w2g1-int-asym", "int2-asym", 1, "fp16"),
        ("w4-fp", "fp4", None, "fp16"),
        ("w3g16-fp-er", "fp3-er", 16, "fp16"),
        ("w4-fp-ea-s8", "fp4-ea", None, "int8"),
        ("w6g128-fp-e2m3", "fp6-e2m3", 128, "fp16"),
        ("w6g128-fp-e3m2", "fp6-e3m2", 128, "fp16"),
        ("w4g128-dint-sym", "dint4-sym", 128, "fp16"),
        ("w8-dint-asym-s8", "dint8-asym", None, "int8"),
        ("w2-ternary", "ternary", None, "fp16"),
        ("w1-binary", "binary", None, "fp16"),
        ("w1g64-binary-s8", "binary", 64, "int8"),
        ("w4-flint", "flint4", None, "fp16"),
        ("w5g128-flint", "flint5", 128, "fp16"),
        ("w4-pot", "pot4", None, "fp16"),
        ("w4-ant", "ant4", None, "fp16"),
        ("w4-olive", "olive4", None, "fp16"),
        ("mxfp4", "mxfp4", 32, "e8m0"),
        ("mxint8", "mxint8", 32, "e8m0"),
        ("nvfp4", "nvfp4", 16, "e4m3"),
    ],
)
def test_names(text, format, group_size, scale_format):
    recipe = resolve_recipe(text)
    assert (recipe.format, recipe.group_size, recipe.scale_format) == (
        format,
        group_size,
        scale_format,
    )
    assert recipe.name == text
    assert recipe.plain


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("bitmod3", "w3g128-bitmod"),
        ("bitmod4", "w4g128-bitmod"),
        ("int4", "w4g128-int-sym"),
        ("int8-sym", "w8g128-int-sym"),
        ("int4-asym", "w4g128-int-asym"),
        ("fp4", "w4g128-fp"),
        ("fp3-ea", "w3g128-fp-ea"),
        ("fp6-e3m2", "w6g128-fp-e3m2"),
        ("dint4", "w4g128-dint-sym"),
        ("dint8-sym", "w8g128-dint-sym"),
        ("dint3-asym", "w3g128-dint-asym"),
        ("ternary", "w2g128-ternary"),
        ("binary", "w1g128-binary"),
        ("ant4", "w4g128-ant"),
        ("olive4", "w4g128-olive"),
        ("w4-mxfp", "mxfp4"),
        ("w8g32-mxint", "mxint8"),
        ("w4-nvfp", "nvfp4"),
        # a suffix that says the default is left out
        ("w3g128-bitmod-s8", "w3g128-bitmod"),
        ("w4g128-fp-s16", "w4g128-fp"),
    ],
)
def test_aliases_resolve_to_the_canonical_recipe(text, name):
    assert resolve_recipe(text).name == name
    assert resolve_recipe(text) == resolve_recipe(name)


@given(
    format=st.sampled_from(sorted(FORMATS)),
    group_size=st.none() | st.integers(1, 10**6),
    scale_format=st.sampled_from(["fp16", "int8"]),
)
def test_every_recipe_is_resolved_from_its_name(format, group_size, scale_format):
    if FORMATS[format].block is not None:
        group_size, scale_format = None, None
    elif group_size is not None and FORMATS[format].kind == "olive":
        group_size += group_size % 2
    recipe = Recipe(format=format, group_size=group_size, scale_format=scale_format)
    assert resolve_recipe(recipe.name) == recipe
    assert Recipe(**recipe.model_dump()) == recipe


def test_a_recipe_resolves_to_itself():
    recipe = resolve_recipe("bitmod3")
    assert resolve_recipe(recipe) is recipe


def test_derived_facts():
    recipe = resolve_recipe("w3g64-bitmod")
    assert recipe.format_obj is FORMATS["bitmod3"]
    assert recipe.nominal_bits == 3
    assert recipe.stored_bits(2, 128) == 2 * (128 * 3 + 2 * 10 + 32)
    fp16 = resolve_recipe("fp16")
    assert (fp16.format_obj, fp16.nominal_bits, fp16.stored_bits(2, 3)) == (None, 16, 96)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("fp16", "FP16"),
        ("bitmod4", "BitMoD-4"),
        ("w4g64-bitmod-s16", "BitMoD-4 g64 s16"),
        ("int4", "INT4-sym"),
        ("w4-int-asym-s8", "INT4-asym per channel s8"),
        ("fp3-er", "FP3-ER"),
        ("fp4", "FP4"),
        ("fp6-e2m3", "FP6-E2M3"),
        ("dint4", "dINT4-sym"),
        ("w3g64-dint-asym", "dINT3-asym g64"),
        ("w2-ternary", "Ternary per channel"),
        ("binary", "Binary"),
        ("w4-ant", "ANT-4 per channel"),
        ("flint5", "flint-5"),
        ("pot4", "PoT-4"),
        ("w4g64-olive-s8", "OliVe-4 g64 s8"),
        ("mxfp4", "MXFP4"),
        ("mxint8", "MXINT8"),
        ("nvfp4", "NVFP4"),
    ],
)
def test_labels(text, label):
    assert resolve_recipe(text).label == label


def test_labels_and_names_are_unique():
    recipes = [
        Recipe(format=format, group_size=group, scale_format=scale)
        for format in FORMATS
        for group in (None, 64, 128)
        for scale in ("fp16", "int8")
        if FORMATS[format].block is None
    ]
    recipes += [Recipe(format=format) for format in FORMATS if FORMATS[format].block]
    for field in ("name", "label"):
        assert len({getattr(recipe, field) for recipe in recipes}) == len(recipes)


def test_recipes_do_not_change():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        resolve_recipe("bitmod3").group_size = 64


_FORM = "recipes are called fp16, bitmod3, int4-asym or w4g64-int-sym, for example"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bitmod5", "unknown recipe 'bitmod5'; nearest: bitmod4, bitmod3, w4g128-bitmod"),
        ("BitMoD3", "unknown recipe 'BitMoD3'; nearest: bitmod3, bitmod4, w4g128-bitmod"),
        (
            "w4g128-int-sim",
            "unknown recipe 'w4g128-int-sim'; "
            "nearest: w4g128-int-sym, w4g128-int-asym, w4g128-dint-sym",
        ),
        ("int9", "unknown recipe 'int9'; nearest: int8, int7, int6"),
        ("w5g128-fp", "unknown recipe 'w5g128-fp'; nearest: w4g128-fp, w3g128-fp, w4g128-nf"),
        (
            "w3-ternary",
            "unknown recipe 'w3-ternary'; nearest: ternary, w2g128-ternary, w1g128-binary",
        ),
        ("dint2", "unknown recipe 'dint2'; nearest: int2, dint8, dint7"),
        (
            "w4g64-mxfp",
            "recipe 'w4g64-mxfp': mxfp4 has blocks of 32 columns, so group_size (=64) must be 32; "
            "leave it out",
        ),
        (
            "w4-nvfp-s8",
            "recipe 'w4-nvfp-s8': nvfp4 has no int8 scales; its scale_format is e4m3",
        ),
        (
            "w4g7-olive",
            "recipe 'w4g7-olive': olive4 codes columns in pairs, so group_size (=7) must be even, "
            "or one group per row",
        ),
        ("", f"unknown recipe ''; {_FORM}"),
        ("?", f"unknown recipe '?'; {_FORM}"),
        (
            "w4g0-int-sym",
            "recipe 'w4g0-int-sym': group size 0 must be at least 1; "
            "leave g0 out for one group per row",
        ),
        (
            "w4g-8-int-sym",
            "recipe 'w4g-8-int-sym': group size -8 must be at least 1; "
            "leave g-8 out for one group per row",
        ),
    ],
)
def test_unknown_recipes(text, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        resolve_recipe(text)


@pytest.mark.parametrize(
    "text",
    [
        "w4g" + "9" * 5000 + "-int-sym",
        "w" + "4" * 5000 + "-int-sym",
        "w4g128",
        "w4g12é-fp",
        "w٤-fp",
    ],
    ids=["long group", "long bits", "no type", "letter", "other digits"],
)
def test_odd_names_are_unknown_too(text):
    with pytest.raises(InputError, match="^unknown recipe "):
        resolve_recipe(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "fp5"}, "unknown format 'fp5'; nearest: fp4, fp3"),
        ({"format": None, "group_size": 64}, "fp16 has no group_size"),
        (
            {"format": None, "group_size": 64, "scale_format": "int8"},
            "fp16 has no group_size and no scale_format",
        ),
        ({"format": "fp4", "group_size": 0}, "greater than or equal to 1"),
        ({"format": "mxfp4", "group_size": 64}, "mxfp4 has blocks of 32 columns"),
        ({"format": "mxfp4", "scale_format": "fp16"}, "mxfp4 has no fp16 scales"),
        ({"format": "fp4", "scale_format": "e4m3"}, "fp4 has no e4m3 scales"),
        ({"format": "fp4", "colour": "red"}, "Extra inputs are not permitted"),
        ({"format": "fp4", "name": "w3-fp"}, "name 'w3-fp' disagrees with the recipe 'w4-fp'"),
        ({"format": None, "name": "w3-fp"}, "name 'w3-fp' disagrees with the recipe 'fp16'"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(pydantic.ValidationError, match=re.escape(message)):
        Recipe(**fields)
