"""A quantised model on disk: a folder with a file per block, written while it is made, or one file.

| file | content |
| --- | --- |
| plan.json | model, recipe, calibration and a digest of its tokens: what the folder is for |
| block-0000.safetensors, ... | a block's tensors and floats (`store.py`), and its report |
| ends.safetensors | embedding, last norm and output layer, where they changed |
| streams.safetensors | only while it is made: the residual streams behind a finished block |

Every file is written whole or not at all, a block before the streams behind it, so that a run
killed at any moment goes on where the streams stand: behind the last finished block or the one
before, which is then made again, the same. Streams that are lost or damaged mean starting again
from block 0; the run says so in its notes. One run at a time writes to a folder, which it locks.

One file holds the same: the tensors by the model's names, what the plan and the blocks' metadata
say in its own metadata.

Float weights are stored where they differ from the model's: norms that took a scale in, for
example.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import bitwright

from .algorithms.base import SuperWeight
from .calibration import Calibration
from .compressed import CompressedMatrix
from .errors import InputError
from .files import output_folder, write_text
from .quantized_model import LinearReport, QuantizedBlock, QuantizedModel
from .recipes import Recipe, resolve_recipe
from .store import StoredFile, load_file, save_tensors, verify_file
from .tensor import QuantizedTensor

if TYPE_CHECKING:
    import torch

    from .algorithms.vqlogits import VqHead
    from .models import LanguageModel, Structure

_PLAN, _ENDS, _STREAMS = "plan.json", "ends.safetensors", "streams.safetensors"
_OURS = (_PLAN, _ENDS, _STREAMS, "block-")
#: What must be the same when a run is taken up again, and how messages call it.
_SAME = {
    "config": "model shape",
    "weights_sha256": "model",
    "recipe": "recipe",
    "calibration": "calibration",
    "tokens_sha256": "calibration text",
    "version": "version",
}


class BlockFolder:
    """Writes the blocks of one run into a folder and takes an interrupted run up again.

    A context: the folder is locked until it ends. A folder in which no block was finished by then
    is left as it was found.

    Args:
        folder: Made if it is missing.
        model: The float model.
        recipe: What is applied.
        calibration: None if no data is needed.
        ids: The calibration tokens.

    Raises:
        InputError: The folder cannot be written, holds another run's blocks, or another run is
            writing to it.
    """

    def __init__(
        self,
        folder: str | Path,
        model: "LanguageModel",
        recipe: Recipe,
        calibration: Calibration | None,
        ids: "torch.Tensor | None",
    ) -> None:
        self._model, self._layers = model, model.config.layers
        self._structure: Structure | None = None
        self._plan: dict[str, Any] = {
            **_described(model, recipe, calibration),
            "tokens_sha256": None
            if ids is None
            else hashlib.sha256(ids.numpy().tobytes()).hexdigest(),
        }
        self.notes: list[str] = []  #: what a user should know, a line each
        self._made = not Path(folder).exists()
        self.path = output_folder(folder)
        self._lock = _locked(self.path)
        try:
            self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self) -> None:
        plan = self.path / _PLAN
        if plan.exists():
            found = _read_plan(plan)
            for key, word in _SAME.items():
                if found.get(key) != self._plan[key]:
                    raise InputError(
                        f"folder {self.path} holds a run with another {word} "
                        f"({_difference(found.get(key), self._plan[key])}); choose another folder "
                        "or remove it"
                    )
        # A run that was killed while it wrote leaves files with a dot in front.
        left = [p for p in self.path.iterdir() if p.name.startswith(tuple(f".{n}" for n in _OURS))]
        if not plan.exists() and set(self.path.iterdir()) != set(left):
            raise InputError(
                f"folder {self.path} is not empty and holds no {_PLAN}; choose another folder"
            )
        for path in left:
            path.unlink()
        if not plan.exists():
            write_text(plan, _document(self._plan))

    def __enter__(self) -> "BlockFolder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not _block_path(self.path, 0).exists():
            (self.path / _PLAN).unlink(missing_ok=True)
            if self._made and not any(self.path.iterdir()):
                self.path.rmdir()
        os.close(self._lock)

    def narrow(self, model: "LanguageModel", structure: "Structure") -> None:
        """The blocks are those of this smaller model."""
        self._model, self._structure = model, structure

    def resume(self, passes: Any) -> int:
        """The first block still to be made; the streams of `passes` are put in front of it."""
        done, broken = 0, ""
        while done < self._layers and not broken:
            path = _block_path(self.path, done)
            if not path.exists():
                break
            try:
                verify_file(path)
                done += 1
            except InputError:
                broken = f"{path.name} is damaged"
        streams = {name: getattr(passes, f"{name}_stream") for name in ("float", "quantized")}
        streams = {name: stream for name, stream in streams.items() if stream is not None}
        if done == self._layers or not streams:
            start = done
        else:
            start, problem = self._take_streams(passes, streams, done)
            broken = broken or problem
        if broken:
            self.notes.append(f"folder {self.path}: {broken}; started again from block {start}")
        return start

    def _take_streams(
        self, passes: Any, streams: "Mapping[str, torch.Tensor]", done: int
    ) -> tuple[int, str]:
        """The block that the stored streams stand in front of, or 0 and what is wrong with them."""
        import torch

        path = self.path / _STREAMS
        if not path.exists():
            # The first ones are written behind block 0.
            return 0, f"{_STREAMS} is missing" if done > 1 else ""
        try:
            stored = load_file(path)
        except InputError:
            return 0, f"{_STREAMS} is damaged"
        shapes = {name: tuple(stream.shape) for name, stream in streams.items()}
        blocks = int(stored.metadata.get("blocks", 0))
        if {name: array.shape for name, array in stored.floats.items()} != shapes:
            return 0, f"{_STREAMS} is another run's"
        if blocks > done:
            return 0, f"{_block_path(self.path, done).name} is missing"
        for name, array in stored.floats.items():
            setattr(passes, f"{name}_stream", torch.from_numpy(array))
        return blocks, ""

    def add(self, block: QuantizedBlock, passes: Any) -> None:
        """Write a finished block, then the streams behind it."""
        floats = {name: w.numpy() for name, w in _changed(self._model, block).items()}
        meta = json.dumps(_block_meta(block))
        save_tensors(
            _block_path(self.path, block.layer), dict(block.tensors), {"block": meta}, floats
        )
        streams = {
            name: stream.numpy()
            for name in ("float", "quantized")
            if (stream := getattr(passes, f"{name}_stream")) is not None
        }
        if streams and block.layer + 1 < self._layers:
            metadata = {"blocks": str(block.layer + 1)}
            save_tensors(self.path / _STREAMS, {}, metadata, streams)

    def finish(
        self, ends: "Mapping[str, torch.Tensor]", head: "VqHead | None", text_name: str | None
    ) -> None:
        """Write what is left; the folder is then a whole model."""
        if ends or head is not None:
            floats = {name: w.numpy() for name, w in ends.items()}
            save_tensors(self.path / _ENDS, _head_tensor(head), {}, floats)
        (self.path / _STREAMS).unlink(missing_ok=True)
        finished = {**self._plan, "calibration_text": text_name, "finished": True}
        if self._structure is not None:
            finished["structure"] = self._structure.to_dict()
        write_text(self.path / _PLAN, _document(finished))

    def blocks(self) -> "StoredBlocks":
        """The blocks, read when they are asked for."""
        return StoredBlocks(self.path, self._model)


class StoredBlocks(Sequence[QuantizedBlock]):
    """The blocks of a folder; the one used last stays in memory."""

    def __init__(self, folder: Path, model: "LanguageModel") -> None:
        self._folder, self._model = folder, model
        self._last: QuantizedBlock | None = None

    def __len__(self) -> int:
        return self._model.config.layers

    @overload
    def __getitem__(self, index: int) -> QuantizedBlock: ...
    @overload
    def __getitem__(self, index: slice) -> list[QuantizedBlock]: ...
    def __getitem__(self, index: int | slice) -> QuantizedBlock | list[QuantizedBlock]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        layer = index % len(self)
        if self._last is None or self._last.layer != layer:
            self._last = None  # two blocks at a time would double the memory
            self._last = self._load(layer)
        return self._last

    def _load(self, layer: int) -> QuantizedBlock:
        path = _block_path(self._folder, layer)
        stored = load_file(path)
        try:
            return _block(self._model, layer, stored, json.loads(stored.metadata["block"]))
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} holds no block {layer} ({error}); write it again with bitwright quantize"
            ) from None


def load_quantized(path: str | Path, model: "LanguageModel") -> QuantizedModel:
    """The quantised model in a folder that `apply_recipe` finished or a file of `save_quantized`.

    The blocks of a folder are read when a pass comes to them; those of a file stay in memory.

    Args:
        path: The folder or file.
        model: The float model that it was made from.

    Raises:
        InputError: There is none, it is one of another model, is damaged, or is not finished.
    """
    path = Path(path)
    if not path.is_dir():
        return _load_single(path, model)
    plan = _read_plan(path / _PLAN)
    _check_model(f"folder {path}", plan, model)
    if not plan.get("finished"):
        raise InputError(
            f"folder {path} is not finished; run bitwright quantize with the same arguments again"
        )
    ends = load_file(path / _ENDS) if (path / _ENDS).exists() else StoredFile({}, {}, {})
    structure = _structure(path, plan.get("structure"), model)
    base = model if structure is None else model.narrowed(structure)
    blocks, head = StoredBlocks(path, base), ends.tensors.get("head")
    return _restored(path, plan, model, blocks, ends.floats, head, structure)


def save_quantized(
    path: str | Path, model: QuantizedModel, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a quantised model to one safetensors file, whole or not at all.

    The file's metadata has model, recipe, calibration, name of the calibration text and version.

    Args:
        path: The file; its name should end in ".safetensors".
        model: What to write.
        metadata: More to keep with it, as in `save_tensors`.

    Raises:
        InputError: The file cannot be written, or a metadata key is taken.
    """
    document = _described(model.original, model.recipe, model.calibration)
    if model.structure is not None:
        document["structure"] = model.structure.to_dict()
    document["calibration_text"] = model.calibration_text
    floats = {name: w.numpy() for name, w in model.ends.items()}
    tensors = _head_tensor(model.head)
    blocks: list[dict[str, Any]] = []
    for block in model.blocks:
        blocks.append(_block_meta(block))
        prefix = f"blocks.{block.layer}."
        tensors |= {prefix + name: tensor for name, tensor in block.tensors.items()}
        changed = _changed(model.base, block)
        floats |= {prefix + name: w.numpy() for name, w in changed.items()}
    own = {key: _written(value) for key, value in {**document, "blocks": blocks}.items()}
    for key in metadata or {}:
        if key in own:
            raise InputError(f"metadata {key!r} is written by save_quantized itself; rename it")
    save_tensors(path, tensors, {**(metadata or {}), **own}, floats)


