"""Files of three commands become one model; what is damaged, foreign or newer is refused."""

import json

import pytest

from bitwright.experiments import looks, pareto_front, read_results
from bitwright.quant import InputError


def test_a_codesign_folder(codesign_folder):
    explored = read_results(codesign_folder)
    assert explored.kind == "codesign" and len(explored.points) == 3
    document = json.loads((codesign_folder / "results.json").read_text())
    for point, record in zip(explored.points, document["records"], strict=True):
        assert point["recipe"] == record["recipe"]
        assert point["decode_latency_s"] == record["decode"]["latency_s"]
        assert point["prefill_dram_uJ"] == record["prefill"]["energy_uJ"]["dram"]
    assert explored.command == "bitwright codesign --model tiny"
    assert set(explored.cards) == set(explored.maps) == {r["recipe"] for r in document["records"]}
    assert explored.cards["fp16"]["technology"] == "nangate45"
    # tiny has 5 layers of 7 linears; a recipe without steps gives all the same format.
    assert explored.maps["w4g64-bitmod"] == {
        f"{layer}.{linear}": "bitmod4"
        for layer in range(5)
        for linear in ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down")
    }


def test_stacks_add_up_to_the_totals(codesign_folder):
    explored = read_results(codesign_folder)
    totals = {
        "energy, prefill": ("prefill_energy_uJ", 1e-3),
        "energy, decode": ("decode_energy_uJ", 1e-3),
        "latency, prefill": ("prefill_latency_s", 1e3),
        "latency, decode": ("decode_latency_s", 1e3),
    }
    assert [stack.title for stack in explored.stacks] == list(totals)
    for stack in [*explored.stacks, explored.area]:
        column, factor = totals.get(stack.title, ("area_mm2", 1))
        for point in explored.points:
            heights = [stack.height(point, part) for part in stack.parts]
            assert min(heights) >= 0
            assert sum(heights) == pytest.approx(factor * point[column])


def test_products_lie_under_their_roofs(codesign_folder):
    explored = read_results(codesign_folder)
    document = json.loads((codesign_folder / "results.json").read_text())
    for record in document["records"]:
        line = explored.rooflines[record["recipe"]]
        roofs = {roof.phase: roof for roof in line.roofs}
        assert len(line.products) == sum(len(record[p]["layers"]) for p in roofs)
        for product in line.products:
            roof = roofs[product.phase]
            limit = min(roof.peak_ops_per_s, product.ops_per_byte * roof.dram_bytes_per_s)
            assert 0 < product.ops_per_s <= limit * (1 + 1e-9)


def test_a_sweep_folder(sweep_folder):
    explored = read_results(sweep_folder)
    assert (explored.kind, len(explored.points)) == ("sweep", 6)
    assert explored.axes == ("area_mm2", "decode_latency_s")  # the objectives
    assert explored.title == "sweep sizes: 6 points" and '"rows"' in explored.specification
    assert explored.points[5]["status"] == "failed" and explored.points[5]["area_mm2"] is None
    latency = next(s for s in explored.stacks if s.title == "latency, decode")
    # 800 computing, 100 waiting; the vector unit is what is left of 1000 cycles at 1 ns.
    heights = {part: latency.height(explored.points[0], part) for part in latency.parts}
    assert heights["computing"] == pytest.approx(800e-6)
    assert heights["waiting for DRAM"] == pytest.approx(100e-6)
    assert heights["vector unit computing"] == pytest.approx(100e-6)
    assert explored.maps["w4g128-bitmod on llama-2-7b"]["31.ffn.down"] == "bitmod4"


def test_a_search_folder(search_folder):
    explored = read_results(search_folder)
    assert (explored.kind, len(explored.points)) == ("search", 3)
    assert explored.axes == ("energy_per_token_uJ", "perplexity")
    assert explored.chosen == "mixed-001" and explored.points[1]["found"] == "knee"
    assert explored.maps["mixed-001"]["0.attn.q"] == "int8-sym"
    assert [point["family"] for point in explored.points] == ["mixed", "mixed", "bitmod"]


def test_a_front_by_hand():
    points = [{"a": a, "b": b} for a, b in ((1, 9), (2, 5), (3, 6), (4, 4), (4, 4), (0, None))]
    assert [p["b"] for p in pareto_front(points, "a", "b")] == [9, 5, 4]
    speeds = [{"tokens_per_s": s, "b": b} for s, b in ((1, 1), (2, 2), (2, 3))]
    front = pareto_front(speeds, "tokens_per_s", "b")
    assert [(p["tokens_per_s"], p["b"]) for p in front] == [(2, 2), (1, 1)]


