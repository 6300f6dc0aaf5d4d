"""Where chunks of points run: in this process, in processes of this machine, or on a cluster.

All three run the same function, `run_chunk`, and answer alike, so that the loop of a sweep knows no
difference: `submit` a chunk, `next` gives one that came back: with rows, or lost with its worker.
"""

import os
import signal
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from bitwright.quant import InputError

from .fields import Row
from .point import Plan, run_chunk
from .spec import read_yaml
from .words import nearest, one_line, short

SECONDS = 2.0  #: a worker hands back what it has after this time, and at least one point

Chunk = list[tuple[str, Row]]  #: key and settings of points


class Executor(Protocol):
    """Runs chunks."""

    @property
    def slots(self) -> int:
        """Chunks that run side by side."""

    def submit(self, plan: Plan, chunk: Chunk) -> None:
        """Take a chunk."""

    def next(self) -> tuple[Chunk, list[Row] | None]:
        """A chunk that was submitted and its rows, those of its first points; None: its worker
        died. Waits for one."""

    def close(self) -> None:
        """Stop at once; chunks that still run are given up."""


class Here:
    """In this process, one chunk after the other."""

    slots = 1

    def __init__(self) -> None:
        self._queue: deque[tuple[Plan, Chunk]] = deque()

    def submit(self, plan: Plan, chunk: Chunk) -> None:
        self._queue.append((plan, chunk))

    def next(self) -> tuple[Chunk, list[Row] | None]:
        plan, chunk = self._queue.popleft()
        return chunk, run_chunk(plan, chunk, SECONDS)

    def close(self) -> None:
        self._queue.clear()


