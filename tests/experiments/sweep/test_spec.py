"""The file of a sweep: what is read, and every mistake in one line that says the way out."""

from pathlib import Path

import pytest

from bitwright.experiments import sweep
from bitwright.quant import InputError

GOOD = {
    "version": 1,
    "fixed": {"shape": "smollm2-135m"},
    "axes": {"rows": [16, 32], "dram": ["hbm2", "ddr4-3200"]},
}


def changed(**parts):
    return {**GOOD, **parts}


def test_a_file_says_all_and_the_rest_has_defaults(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "version: 1\nfixed: {shape: smollm2-135m}\naxes:\n  cols: {from: 16, to: 32, step: 8}\n"
    )
    spec = sweep.load_sweep(path)
    assert (spec.name, spec.seed, spec.sampling.method) == ("sweep", 0, "grid")
    assert (spec.measure.accuracy, spec.measure.area, spec.measure.energy) == (False, True, False)
    assert [point["cols"] for point in map(sweep.plan_sweep(spec).point, range(3))] == [16, 24, 32]


#: What is wrong -> how the message begins, and what it has to hold.
MISTAKES = {
    "no version": ({"axes": {}}, "version is missing; write version: 1 first"),
    "newer version": (changed(version=2), "version is 2, this bitwright reads 1; update bitwright"),
    "version of text": (changed(version="1"), "version is '1', this bitwright reads 1; write"),
    "version true": (changed(version=True), "version is True, this bitwright reads 1"),
    "unknown key": (changed(axis={}), "unknown key 'axis'; did you mean axes? Known: version,"),
    "unknown axis": (
        changed(axes={"row": [1]}),
        "unknown setting of axes 'row'; did you mean rows? Known: shape, model,",
    ),
    "unknown fixed": (
        changed(fixed={"shpae": "x"}),
        "unknown setting of fixed 'shpae'; did you mean shape?",
    ),
    "unknown in sampling": (
        changed(sampling={"methods": "grid"}),
        "unknown key of sampling 'methods'; did you mean method?",
    ),
    "unknown in measure": (
        changed(measure={"acuracy": True}),
        "unknown key of measure 'acuracy'; did you mean accuracy?",
    ),
    "unknown in a range": (
        changed(axes={"rows": {"form": 1, "to": 2}}),
        "unknown key of axes.rows 'form'; did you mean from?",
    ),
    "unknown in a point": (
        changed(axes={}, sampling={"method": "list"}, points=[{"col": 2}]),
        "unknown setting of points[0] 'col'; did you mean cols?",
    ),
    "key that is no text": (changed(axes={3: [1]}), "unknown setting of axes 3; known: shape"),
    "axis of one value": (
        changed(axes={"rows": 16}),
        "axes.rows is 16; a list or {from, to, step}, and a single value goes under fixed",
    ),
    "empty axis": (changed(axes={"rows": []}), "axes.rows is empty: a grid over it has no point"),
    "no axes": (changed(axes={}), "there are no axes: name at least one setting"),
    "value twice": (changed(axes={"rows": [8, 16, 8]}), "axes.rows has a value twice"),
    "below the range": (changed(axes={"rows": [16, 0]}), "axes.rows[1] is 0; 1 to 65536"),
    "above the range": (changed(fixed={"shape": "tiny", "banks": 9999}), "fixed.shape: unknown"),
    "banks": (changed(axes={"banks": [4096]}), "axes.banks[0] is 4096; 1 to 1024"),
    "not a number": (changed(axes={"clock_ps": [float("nan")]}), "axes.clock_ps[0] is nan; 1 to"),
    "endless": (changed(axes={"clock_ps": [float("inf")]}), "axes.clock_ps[0] is inf; 1 to 1e+09"),
    "half a row": (changed(axes={"rows": [1.5]}), "axes.rows[0] is 1.5; a whole number"),
    "true rows": (changed(axes={"rows": [True]}), "axes.rows"),
    "text for a number": (changed(axes={"rows": ["16"]}), "axes.rows[0] is '16'; a whole number"),
    "number for a text": (changed(axes={"dram": [3]}), "axes.dram[0] is 3; a text, in quotes"),
    "unknown dram": (
        changed(axes={"dram": ["hbm4"]}),
        "axes.dram[0]: unknown dram 'hbm4'; did you mean hbm3",
    ),
    "own form": (
        changed(axes={"recipe": ["bitmod3", "billm"]}),
        "axes.recipe[1]: recipe billm stores weights in a form of its own, whose size and cost "
        "depend on the weights; use bitwright codesign --recipes with a model",
    ),
    "own form, fixed": (
        changed(fixed={"shape": "llama-2-7b", "recipe": "aqlm"}, axes={"cols": [16, 32]}),
        "fixed.recipe: recipe aqlm stores weights in a form of its own",
    ),
    "pruned": (
        changed(axes={"recipe": ["bitmod3", "bitmod4"], "algorithm": ["", "gptq", "wanda"]}),
        "algorithm wanda: recipe w3g128-bitmod+wanda stores weights in a form of its own, whose "
        "size and cost depend on the weights; use bitwright codesign --recipes with a model",
    ),
    "unknown recipe": (changed(axes={"recipe": ["bitmud3"]}), "axes.recipe[0]: unknown recipe"),
    "unknown pe": (changed(axes={"pe": ["bitmodd"]}), "axes.pe[0]: unknown pe 'bitmodd'; did you"),
    "unknown technology": (
        changed(axes={"technology": ["nangate54"]}),
        "axes.technology[0]: unknown technology 'nangate54'; did you mean 'nangate45'?",
    ),
    "unknown kv": (changed(axes={"kv": ["int9"]}), "axes.kv[0]: unknown kv 'int9'"),
    "ports": (
        changed(axes={"sram_ports": ["2rw"]}),
        "axes.sram_ports[0]: sram_ports is '2rw'; 1r1w",
    ),
    "unknown shape": (changed(fixed={"shape": "llama-7"}), "fixed.shape: "),
    "fixed and varied": (
        changed(fixed={"shape": "smollm2-135m", "rows": 8}),
        "rows is in fixed and in axes; leave it in one of them",
    ),
    "nothing to run": (
        changed(fixed={}),
        "nothing to run: name a shape or a model in fixed or axes",
    ),
    "range of names": (
        changed(axes={"dram": {"from": 1, "to": 2}}),
        "axes.dram is a range, but dram takes names; give a list",
    ),
    "empty range": (
        changed(axes={"rows": {"from": 32, "to": 16, "step": 8}}),
        "axes.rows goes from 32 to 16: it is empty; from is the smaller one",
    ),
    "range without steps": (
        changed(axes={"rows": {"from": 8, "to": 16}}),
        "axes.rows needs a step or a count for a grid",
    ),
    "step backwards": (
        changed(axes={"rows": {"from": 8, "to": 16, "step": -1}}),
        "axes.rows.step is -1; above 0",
    ),
    "half a step": (
        changed(axes={"rows": {"from": 8, "to": 16, "step": 0.5}}),
        "axes.rows.step is 0.5; a whole number, as rows is",
    ),
    "step and count": (
        changed(axes={"rows": {"from": 8, "to": 16, "step": 4, "count": 3}}),
        "axes.rows.step does not go with count or log2",
    ),
    "range out of range": (
        changed(axes={"rows": {"from": 0, "to": 16, "step": 4}}),
        "axes.rows.from is 0; 1 to 65536",
    ),
    "range without an end": (changed(axes={"rows": {"from": 1}}), "axes.rows"),
    "unknown method": (changed(sampling={"method": "sobol"}), "sampling.method is 'sobol': input"),
    "random without points": (
        changed(sampling={"method": "random"}),
        "sampling.method random needs sampling.points, how many to draw",
    ),
    "grid with points": (
        changed(sampling={"method": "grid", "points": 5}),
        "sampling.points is for random and latin-hypercube, not for grid",
    ),
    "no draws": (
        changed(sampling={"method": "random", "points": 0}),
        "sampling.points is 0: input should be greater than or equal to 1",
    ),
    "list with axes": (
        changed(sampling={"method": "list"}, points=[{"rows": 1}]),
        "sampling.method list takes points, not axes",
    ),
    "list of nothing": (
        changed(sampling={"method": "list"}, axes={}),
        "sampling.method list needs points",
    ),
    "points of a grid": (changed(points=[{"rows": 2}]), "points go with sampling.method list, not"),
    "bad point": (
        changed(sampling={"method": "list"}, axes={}, points=[{}, {"rows": 0}]),
        "points[1].rows is 0; 1 to 65536",
    ),
    "seed": (changed(seed=-1), "seed is -1: input should be greater than or equal to 0"),
    "seed of text": (changed(seed="0"), "seed is '0': input should be a valid integer"),
    "measure": (changed(measure={"area": "yes"}), "measure.area is 'yes': input should be a valid"),
    "objective": (
        changed(objectives=["decode_latency"]),
        "unknown objective 'decode_latency'; did you mean decode_latency_s",
    ),
    "objective twice": (
        changed(objectives=["area_mm2", "area_mm2"]),
        "objectives name a result twice",
    ),
    "objective not measured": (
        changed(objectives=["perplexity"]),
        "objective 'perplexity' needs perplexity, which is not measured; add measure.accuracy: ",
    ),
    "objective of generations": (
        changed(objectives=["latency_s"]),
        "objective 'latency_s' needs latency_s, which is not measured; add a setting generate",
    ),
    "constraint not measured": (
        changed(constraints=["decode_energy_uJ < 5"]),
        "constraint 'decode_energy_uJ < 5' needs decode_energy_uJ, which is not measured; add "
        "measure.energy: true",
    ),
    "accuracy without a model": (
        changed(measure={"accuracy": True}),
        "measure.accuracy needs a model in fixed or axes, such as tiny",
    ),
    "voltage for nothing": (
        changed(fixed={"shape": "smollm2-135m", "voltage": 1.0}),
        "voltage changes only energies; add measure.energy: true, or leave it",
    ),
    "no list": (changed(constraints="rows < 2"), "constraints is 'rows < 2': input should be a"),
    "no mapping": (changed(fixed=[1]), "fixed is [1]: input should be a valid dictionary"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case):
    document, start = MISTAKES[case]
    with pytest.raises(InputError) as told:
        sweep.plan_sweep(sweep.parse_sweep(document))
    assert str(told.value).startswith(start), str(told.value)
    assert "\n" not in str(told.value)


FILES = {
    "missing": (None, "cannot read {path}: No such file or directory; name the file of a sweep"),
    "no yaml": (b"version: [1\n", "{path}, line 2: no YAML: "),
    "key twice": (b"version: 1\nname: a\nname: b\n", "{path}, line 3: no YAML: the key 'name' st"),
    "list": (b"- 1\n", "{path} holds no mapping; a sweep has keys like version: and name:"),
    "empty": (b"", "{path} holds no mapping"),
    "not utf-8": (b"\xff\xfe\x00", "{path} is not UTF-8 text"),
    "python object": (
        b"version: 1\nname: !!python/object/apply:os.system ['touch owned']\n",
        "{path}, line 2: no YAML: could not determine a constructor for the tag",
    ),
    "inside": (
        b"version: 1\naxes: {rows: [0]}\nfixed: {shape: opt-1.3b}\n",
        "{path}: axes.rows[0]",
    ),
    "deep": (b"[" * 5000, "{path}: no YAML: "),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_used_is_one_line(case, tmp_path, monkeypatch):
    content, start = FILES[case]
    monkeypatch.chdir(tmp_path)
    path = Path("sweep.yaml")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as told:
        sweep.load_sweep(path)
    assert str(told.value).startswith(start.format(path=path)), str(told.value)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400
    assert not Path("owned").exists()


def test_aliases_that_would_fill_the_memory_are_told_briefly(tmp_path):
    """Ten levels of ten aliases: 10 ** 10 items if anybody wrote them out."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 11)]
    path = tmp_path / "bomb.yaml"
    path.write_text(
        "version: 1\nfixed: {shape: opt-1.3b}\naxes:\n  rows: *x\n".replace("*x", "[1]")
    )
    path.write_text("\n".join(["version: 1", *lines, "axes: {rows: [*a10]}"]))
    with pytest.raises(InputError) as told:
        sweep.load_sweep(path)
    assert len(str(told.value)) < 1000
    path.write_text(
        "version: 1\nfixed: {shape: opt-1.3b}\naxes:\n  rows:\n    - &b0 [1, 1]\n"
        + "".join(f"    - &b{i} [*b{i - 1}, *b{i - 1}]\n" for i in range(1, 40))
    )
    with pytest.raises(InputError, match=r"axes.rows\[0\] is \[1, 1\]"):
        sweep.load_sweep(path)


def test_the_grid_may_not_be_endless():
    axes = {name: {"from": 1, "to": 200, "step": 1} for name in ("rows", "cols", "banks")}
    with pytest.raises(
        InputError, match=r"the grid has 8,000,000 points \(200 x 200 x 200\), more"
    ):
        sweep.plan_sweep(sweep.parse_sweep(changed(axes=axes)))


def test_constraints_that_leave_no_point_are_told():
    spec = sweep.parse_sweep(changed(constraints=["rows > 100", "area_mm2 < 0"]))
    with pytest.raises(InputError, match="no point is left: none of 4 meets 'rows > 100'; relax"):
        sweep.plan_sweep(spec)