META = {"meta": {"bitwright": "0.1.0"}}
RECORD: dict[str, dict[str, int]] = {"prefill": {}, "decode": {}}
BAD = [
    ("empty", "", "is damaged: Expecting value: line 1 column 1"),
    ("cut", '{"meta": {"bitw', "is damaged: Unterminated string"),
    ("deep", "[" * 100_000, "is damaged: nested too deeply; make it again"),
    ("bytes", b"\xff\xfe\x00", "is damaged: 'utf-8' codec"),
    ("list", "[1, 2]", "is not a file of bitwright codesign, sweep or search: it has no meta.bitw"),
    ("foreign", '{"meta": {"tool": "x"}}', "it has no meta.bitwright, the version that wrote it"),
    ("version", '{"meta": {"bitwright": "new"}}', "it has no meta.bitwright"),
    (
        "newer",
        '{"meta": {"bitwright": "99.1.0"}, "records": []}',
        "was written by bitwright 99.1.0, this is 0.1.0; update bitwright",
    ),
    ("no records", json.dumps(META), "has neither records nor a front"),
    ("none", json.dumps(META | {"records": []}), "is damaged: records: List should have at least"),
    (
        "no recipe",
        json.dumps(META | {"records": [RECORD]}),
        "is damaged: records.0.recipe: Field required; make it again",
    ),
    ("flat", json.dumps(META | {"records": [{"a": 1}]}), "is damaged: records.0 has no status"),
    ("texts", json.dumps(META | {"records": ["a"]}), "is damaged: records.0: Input should be"),
    ("front", json.dumps(META | {"front": [{}]}), "is damaged: front.0.name: Field required"),
]


@pytest.mark.parametrize(("content", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_results(tmp_path)
    assert str(caught.value).startswith(f"{path} ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_without_results_are_refused(tmp_path, codesign_folder):
    with pytest.raises(InputError, match="nowhere: no such folder; give one made by codesign"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds neither results.json nor search.json"):
        read_results(tmp_path)
    for name in ("results.json", "search.json"):
        (tmp_path / name).write_bytes((codesign_folder / "results.json").read_bytes())
    with pytest.raises(InputError, match="name one: bitwright report .*results.json"):
        read_results(tmp_path)
    assert read_results(tmp_path / "search.json").kind == "codesign"


def test_values_that_are_no_numbers_and_labels_that_are_no_lines(sweep_folder, tmp_path):
    document = json.loads((sweep_folder / "results.json").read_text())
    odd = document["records"][0]
    odd |= {"name": "a\n\x00b\ud800" + "c" * 999, "area_mm2": float("nan"), "batch": 10**400}
    odd |= {"extra": {"a": [1]}, "flag": True}
    (tmp_path / "results.json").write_text(json.dumps(document))
    point = read_results(tmp_path).points[0]
    assert point["name"] == "a \ufffdb\ufffd" + "c" * 292 + "..."
    assert len(point["name"]) == 300
    assert point["area_mm2"] is None and point["batch"] is None
    assert point["extra"] == '{"a": [1]}' and point["flag"] == "yes"


def test_families():
    names = {
        "fp16": "fp16",
        "w8g128-int-sym": "int",
        "int4": "int",
        "w4g128-bitmod+gptq": "bitmod",
        "w4a8-dint": "dint",
        "w4g128-int-asym+omniquant": "int",  # "ant" within a word is no ANT
        "w4-ant": "ant",
        "mxfp4": "mx",
        "nvfp4": "nvfp4",
        "w2a8-abq": "bit planes",
        "w4g64-bitmod+formats:choose=bitmod4|int8-sym,map=01": "mixed",
        "fp16xint4": "int",
        "anything": "other",
    }
    assert {name: looks.family(name) for name in names} == names


def test_looks_can_be_told_apart_in_grey():
    families = list(looks.FAMILIES.values())
    assert len({look.marker for look in families}) == len(families)
    assert len({look.symbol for look in families}) == len(families)
    # Families of one hue differ by the marker alone, so no hue serves more than two.
    colours = [look.colour for look in families]
    assert max(colours.count(colour) for colour in colours) <= 2
    parts = looks.PARTS
    for place, (colour, hatch, pattern) in enumerate(parts):
        for other, other_hatch, other_pattern in parts[:place]:
            apart = abs(looks.lightness(colour) - looks.lightness(other))
            alike = apart < looks.LEAST_LIGHTNESS
            assert not alike or (hatch != other_hatch and pattern != other_pattern)


def test_formats_are_darker_the_more_bits_they_have():
    found = looks.format_looks(["int8-sym", "int4-sym", "bitmod4", "bitmod3", "fp16", "unknown"])
    assert list(found) == ["bitmod3", "bitmod4", "int4-sym", "int8-sym", "fp16", "unknown"]
    greys = [looks.lightness(look.colour) for look in list(found.values())[:5]]
    assert greys[1] == greys[2] and found["bitmod4"].hatch != found["int4-sym"].hatch
    steps = [greys[0] - greys[1], greys[2] - greys[3], greys[3] - greys[4]]
    assert min(steps) > looks.LEAST_LIGHTNESS
    assert found["unknown"].bits is None
