"""The training script: what it reads, and that it gives the same bytes twice."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from bitwright.quant import list_models, load_text

TRAIN = "bitwright.experiments.train_tiny"


@pytest.fixture
def train_tiny(monkeypatch):
    from importlib import import_module

    module = import_module(TRAIN)
    # All docstrings of the standard library take seconds to read.
    monkeypatch.setattr(module, "_docstrings", lambda: ["Return the sum of things.\n" * 40] * 9)
    return module


def test_the_perplexity_text_is_held_out(train_tiny, monkeypatch):
    held_out = load_text().content
    monkeypatch.setattr(train_tiny, "_docstrings", lambda: [held_out[1000:5000]])
    topics, docstrings = train_tiny.training_text()
    lines = {line.strip() for line in held_out.splitlines()}
    for text in (topics, docstrings):
        assert not [line for line in text.splitlines() if len(line) > 80 and line.strip() in lines]
    assert len(topics) > 200_000
    assert len(docstrings) < 1000


def test_docstrings_are_found_in_order(monkeypatch, tmp_path):
    from importlib import import_module

    module = import_module(TRAIN)
    (tmp_path / "test").mkdir()
    words = "ten words " * 10
    (tmp_path / "b.py").write_text(f'"""b {words}"""\ndef f():\n    """f {words}"""\n')
    (tmp_path / "a.py").write_text(f'"""a {words}"""\nclass C:\n    """short"""\n')
    (tmp_path / "test" / "c.py").write_text(f'"""c {words}"""\n')
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    assert [found[0] for found in module._docstrings()] == ["a", "b", "f"]


def test_the_same_seed_gives_the_same_bytes(train_tiny, tmp_path):
    settings = train_tiny.Training(steps=3, batch=2, warmup=1)
    for name in ("a", "b"):
        train_tiny.save(train_tiny.train(settings), settings, tmp_path / name)
    other = train_tiny.Training(steps=3, batch=2, warmup=1, seed=1)
    train_tiny.save(train_tiny.train(other), other, tmp_path / "c")
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_the_bundled_file_has_this_scripts_settings(train_tiny):
    path = Path({model.name: model for model in list_models()}["tiny"].path)
    with safe_open(path, framework="pt") as opened:
        card = json.loads(opened.metadata()["bitwright"])
    assert card["training"] == train_tiny.asdict(train_tiny.Training())
    config = json.loads(json.dumps(train_tiny.asdict(train_tiny.CONFIG)))
    assert card["config"] | {"blocks": []} == config  # the file is older than sizes per block
