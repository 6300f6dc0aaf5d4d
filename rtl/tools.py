"""Running the command-line tools that synthesis and simulation use."""

import hashlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_tool(
    name: str,
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    timeout_s: float,
) -> str:
    """Run a tool, and what it starts itself, to the end.

    Args:
        name: What messages call it.
        command: Program and arguments; no shell is involved.
        folder: Working folder.
        environment: All of its variables.
        timeout_s: After this many seconds it is killed together with its children.

    Returns:
        What it wrote to stdout and stderr.

    Raises:
        RuntimeError: It failed or took too long; the message ends with its last lines.
    """
    process = subprocess.Popen(
        list(command),
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a group of its own, so that it can be killed whole
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except BaseException as error:  # an interrupt too must not leave the tool running
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise RuntimeError(f"{name} took longer than {timeout_s:g} s") from None
        raise
    if process.returncode:
        raise RuntimeError(f"{name} failed ({process.returncode}): {output[-3000:].strip()}")
    return output


def digest(*parts: str) -> str:
    """A hash of texts, in hexadecimal; where one ends and the next begins counts too."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode()
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()
