"""dask.distributed: the same rows, also when a worker is killed; SLURM profiles and job scripts."""

import os
import signal
import stat
import sys
from importlib import import_module

import pytest

from bitwright.experiments import sweep
from bitwright.quant import InputError

executors = import_module("bitwright.experiments.sweep.executors")

pytest.importorskip("distributed")
pytest.importorskip("dask_jobqueue")

DOCUMENT = {
    "version": 1,
    "fixed": {"shape": "smollm2-135m"},
    "axes": {
        "recipe": ["bitmod3", "bitmod4", "w4g128-olive"],
        "rows": {"from": 4, "to": 32, "step": 4},
        "cols": {"from": 4, "to": 32, "step": 4},
    },
    "measure": {"area": False},
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def planned():
    return sweep.plan_sweep(sweep.parse_sweep(DOCUMENT))


def run(planned, executor, path, tell=None):
    with sweep.Store(path) as store:
        store.want(planned.keys)
        sweep.run_sweep(planned, store, executor, tell=tell)
        executor.close()
        return list(store.rows())


@pytest.fixture(scope="module")
def expected(planned, tmp_path_factory):
    return run(planned, sweep.Here(), tmp_path_factory.mktemp("here") / "s.sqlite")


def test_a_cluster_of_which_a_process_is_killed_gives_the_rows_of_one_process(
    planned, expected, tmp_path
):
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        victims = [worker.pid for worker in cluster.workers.values()]
        killed = []

        def tell(done, total, rows):
            if rows and not killed:
                os.kill(victims[0], signal.SIGKILL)
                killed.append(victims[0])

        executor = sweep.connect(cluster.scheduler_address)
        assert executor.slots == 2
        rows = run(planned, executor, tmp_path / "s.sqlite", tell)
    assert killed and len(rows) == len(planned) == 192
    assert rows == expected


def test_no_scheduler_is_one_line():
    with pytest.raises(InputError) as told:
        sweep.connect("tcp://127.0.0.1:1")
    assert str(told.value).startswith("--scheduler tcp://127.0.0.1:1: no dask scheduler answers (")
    assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="--scheduler nonsense: no dask scheduler answers"):
        sweep.connect("nonsense")


@pytest.mark.parametrize("module", ["distributed", "dask_jobqueue"])
def test_a_missing_library_is_one_line(module, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as told:
        executors._need_dask(module)
    assert str(told.value) == (
        f"the Python package {module} is missing; install it: pip install 'bitwright[cluster]'"
    )


PROFILE = """\
jobs: 2
cores: 1
processes: 1
memory: 2GB
walltime: "00:10:00"
queue: short
account: lab
directives: ["--constraint=avx2"]
prologue: ["echo started"]
interface: lo
"""


def test_a_profile_becomes_a_job_script(tmp_path):
    path = tmp_path / "slurm.yaml"
    path.write_text(PROFILE)
    cluster = sweep.slurm_cluster(sweep.read_profile(path))
    try:
        script = cluster.job_script()
    finally:
        cluster.close()
    for line in (
        "#SBATCH -p short", "#SBATCH -A lab", "#SBATCH --mem=2G", "#SBATCH -t 00:10:00",
        "#SBATCH --constraint=avx2", "echo started", "#SBATCH --cpus-per-task=1",
    ):  # fmt: skip
        assert line in script.splitlines(), line
    assert sys.executable in script and "dask_worker" in script.replace(
        "dask worker", "dask_worker"
    )


WRONG = [
    ("core: 1", "unknown key 'core'; did you mean cores"),
    ("jobs: 0", "jobs is 0; a whole number of at least 1"),
    ("cores: 1.5", "cores is 1.5; a whole number"),
    ("memory: 4", "memory is 4; a text"),
    ("directives: -x", "directives is '-x'; a list of texts"),
    ("prologue: [1]", "prologue is [1]; a list of texts"),
    ("jobs: 2", "cores is missing; jobs, cores and memory are needed"),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[text for text, _ in WRONG])
def test_a_wrong_profile_is_one_line(text, words, tmp_path):
    path = tmp_path / "slurm.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as told:
        sweep.read_profile(path)
    assert str(told.value).startswith(f"{path}: {words}") and "\n" not in str(told.value)


def test_slurm_needs_sbatch(tmp_path, monkeypatch):
    path = tmp_path / "slurm.yaml"
    path.write_text(PROFILE)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="--slurm .*: sbatch is not on this machine's PATH"):
        sweep.slurm(path)


SBATCH = """\
#!/bin/sh
# Runs a job at once, on this machine, and numbers it, as sbatch does; from a copy, as sbatch does
# too, for the script goes away when this returns.
cp "$1" {folder}/script.$$
setsid /bin/sh {folder}/script.$$ > {folder}/job.$$ 2>&1 &
echo $! >> {folder}/pids
echo "Submitted batch job $!"
"""


def test_a_sweep_runs_in_jobs(planned, expected, tmp_path, monkeypatch):
    """With a stand-in for sbatch that starts the job script at once: no SLURM is here."""
    for name, text in (("sbatch", SBATCH), ("scancel", "#!/bin/sh\nkill -- -$1\n")):
        tool = tmp_path / name
        tool.write_text(text.format(folder=tmp_path))
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "slurm.yaml"
    path.write_text(PROFILE)
    try:
        rows = run(planned, sweep.slurm(path), tmp_path / "s.sqlite")
    finally:
        for pid in (tmp_path / "pids").read_text().split():
            try:
                os.killpg(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
    assert rows == expected
    assert len((tmp_path / "pids").read_text().split()) == 2