def _load_single(path: Path, model: "LanguageModel") -> QuantizedModel:
    stored = load_file(path)
    try:
        document = {
            key: _read_back(key, stored.metadata[key])
            for key in (*_SAME, "model", "calibration_text", "blocks")
            if key != "tokens_sha256"
        }
        written = json.loads(stored.metadata.get("structure", "null"))
    except (LookupError, ValueError):
        raise InputError(
            f"{path} holds tensors but no whole model; write it again with bitwright quantize"
        ) from None
    _check_model(f"file {path}", document, model)
    structure = _structure(path, written, model)
    base = model if structure is None else model.narrowed(structure)
    blocks, ends = [], dict(stored.floats)
    for layer, meta in enumerate(document["blocks"]):
        prefix = f"blocks.{layer}."
        own = {n: t for n, t in stored.tensors.items() if n.startswith(prefix)}
        floats = {n: ends.pop(n) for n in stored.floats if n.startswith(prefix)}
        local = StoredFile(
            {n.removeprefix(prefix): t for n, t in own.items()},
            {n.removeprefix(prefix): w for n, w in floats.items()},
            {},
        )
        try:
            blocks.append(_block(base, layer, local, meta))
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(f"{path} contradicts itself ({error}); write it again") from None
    head = stored.tensors.get("head")
    return _restored(path, document, model, blocks, ends, head, structure)