class Processes:
    """In processes of this machine; one that dies takes the others' chunks along, and a new set is
    made."""

    def __init__(self, workers: int) -> None:
        """So many processes.

        Raises:
            InputError: Fewer than 1.
        """
        if workers < 1:
            raise InputError(f"--workers is {workers}; at least 1")
        self.slots = workers
        self._pool = self._made()
        self._running: dict[Future[list[Row]], Chunk] = {}

    def _made(self) -> ProcessPoolExecutor:
        from multiprocessing import get_context

        threads = max(1, (os.cpu_count() or 1) // self.slots)
        return ProcessPoolExecutor(
            self.slots, get_context("spawn"), initializer=_start_worker, initargs=(threads,)
        )

    def submit(self, plan: Plan, chunk: Chunk) -> None:
        try:
            future = self._pool.submit(run_chunk, plan, chunk, SECONDS)
        except BrokenProcessPool:  # a worker died since the last look
            future = Future()
            future.set_exception(BrokenProcessPool())
        self._running[future] = chunk

    def next(self) -> tuple[Chunk, list[Row] | None]:
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        future = done.pop()
        chunk = self._running.pop(future)
        try:
            return chunk, future.result()
        except BrokenProcessPool:
            if not any(_alive(other) for other in self._running):
                self._pool.shutdown(wait=True)
                self._pool = self._made()
            return chunk, None

    def close(self) -> None:
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _alive(future: "Future[list[Row]]") -> bool:
    """Whether a chunk can still come back with rows."""
    return not future.done() or not isinstance(future.exception(), BrokenProcessPool)


def _start_worker(threads: int) -> None:
    """A worker leaves Ctrl-C to its parent, and takes its share of the cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))


class Cluster:
    """On a cluster of dask.distributed."""

    def __init__(self, client: Any, owned: Sequence[Any] = ()) -> None:
        """Through a connected client; `owned` is closed with it."""
        from distributed import as_completed

        self._client, self._owned = client, owned
        self._done = as_completed()
        self._running: dict[Any, Chunk] = {}

    @property
    def slots(self) -> int:
        """Threads of all workers; at least 1, for workers may come later."""
        return max(1, sum(self._client.nthreads().values()))

    def submit(self, plan: Plan, chunk: Chunk) -> None:
        future = self._client.submit(run_chunk, plan, chunk, SECONDS, pure=False, retries=2)
        self._running[future] = chunk
        self._done.add(future)

    def next(self) -> tuple[Chunk, list[Row] | None]:
        from distributed import CancelledError, KilledWorker

        future = next(self._done)
        chunk = self._running.pop(future)
        try:
            return chunk, future.result()
        except KilledWorker:  # workers died of it, or with it, more often than dask allows
            return chunk, None
        except (CancelledError, OSError) as error:
            raise InputError(
                f"the connection to the scheduler is lost ({one_line(str(error))}); what is stored "
                "stays, and the same command goes on"
            ) from None

    def close(self) -> None:
        for future in self._running:
            future.cancel()
        self._client.close()
        for one in self._owned:
            one.close()


def connect(address: str) -> Cluster:
    """The cluster behind a dask scheduler.

    Args:
        address: As dask writes it: tcp://host:8786.

    Raises:
        InputError: dask.distributed is not installed, or nothing answers there.
    """
    _need_dask()
    from distributed import Client

    try:
        return Cluster(Client(address, timeout=10))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"--scheduler {address}: no dask scheduler answers ({one_line(str(error))}); start one "
            "with: dask scheduler"
        ) from None


def _need_dask(module: str = "distributed") -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise InputError(
            f"the Python package {module} is missing; install it: pip install 'bitwright[cluster]'"
        )


#: Keys of a SLURM profile: kind, and what it is to dask_jobqueue.SLURMCluster.
_PROFILE: dict[str, tuple[type, str]] = {
    "jobs": (int, ""),
    "cores": (int, "cores"),
    "processes": (int, "processes"),
    "memory": (str, "memory"),
    "walltime": (str, "walltime"),
    "queue": (str, "queue"),
    "account": (str, "account"),
    "interface": (str, "interface"),
    "local_directory": (str, "local_directory"),
    "log_directory": (str, "log_directory"),
    "directives": (list, "job_extra_directives"),
    "prologue": (list, "job_script_prologue"),
}


def read_profile(path: str | Path) -> dict[str, Any]:
    """A SLURM profile: how many jobs, and what each asks for.

    Raises:
        InputError: The file cannot be read, a key is unknown or missing, or a value is wrong.
    """
    profile = read_yaml(path, "SLURM profile")
    for name, value in profile.items():
        if name not in _PROFILE:
            raise InputError(f"{path}: {nearest(name, _PROFILE, 'key')}")
        kind = _PROFILE[name][0]
        words = {int: "a whole number of at least 1", str: "a text", list: "a list of texts"}[kind]
        good = type(value) is kind
        if kind is int:
            good = good and value >= 1
        if kind is list:
            good = good and all(isinstance(one, str) for one in value)
        if not good:
            raise InputError(f"{path}: {name} is {short(value)}; {words}")
    for name in ("jobs", "cores", "memory"):
        if name not in profile:
            raise InputError(f"{path}: {name} is missing; jobs, cores and memory are needed")
    return profile


def slurm_cluster(profile: dict[str, Any]) -> Any:
    """A scheduler here whose workers are SLURM jobs, none of them submitted yet.

    Args:
        profile: From `read_profile`.

    Raises:
        InputError: dask-jobqueue is not installed, or takes a value ill.
    """
    _need_dask("dask_jobqueue")
    from dask_jobqueue import SLURMCluster

    options = {_PROFILE[name][1]: value for name, value in profile.items() if name != "jobs"}
    try:
        return SLURMCluster(**options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"the SLURM profile does not work: {one_line(str(error))}") from None


def slurm(path: str | Path) -> Cluster:
    """A cluster of the SLURM jobs that a profile asks for; they are submitted, not waited for.

    Raises:
        InputError: As `read_profile` and `slurm_cluster`, or `sbatch` is missing.
    """
    from shutil import which

    profile = read_profile(path)
    if which("sbatch") is None:
        raise InputError(
            f"--slurm {path}: sbatch is not on this machine's PATH; run this where SLURM jobs are "
            "submitted"
        )
    cluster = slurm_cluster(profile)
    cluster.scale(jobs=profile["jobs"])
    from distributed import Client

    return Cluster(Client(cluster), [cluster])
