"""Distillation of binary linears: gradients, what is stored of a student, and whole models."""

import math
import re
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

from bitwright.quant import (
    SITE_OF,
    BlockTask,
    Calibration,
    InputError,
    Streams,
    apply_recipe,
    load_model,
    load_quantized,
    load_tensors,
    peak_parts,
    perplexity,
    resolve_recipe,
    save_quantized,
    save_tensors,
)

distilling = import_module("bitwright.quant.algorithms.distilling")
binarymos = import_module("bitwright.quant.algorithms.binarymos")
littlebit = import_module("bitwright.quant.algorithms.littlebit")

FEW = Calibration(sequences=8, length=128)
RECIPES = ("binarymos:steps=24", "littlebit:bits=1.2,steps=24")


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def distilled(tiny):
    """Both methods after a few dozen steps."""
    return {name: apply_recipe(tiny, name, calibration=FEW) for name in RECIPES}


def normals(n, k, seed=0):
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def mos_student(n, k, experts=3, seed=0):
    w = 0.5 * normals(n, k, seed)
    initial = binarymos.binarymos(w, experts, np.random.default_rng(seed))
    return binarymos.BinaryMoSStudent(w, initial)


def little_student(n, k, bits=2.0, gradient="smooth", residual=False):
    return littlebit.LittleBitStudent(normals(n, k), bits, residual, gradient)


STUDENTS = {
    "binarymos": lambda: mos_student(12, 20),
    "one expert": lambda: mos_student(12, 20, experts=1),
    "littlebit": lambda: little_student(64, 48),
    "two paths": lambda: little_student(96, 96, residual=True),
}


def shaken(student, seed=1):
    """The student somewhere else, as after training."""
    noise = torch.Generator().manual_seed(seed)
    for p in student.parameters():
        p.data += 0.3 * p.data.abs().mean() * torch.randn(p.shape, generator=noise)
    return student


# ---------------------------------------------------------------------- estimators


@pytest.mark.parametrize("sign", [distilling.straight_sign, distilling.smooth_sign])
def test_signs_are_signs(sign):
    w = torch.tensor([-3.0, -1e-9, -0.0, 0.0, 1e-9, 3.0])
    assert sign(w).tolist() == [-1, -1, 1, 1, 1, 1]


def test_the_smooth_gradient_is_that_of_tanh():
    """Against central differences of tanh(100 w), in float64."""
    w = torch.linspace(-0.05, 0.05, 21, dtype=torch.float64, requires_grad=True)
    distilling.smooth_sign(w).sum().backward()
    step = 1e-7
    slope = (torch.tanh(100 * (w + step)) - torch.tanh(100 * (w - step))) / (2 * step)
    assert torch.allclose(w.grad, slope.detach(), rtol=1e-6)


def test_the_straight_gradient_by_hand():
    w = torch.tensor([[-1.5, -0.9, 0.0, 0.9, 1.5]], requires_grad=True)
    (distilling.straight_sign(w) * torch.tensor([1.0, 2, 3, 4, 5])).sum().backward()
    assert w.grad.tolist() == [[0, 2, 3, 4, 0]]


def test_half_is_what_is_stored():
    scales = torch.tensor([0.1, 3.14159, 1e-9], requires_grad=True)
    rounded = distilling.half(scales)
    assert rounded.tolist() == scales.detach().numpy().astype(np.float16).tolist()
    rounded.sum().backward()
    assert scales.grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", STUDENTS)
