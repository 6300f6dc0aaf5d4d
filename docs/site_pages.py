"""What `mkdocs build` adds to the pages of this folder: the API, and links that leave it.

The API pages are made from the faces of the five packages: every exported name with its signature
and its docstring, word for word. Links to source files, which the site does not hold, become the
file's name.
"""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PACKAGES = ("quant", "kernels", "sim", "rtl", "experiments")
_SOURCE_LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page per package."""
    for package in PACKAGES:
        content = api_page(package)
        files.append(File.generated(config, f"api/{package}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Name source files instead of linking to them."""
    return _SOURCE_LINK.sub(_named, markdown)


def _named(match: re.Match[str]) -> str:
    text, path = match.groups()
    return f"`{path}`" if path.endswith(text.strip("`")) else f"{text} (`{path}`)"


def api_page(package: str) -> str:
    """Markdown of a package's face."""
    face = import_module(f"bitwright.{package}")
    lines = [f"# bitwright.{package}", "", _block(face.__doc__ or "")]
    for name in sorted(face.__all__, key=str.lower):
        lines += _entry(name, getattr(face, name))
    return "\n".join(lines) + "\n"


def _entry(name: str, thing: Any) -> Iterator[str]:
    yield f"\n## {name}\n"
    if inspect.isclass(thing) or inspect.isroutine(thing):
        yield _block(f"{name}{_signature(thing)}\n\n{inspect.getdoc(thing) or ''}")
        if inspect.isclass(thing):
            for method, value in vars(thing).items():
                if inspect.isroutine(value) and not method.startswith("_"):
                    text = f"{method}{_signature(value)}\n\n{inspect.getdoc(value) or ''}"
                    yield "\n" + _block(text)
    elif isinstance(thing, ModuleType):
        yield _block(thing.__doc__ or "")
    else:
        yield _block(f"a {type(thing).__name__}")


def _signature(thing: Any) -> str:
    try:
        return str(inspect.signature(thing))
    except (TypeError, ValueError):
        return ""


def _block(text: str) -> str:
    """A text as it stands, in a fence that nothing in it closes."""
    return f"````text\n{text.strip()}\n````"
