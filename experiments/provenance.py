"""Where a result comes from: version, commit, Python and the sources that computed it."""

import hashlib
import platform
import subprocess
from functools import cache
from importlib import import_module
from pathlib import Path

import bitwright

ROOT = Path(bitwright.__file__).resolve().parents[1]


@cache
def commit() -> str:
    """The git commit of the checkout, "+changes" appended if files differ from it.

    Outside a checkout (an installed package) "none".
    """
    if not (ROOT / ".git").exists() or not (ROOT / "quant").is_dir():
        return "none"
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "none"
    return head + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.strip()


def provenance(seed: int) -> dict[str, object]:
    """What every result file stores beside its config."""
    return {
        "bitwright": bitwright.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "seed": seed,
    }


@cache
def accuracy_sources_hash() -> str:
    """A hash of the code that decides a perplexity, so that cached ones never outlive it."""
    return sources_hash("quant")


@cache
def sources_hash(*places: str) -> str:
    """A hash of code, so that cached results never outlive it.

    Args:
        places: Folders, with all that lies in them, or single files of the package.
    """
    digest = hashlib.sha256()
    for place in places:
        folder, _, file = place.partition("/")
        root = Path(str(import_module(f"bitwright.{folder}").__file__)).parent
        for path in [root / file] if file else sorted(root.rglob("*.py")):
            digest.update(f"{folder}/{path.relative_to(root).as_posix()}".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
