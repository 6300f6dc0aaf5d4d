"""Which models there are, and from a name or path to a model."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from bitwright.quant import InputError, Progress

from .gguf_file import load_gguf
from .hf_folder import PICKLES, load_folder
from .llama import LanguageModel
from .smollm2 import SOURCE, cached_path, fetch_model, is_cached
from .tiny import FILE, load_tiny

_NAMES = ("smollm2", "tiny")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that can be loaded by name."""

    name: str
    available: bool  #: on this machine, without a download
    path: str  #: where it lies, or will lie once fetched
    source: str


def list_models() -> tuple[ModelInfo, ...]:
    """The models with names of their own, the default first."""
    return (
        ModelInfo("smollm2", is_cached(), str(cached_path()), SOURCE),
        ModelInfo("tiny", True, str(FILE), "bundled; byte-level, for tests and quick looks"),
    )


def load_model(
    name_or_path: str | Path, progress: Progress | None = None, *, stream: bool = False
) -> LanguageModel:
    """A language model in float32.

    Args:
        name_or_path: "smollm2" (fetched first if need be), "tiny", a GGUF file, a Hugging Face
            folder, or a Hub name such as "HuggingFaceTB/SmolLM2-135M" when online.
        progress: Called per tensor.
        stream: Read weights from the files when they are needed, a block at a time, instead of
            keeping them all in memory; folders and Hub names only.

    Raises:
        ModelUnavailable: smollm2 is not cached and cannot be fetched.
        InputError: There is no such model, its files are not those of a Llama-family model, or it
            cannot be streamed.
    """
    text = str(name_or_path)
    if stream and (text in _NAMES or Path(text).is_file()):
        raise InputError(
            f"model {text}: only folders of safetensors can be read block by block; load it whole"
        )
    if text == "smollm2":
        return load_gguf(fetch_model(progress), text, SOURCE, progress)
    if text == "tiny":
        return load_tiny()
    path = Path(name_or_path)
    if path.suffix.lower() in PICKLES:
        raise InputError(
            f"model {text}: pickle checkpoints can run any code and are never loaded; "
            "convert it to safetensors or GGUF"
        )
    if path.is_dir():
        source = f"Hugging Face folder {text}"
        return load_folder(path, path.resolve().name, source, progress, stream=stream)
    if path.suffix == ".gguf" and path.is_file():
        return load_gguf(path, path.stem, f"GGUF file {text}", progress)
    if path.suffix == ".safetensors" and path.is_file():
        raise InputError(
            f"model {text}: name its folder instead, which must also hold config.json and "
            "tokenizer.json"
        )
    if path.is_file():
        raise InputError(f"model {text}: a file must be a .gguf; folders hold config.json")
    if isinstance(name_or_path, str) and _HUB_NAME.fullmatch(text) and path.suffix != ".gguf":
        source = f"Hugging Face Hub, {text}"
        return load_folder(_from_hub(text), text, source, progress, stream=stream)
    near = difflib.get_close_matches(text, _NAMES, n=2, cutoff=0.4)
    raise InputError(
        f"model {text!r} is neither a name nor an existing path"
        + (f"; did you mean {' or '.join(near)}?" if near else "")
        + f"; can be {', '.join(_NAMES)}, a .gguf file, a Hugging Face folder, "
        "or ORG/NAME on the Hub"
    )


def _from_hub(name: str) -> Path:
    """A local copy of the repository's JSON and safetensors files."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"model {name} is no existing path, and the Hub needs the huggingface_hub package; "
            "pip install 'bitwright[hub]'"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub's own errors and those of the connection alike
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(
            f"model {name} is no existing path and cannot be fetched from the Hub ({reason}); "
            "go online, or name a local folder"
        ) from None