def test_gradients_of_scales_are_those_of_finite_differences(name, monkeypatch):
    """Scales and router enter smoothly; FP16 rounding, a staircase, is left out here."""
    for module in (binarymos, littlebit):
        monkeypatch.setattr(module, "half", lambda scales: scales)
    student = shaken(STUDENTS[name]())
    for p in student.parameters():
        p.data = p.data.double()
    k = student.stored().shape[1]
    x = torch.from_numpy(normals(3, k, 2)).double()
    latent = 1 if "paths" not in vars(student) else 2  # W, or U and V, come first
    size = 4 if latent == 1 else 5
    parameters = student.parameters()
    smooth = [p for i, p in enumerate(parameters) if i % size >= latent]
    others = [p for i, p in enumerate(parameters) if i % size < latent]
    assert smooth and len(smooth) + len(others) == len(parameters)
    for p in others:
        p.requires_grad_(False)
    for p in smooth:
        p.grad = None
    student.product(x).square().sum().backward()
    rng = np.random.default_rng(3)
    for p in smooth:
        flat = p.data.view(-1)
        for i in rng.choice(len(flat), min(4, len(flat)), replace=False):
            values, step = [], 1e-6
            for sign in (1, -1):
                flat[i] += sign * step
                values.append(student.product(x).square().sum().item())
                flat[i] -= sign * step
            assert p.grad.view(-1)[i].item() == pytest.approx(
                (values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-5
            )


def test_latent_gradients_pass_through_the_signs():
    """dL/dW of one expert: dL/dS by hand, where |w| <= 1."""
    student = mos_student(6, 8, experts=1)
    student.w.data *= 3  # some magnitudes beyond 1
    x = torch.from_numpy(normals(5, 8, 2))
    y = student.product(x)
    y.square().sum().backward()
    a, b = (scales.detach().half().float()[0] for scales in (student.inputs, student.outputs))
    to_signs = (2 * y.detach() * b).T @ (x * a)
    inside = student.w.detach().abs() <= 1
    assert 0 < inside.sum() < inside.numel()
    assert torch.allclose(student.w.grad, torch.where(inside, to_signs, 0), rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------- stored


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("moved", [False, True], ids=["initial", "moved"])
def test_a_student_computes_what_is_stored_of_it(name, moved, tmp_path):
    student = STUDENTS[name]()
    initial = student.stored()
    if moved:
        shaken(student)
    matrix = student.stored()
    assert (matrix == initial) == (not moved)
    assert matrix.stored_bits == initial.stored_bits
    assert sum(one.bits for one in matrix.passes()) == matrix.stored_bits
    x = normals(7, matrix.shape[1], 5)
    mine = student.product(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(mine, matrix.forward(x), rtol=1e-4, atol=1e-4)
    save_tensors(tmp_path / "one.safetensors", {"w": matrix}, {})
    assert load_tensors(tmp_path / "one.safetensors")[0]["w"] == matrix


def test_students_start_as_the_initialisation():
    w = 0.5 * normals(12, 20)
    wanted = binarymos.binarymos(w, 3, np.random.default_rng(0))
    assert mos_student(12, 20).stored() == wanted
    w = normals(96, 96)
    assert little_student(96, 96, residual=True).stored() == littlebit.littlebit(w, 2.0)


# -------------------------------------------------------------------- whole models


@pytest.mark.parametrize("name", RECIPES)
def test_no_steps_are_the_initialisation(tiny, name):
    bare = name.replace(",steps=24", "").replace(":steps=24", "")
    plain = apply_recipe(tiny, bare)
    assert plain.calibration is None  # no data is read
    none = apply_recipe(tiny, name.replace("24", "0"))
    assert none.tensors == plain.tensors and none.recipe == plain.recipe
    w = tiny.weight("blocks.0.attn.q").numpy()
    first = plain.tensors["blocks.0.attn.q"]
    if bare == "binarymos":
        assert first.signs.tobytes() == (w >= 0).astype(np.uint8).tobytes()
        assert first.equal_experts
    else:
        assert first == littlebit.littlebit(w, 1.2)


@pytest.mark.parametrize("name", RECIPES)
def test_losses_fall_and_perplexity_is_lower(tiny, distilled, name):
    q = distilled[name]
    losses = [re.search(r"distilled, loss (\S+) -> (\S+)$", note) for note in q.notes]
    assert len(losses) == tiny.config.layers
    for found in losses:
        assert float(found[2]) < 0.95 * float(found[1])
    start = apply_recipe(tiny, name.replace("24", "0"))
    assert q.bits_per_weight == start.bits_per_weight
    assert q.nominal_bits == start.nominal_bits
    scores = [
        perplexity(one.model, max_tokens=1024, window=64, linear=one.linear()).perplexity
        for one in (q, start)
    ]
    assert scores[0] < 0.8 * scores[1]


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_run_gives_the_same_bytes(tiny, distilled, name, tmp_path):
    again = apply_recipe(tiny, name, calibration=FEW)
    assert again.tensors == distilled[name].tensors
    save_quantized(tmp_path / "q.safetensors", again)
    back = load_quantized(tmp_path / "q.safetensors", tiny)
    assert back.tensors == again.tensors and back.recipe == again.recipe


def test_an_interrupted_run_goes_on(tiny, distilled, tmp_path):
    name = RECIPES[0]

    class Stop(Exception):
        pass

    def stop(done, total, what):
        if "block 3, loss" in what:
            raise Stop

    with pytest.raises(Stop):
        apply_recipe(tiny, name, calibration=FEW, folder=tmp_path / "q", progress=stop)
    seen = []
    q = apply_recipe(
        tiny, name, calibration=FEW, folder=tmp_path / "q", progress=lambda *of: seen.append(of[2])
    )
    assert not [what for what in seen if "block 2, loss" in what]
    assert q.tensors == distilled[name].tensors


def test_experts_that_differ_compute_token_by_token(distilled):
    q = distilled[RECIPES[0]]
    tensor = q.tensors["blocks.1.ffn.up"]
    assert tensor.varies and not tensor.equal_experts
    x = torch.from_numpy(normals(6, tensor.shape[1]).reshape(2, 3, -1))
    y = q.linear()("blocks.1.ffn.up", x)
    wanted = tensor.forward(x.numpy().reshape(6, -1)).reshape(2, 3, -1)
    np.testing.assert_array_equal(y.numpy(), wanted)
    assert all(math.isnan(row.relative_mse) for row in q.report)
    with pytest.raises(InputError, match="experts differ, so weights depend on the token"):
        q.weights(1, "ffn.up")


def test_factors_have_a_matrix_and_an_error(distilled):
    q = distilled[RECIPES[1]]
    tensor = q.tensors["blocks.1.ffn.up"]
    x = normals(6, tensor.shape[1])
    assert not tensor.varies
    np.testing.assert_allclose(tensor.forward(x), x @ tensor.dequantize().T, atol=1e-3)
    assert all(0 < row.relative_mse < 2 for row in q.report)


@pytest.mark.parametrize("more", ["+a8", "+a8-tensor-static", "+kv4"])
def test_activations_are_rounded_in_training(tiny, more):
    name = "littlebit:bits=1.2,steps=4"
    q = apply_recipe(tiny, name + more, calibration=FEW)
    plain = apply_recipe(tiny, name, calibration=FEW)
    assert q.tensors != plain.tensors
    assert "distilled" in q.notes[0]


# --------------------------------------------------------------------------- errors


class Lost:
    """One whose outputs become NaN, or that does not learn."""

    def __init__(self, inner, factor):
        self.inner, self.factor, self.calls = inner, factor, 0

    def parameters(self):
        return self.inner.parameters()

    def product(self, x):
        self.calls += 1
        return self.inner.product(x) * (self.factor if self.calls > 1 else 1)

    def stored(self):
        return self.inner.stored()


@pytest.mark.parametrize("factor", [float("nan"), 1e6], ids=["NaN", "worse"])
def test_a_block_that_does_not_learn_keeps_its_start(tiny, factor):
    weights = tiny.block_weights(0)
    x = torch.from_numpy(normals(16, tiny.config.hidden)).view(1, 16, -1)
    recipe = resolve_recipe("binarymos:steps=2")
    block = BlockTask(0, tiny.config, recipe, weights, {}, Streams(x, x + 1, x))
    step = recipe.own_form
    students = {name: step.student(block, name, block.to_round(name)) for name in SITE_OF}
    initial = {name: one.stored() for name, one in students.items()}
    students["ffn.down"] = Lost(students["ffn.down"], factor)
    made = distilling.distil(block, students, 2, 1, 0.03, "binarymos")
    assert made == initial
    assert len(block.notes) == 1
    assert re.fullmatch(
        r"blocks\.0: binarymos: loss did not fall \(\S+ -> \S+\); initialisation kept",
        block.notes[0],
    )


def test_a_scale_beyond_half_precision_keeps_the_start(tiny):
    weights = tiny.block_weights(0)
    x = torch.from_numpy(normals(16, tiny.config.hidden)).view(1, 16, -1)
    recipe = resolve_recipe("binarymos:steps=1")
    block = BlockTask(0, tiny.config, recipe, weights, {}, Streams(x, x + 1, x))
    students = {n: recipe.own_form.student(block, n, block.to_round(n)) for n in SITE_OF}
    initial = {name: one.stored() for name, one in students.items()}
    made = distilling.distil(block, students, 1, 1, 1e9, "binarymos")
    assert made == initial and "initialisation kept" in block.notes[0]


@pytest.mark.parametrize(
    ("recipe", "option"),
    [
        ("binarymos:steps=-1", "steps"),
        ("binarymos:rate=0", "rate"),
        ("littlebit:rate=2", "rate"),
        ("littlebit:batch=0", "batch"),
        ("littlebit:gradient=rough", "gradient"),
    ],
)
def test_options_out_of_range(recipe, option):
    with pytest.raises(InputError, match=f"option {option} of {recipe.split(':')[0]} is "):
        resolve_recipe(recipe)


def test_a_budget_that_is_too_small_names_the_layer(tiny):
    with pytest.raises(InputError, match=r"^layer blocks\.0\.attn\.\w: bits=0.3 leave "):
        apply_recipe(tiny, "littlebit:bits=0.3,steps=2", calibration=FEW)


def test_training_counts_in_the_memory(tiny):
    parts = [peak_parts(tiny.config, f"binarymos{more}", FEW) for more in ("", ":steps=2")]
    assert "learning" not in parts[0]
    assert parts[1]["learning"] > 4 * 4 * 128 * 384 * 3  # weight, gradient, two moments


def test_equal_experts_do_not_vary():
    matrix = binarymos.binarymos(normals(4, 8), 2, np.random.default_rng(0))
    assert not matrix.varies
    other = matrix.inputs.copy()
    other[1, 0] += 1
    assert replace(matrix, inputs=other).varies
