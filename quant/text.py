"""The text that perplexity is measured on: what ships with Python, a file, or WikiText-2."""

import platform
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError

#: Characters of the default text. tiny was trained without them.
DEFAULT_CHARACTERS = 40_000


@dataclass(frozen=True, slots=True)
class Text:
    """A text and the name to report it by."""

    name: str
    content: str


def load_text(source: str | Path | None = None) -> Text:
    """A text to measure perplexity on.

    Args:
        source: None for the default; "wikitext2" for the WikiText-2 test split, which needs a
            connection and the `datasets` package; otherwise the path of a UTF-8 file.

    Raises:
        InputError: The file is missing, empty or not UTF-8, or WikiText-2 cannot be had.
    """
    if source is None:
        return _python_topics()
    if source == "wikitext2":
        return _wikitext2()
    return _file(Path(source))


def _python_topics() -> Text:
    """The first 40,000 characters of Python's help topics, in alphabetical order."""
    joined = _joined_topics()
    return Text(
        f"pydoc_data.topics of Python {platform.python_version()}, "
        f"first {DEFAULT_CHARACTERS:,} characters",
        joined[:DEFAULT_CHARACTERS],
    )


def _joined_topics() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[key] for key in sorted(topics))


def load_calibration_text(source: str | Path | None = None) -> Text:
    """A text to calibrate on.

    Args:
        source: None for the rest of Python's help topics, behind the part that perplexity is
            measured on; otherwise as in `load_text`.

    Raises:
        InputError: As `load_text`.
    """
    if source is not None:
        return load_text(source)
    joined = _joined_topics()
    return Text(
        f"pydoc_data.topics of Python {platform.python_version()}, all but the first "
        f"{DEFAULT_CHARACTERS:,} characters",
        joined[DEFAULT_CHARACTERS:],
    )


def _file(path: Path) -> Text:
    try:
        content = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(
            f"cannot read text {path}: {error.strerror}; name a UTF-8 file or wikitext2"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"text {path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); "
            "convert it first"
        ) from None
    if not content.strip():
        raise InputError(f"text {path} is empty; it must hold at least one window of tokens")
    return Text(path.name, content)


def _wikitext2() -> Text:
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(
            "text wikitext2 needs the datasets package; "
            "pip install 'bitwright[hub]', or name a UTF-8 file"
        ) from None
    try:
        rows = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")
    except Exception as error:  # its own, the hub's and the connection's errors alike
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"text wikitext2 cannot be fetched ({reason}); go online, or name a UTF-8 file"
        ) from None
    return Text("WikiText-2 test split (raw)", "\n\n".join(rows["text"]))