def _structure(path: Path, written: Any, model: "LanguageModel") -> "Structure | None":
    """What is kept of a model, as a plan or a file says; None: all of it."""
    from .models import Structure

    if written is None:
        return None
    try:
        structure = Structure.from_dict(written)
        structure.check(model.config)
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} contradicts itself ({error}); write it again") from None
    return structure


def _restored(
    path: Path,
    document: Mapping[str, Any],
    model: "LanguageModel",
    blocks: Sequence[QuantizedBlock],
    ends: Mapping[str, Any],
    head: QuantizedTensor | CompressedMatrix | None,
    structure: "Structure | None",
) -> QuantizedModel:
    import torch

    from .algorithms.vqlogits import VqHead

    try:
        recipe = resolve_recipe(document["recipe"])
        wanted = document["calibration"]
        calibration = None if wanted is None else Calibration(**wanted)
        text = document["calibration_text"]
        if (recipe.head is not None) != isinstance(head, VqHead):
            raise InputError("its output layer is not the recipe's")
    except (
        LookupError,
        TypeError,
        ValueError,
    ) as error:  # InputError and pydantic's are ValueError
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} contradicts itself ({reason}); write it again") from None
    tensors = {name: torch.from_numpy(w) for name, w in ends.items()}
    own = head if isinstance(head, VqHead) else None
    return QuantizedModel(
        model, recipe, blocks, calibration, text, tensors, head=own, structure=structure
    )


def _head_tensor(head: "VqHead | None") -> dict[str, QuantizedTensor | CompressedMatrix]:
    return {} if head is None else {"head": head}


# ------------------------------------------------------------------ what a run is


