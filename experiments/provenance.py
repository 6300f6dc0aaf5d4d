"""Where a result comes from: version, commit, Python and the sources that computed it."""

import hashlib
import platform
import subprocess
from functools import cache
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
    from bitwright import quant

    digest = hashlib.sha256()
    folder = Path(str(quant.__file__)).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
