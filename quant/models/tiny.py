"""The bundled model: a byte-level Llama trained on text that ships with Python."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from .checks import checked, config_of
from .llama import LanguageModel
from .tokenizer import ByteTokenizer

FILE = Path(__file__).parent.parent / "data" / "tiny.safetensors"


def load_tiny() -> LanguageModel:
    """The model that `experiments/train_tiny.py` trained."""
    with safe_open(FILE, framework="pt") as opened:
        card = json.loads(opened.metadata()["bitwright"])
        config = config_of(
            FILE,
            **card["config"]
            | {key: tuple(card["config"][key]) for key in ("rope_divisors", "biased")},
        )
        weights = {
            name: checked(opened.get_tensor(name).to(torch.float32), name, shape, FILE)
            for name, shape in config.weight_shapes().items()
        }
    return LanguageModel("tiny", config, weights, ByteTokenizer(), card_source(card))


def card_source(card: dict[str, str]) -> str:
    """Where the weights come from, in one sentence."""
    return f"bundled; trained by experiments/train_tiny.py on {card['text']}; float16 weights"