def _described(
    model: "LanguageModel", recipe: Recipe, calibration: Calibration | None
) -> dict[str, Any]:
    """What a run is, in values of JSON."""
    document = {
        "model": model.name,
        "config": _config(model),
        "weights_sha256": _weights_digest(model),
        "recipe": recipe.name,
        "calibration": None if calibration is None else calibration.model_dump(),
        "version": bitwright.__version__,
    }
    plain: dict[str, Any] = json.loads(json.dumps(document))  # tuples become lists
    return plain


def _config(model: "LanguageModel") -> dict[str, Any]:
    """The shape; sizes of single blocks only where there are some."""
    return {key: value for key, value in asdict(model.config).items() if key != "blocks" or value}


def _weights_digest(model: "LanguageModel") -> str:
    """SHA-256 of a few weights: enough to tell models of one shape apart, quick for large ones."""
    sha = hashlib.sha256(model.weight("final_norm").numpy().tobytes())
    for layer in sorted({0, model.config.layers - 1}):
        for name in ("attn_norm", "attn.v", "ffn_norm"):
            sha.update(model.weight(f"blocks.{layer}.{name}").numpy().tobytes())
    return sha.hexdigest()


def _check_model(what: str, document: Mapping[str, Any], model: "LanguageModel") -> None:
    config = json.loads(json.dumps(_config(model)))
    name = document.get("model")
    if document.get("config") != config:
        raise InputError(f"{what} holds a quantised {name}, not {model.name}; name its model")
    if document.get("weights_sha256") != _weights_digest(model):
        raise InputError(
            f"{what} holds a quantised {name} with other weights than {model.name}; name its model"
        )


def _difference(found: Any, wanted: Any) -> str:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in wanted:
            if found.get(key) != wanted[key]:
                return f"{key} {found.get(key)!r}, not {wanted[key]!r}"
    shown = [
        f"{text[:12]}..." if isinstance(text, str) and len(text) == 64 else repr(text)
        for text in (found, wanted)
    ]
    return f"{shown[0]}, not {shown[1]}"


def _document(plan: Mapping[str, Any]) -> str:
    return json.dumps(plan, indent=1) + "\n"


def _written(value: Any) -> str:
    """A value of `_described` as a string of metadata: strings as they are, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _read_back(key: str, text: str) -> Any:
    if key == "calibration_text" and text != "null" or key not in _JSON:
        return text
    return json.loads(text)


#: Metadata that is not a plain string.
_JSON = ("config", "calibration", "calibration_text", "blocks")


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{path} cannot be read ({reason}); name a folder written by bitwright quantize"
        ) from None
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no object; name a folder written by bitwright quantize")
    return document


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock until it is closed or the process ends."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(
            f"another run is writing to folder {folder}; wait for it or choose another folder"
        ) from None
    except OSError:  # a file system without locks on folders
        pass
    return handle


# ------------------------------------------------------------------------ blocks


def _block_path(folder: Path, layer: int) -> Path:
    return folder / f"block-{layer:04d}.safetensors"


def _changed(model: "LanguageModel", block: QuantizedBlock) -> "dict[str, torch.Tensor]":
    """A block's float weights that differ from the model's."""
    import torch

    return {
        name: w
        for name, w in block.floats.items()
        if not torch.equal(w, model.weight(f"blocks.{block.layer}.{name}"))
    }


def _block_meta(block: QuantizedBlock) -> dict[str, Any]:
    report = [asdict(row) for row in block.report]
    for row in report:
        if math.isnan(row["relative_output_mse"]):
            row["relative_output_mse"] = None  # JSON has no NaN
    return {
        "layer": block.layer,
        "super_weights": {k: [asdict(w) for w in v] for k, v in block.super_weights.items()},
        "limits": dict(block.limits),
        "report": report,
        "notes": list(block.notes),
    }


def _block(
    model: "LanguageModel", layer: int, stored: StoredFile, meta: Mapping[str, Any]
) -> QuantizedBlock:
    """A block from its tensors, the floats that were stored, and what `_block_meta` gave."""
    import torch

    if meta["layer"] != layer:
        raise InputError(f"it is block {meta['layer']}")
    floats = {name: torch.from_numpy(w) for name, w in stored.floats.items()}
    biases = (f"attn.{letter}.bias" for letter in model.config.biased)
    for name in ("attn_norm", "ffn_norm", *biases):
        if name not in floats:
            floats[name] = model.weight(f"blocks.{layer}.{name}")
    for row in meta["report"]:
        if row["relative_output_mse"] is None:
            row["relative_output_mse"] = math.nan
    return QuantizedBlock(
        layer,
        stored.tensors,
        floats,
        {k: tuple(SuperWeight(**w) for w in v) for k, v in meta["super_weights"].items()},
        {site: (low, high) for site, (low, high) in meta["limits"].items()},
        tuple(LinearReport(**row) for row in meta["report"]),
        tuple(meta["notes"]),
    )
