"""`bitwright sweep`: answers, killed and interrupted runs, two at once, and mistakes."""

import csv
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from bitwright.commands.sweep import sweep
from bitwright.quant import InputError

#: 3,200 points, many of which fail: a few seconds of work.
LONG = """\
version: 1
name: long
fixed: {shape: smollm2-135m}
axes:
  recipe: [bitmod3, bitmod4, w4g128-olive, w6g128-int-sym-s8]
  rows: {from: 4, to: 40, step: 4}
  cols: {from: 4, to: 40, step: 4}
  weight_buffer_kib: [128, 256, 512, 1]
  context: [64, 256]
constraints: ["decode_dram_bytes > 0"]
measure: {area: false}
objectives: [decode_latency_s, bits_per_weight]
"""
FILES = ("results.json", "results.csv", "results.parquet")


def start(file, out, *more):
    command = [
        sys.executable,
        "-P",
        "-m",
        "bitwright",
        "sweep",
        str(file),
        "--out",
        str(out),
        *more,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, seconds=300):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def stored(path):
    """Rows of a store that another process may be writing."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return database.execute("SELECT count(*) FROM points").fetchone()[0]
    except sqlite3.Error:
        return 0


def all_rows(path):
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return database.execute("SELECT * FROM points ORDER BY key").fetchall()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "long.yaml"
    path.write_text(LONG)
    return path


@pytest.fixture(scope="module")
def expected(file, tmp_path_factory):
    """The folder of a run that nobody interrupts."""
    out = tmp_path_factory.mktemp("whole")
    code, _, err = finish(start(file, out))
    assert (code, err) == (0, "")
    assert stored(out / "sweep.sqlite") == 3200
    return out


def check_equal(out, expected):
    """Rows and exports are those of the run that nobody interrupted."""
    assert all_rows(out / "sweep.sqlite") == all_rows(expected / "sweep.sqlite")
    for name in FILES:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.slow
def test_the_results_hold_the_command(file, expected):
    meta = json.loads((expected / "results.json").read_text())["meta"]
    assert meta["command"] == f"bitwright sweep {file}"


@pytest.mark.slow
def test_killed_at_20_random_times_it_ends_with_the_same_rows(file, expected, tmp_path):
    """SIGKILL while it starts, computes, stores and exports; then once to the end."""
    rng = random.Random(0)
    path = tmp_path / "sweep.sqlite"
    counts = [0]
    for number in range(20):
        process = start(file, tmp_path)
        if number == 0:
            time.sleep(rng.uniform(0, 0.5))  # it is starting, with no store yet
        # Soon after it stores something, first of all: a fast machine needs a moment for the rest.
        elif number < 10 or number % 3:  # when all is there, while it exports
            while stored(path) == counts[-1] and process.poll() is None and counts[-1] < 3200:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.01 if number < 10 else 0.25))
        else:  # at any time, its first milliseconds too
            time.sleep(rng.uniform(0, 3))
        process.kill()
        finish(process)
        counts.append(stored(path))
    assert counts == sorted(counts) and counts[-1] <= 3200
    assert len(set(counts)) >= 6, counts  # it was killed in the middle of its work
    code, out, _ = finish(start(file, tmp_path, "--json"))
    assert code == 0
    assert json.loads(out)["computed"] == 3200 - counts[-1]
    check_equal(tmp_path, expected)
    left = {item.name for item in tmp_path.iterdir() if not item.name.startswith(".results")}
    assert left == {"sweep.sqlite", *FILES}


@pytest.mark.slow
def test_two_sweeps_at_once_on_one_store_lose_and_double_nothing(file, expected, tmp_path):
    """One of them with two workers; both export all points."""
    shared = ["--store", str(tmp_path / "sweep.sqlite"), "--json"]
    runs = [
        start(file, tmp_path, *shared),
        start(file, tmp_path / "second", *shared, "--workers", "2"),
    ]
    answers = []
    for process in runs:
        code, out, err = finish(process)
        assert (code, err) == (0, "")
        answers.append(json.loads(out))
    assert sum(answer["computed"] for answer in answers) >= 3200
    check_equal(tmp_path, expected)
    for name in FILES:
        assert (tmp_path / "second" / name).read_bytes() == (expected / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(workers, file, expected, tmp_path):
    path = tmp_path / "sweep.sqlite"
    process = start(file, tmp_path, "--workers", workers)
    while not stored(path):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    done = stored(path)
    assert (code, out) == (130, "") and 0 < done < 3200
    assert err == (
        f"bitwright: interrupted: {done:,} of 3,200 points are in {path}; the same command goes on "
        "from there\n"
    )
    assert finish(start(file, tmp_path))[0] == 0
    check_equal(tmp_path, expected)


# ------------------------------------------------------------------ answers

SHORT = """\
version: 1
name: short
fixed: {shape: smollm2-135m, context: 64, prompt: 64}
axes:
  recipe: [bitmod3, w4g128-olive]
  rows: [8, 16, 64]
  dram: [hbm2, ddr4-bitmod]
constraints: ["rows < 64", "decode_latency_s < 0.01"]
measure: {area: false}
objectives: [decode_latency_s, decode_tokens_per_s]
"""


@pytest.fixture
def short(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text(SHORT)
    return path


def test_the_answer_in_json(invoke, short, tmp_path):
    out = tmp_path / "out"
    document = json.loads(invoke(sweep, str(short), "--out", str(out), "--json"))
    assert (document["points"], document["computed"], document["skipped"]) == (8, 8, 4)
    assert document["ok"] + document["infeasible"] + document["failed"] == 8
    assert document["failed"] == 4 and document["errors"][0]["points"] == 4
    assert [record["name"] for record in document["best"]] == ["w3g128-bitmod rows=8 hbm2"]
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert len(rows) == 8 and document["files"]["results.csv"] == str(out / "results.csv")
    again = json.loads(invoke(sweep, str(short), "--out", str(out), "--json"))
    assert again["computed"] == 0 and again["best"] == document["best"]
    retried = json.loads(invoke(sweep, str(short), "--out", str(out), "--json", "--retry-failed"))
    assert retried["computed"] == 4 and retried["failed"] == 4


def test_the_answer_for_people(invoke, short, tmp_path):
    out = tmp_path / "out"
    text = invoke(sweep, str(short), "--out", str(out))
    assert "short: 8 points: " in text and ", 4 failed" in text
    assert "8 computed now, 0 from the store" in text
    assert "not among them: 4 left out by constraints" in text
    assert "failed points stay as they are; --retry-failed computes them again" in text
    assert "w3g128-bitmod rows=8 hbm2" in text and "decode_latency_s" in text
    assert str(out / "results.parquet").replace("\n", "") in text.replace("\n", "")


def test_rows_of_other_sweeps_are_told_and_left_alone(invoke, short, tmp_path):
    out, store = tmp_path / "out", tmp_path / "all.sqlite"
    invoke(sweep, str(short), "--out", str(out), "--store", str(store))
    short.write_text(SHORT.replace("8, 16, 64", "24"))
    text = invoke(sweep, str(short), "--out", str(tmp_path / "two"), "--store", str(store))
    assert "the store holds 8 more rows, of other sweeps or of other code, which are left" in text
    rows = list(csv.DictReader((tmp_path / "two" / "results.csv").read_text().splitlines()))
    assert {row["rows"] for row in rows} == {"24"} and len(rows) == 4


def test_the_documentation_shows_what_is_printed(tmp_path):
    """docs/sweeps.md: its file, and what the command prints for it."""
    import re
    import runpy

    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "sweeps.md").read_text()
    assert f"```yaml\n{(docs / 'sweep.yaml').read_text()}```" in page
    shown = re.search(
        r"```text\n\$ bitwright sweep sweep.yaml --out results/sweep\n(.*?)```", page, re.S
    )
    assert shown is not None
    (tmp_path / "sweep.yaml").write_text((docs / "sweep.yaml").read_text())
    command = [sys.executable, "-P", "-m", "bitwright", "sweep", "sweep.yaml"]
    done = subprocess.run(
        [*command, "--out", "results/sweep"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    refresh = runpy.run_path(str(docs / "refresh.py"))
    assert refresh["differences"](shown[1], done.stdout) == []


# ------------------------------------------------------------------ mistakes

OPTIONS = [
    (("--workers", "0"), "--workers is 0; at least 1"),
    (
        ("--workers", "2", "--scheduler", "tcp://x:1"),
        "--workers does not go with --scheduler; give one of them",
    ),
    (
        ("--scheduler", "tcp://x:1", "--slurm", "p.yaml"),
        "--scheduler does not go with --slurm; give one of them",
    ),
    (("--store", "/no/such/folder/s.sqlite"), "cannot open store /no/such/folder/s.sqlite: unable"),
    (("--out", "/proc/no"), "output folder /proc/no cannot be written"),
    (("--slurm", "none.yaml"), "cannot read none.yaml: No such file"),
]


@pytest.mark.parametrize(("options", "start"), OPTIONS, ids=[" ".join(o) for o, _ in OPTIONS])
def test_a_mistake_is_one_line(options, start, invoke, short, tmp_path):
    given = options if "--out" in options else (*options, "--out", str(tmp_path / "out"))
    with pytest.raises(InputError) as told:
        invoke(sweep, str(short), *given)
    assert str(told.value).startswith(start) and "\n" not in str(told.value)


def test_a_mistake_in_the_file_names_the_file_and_leaves_no_trace(invoke, short, tmp_path):
    short.write_text(SHORT.replace("rows: [", "row: ["))
    with pytest.raises(InputError) as told:
        invoke(sweep, str(short), "--out", str(tmp_path / "out"))
    assert str(told.value).startswith(f"{short}: unknown setting of axes 'row'; did you mean rows")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_with_one_line_and_the_next_run_goes_on(
    invoke, short, tmp_path, monkeypatch
):
    """SQLite's own error, through its limit of pages."""
    short.write_text(SHORT.replace("[8, 16, 64]", "{from: 1, to: 60, step: 1}"))
    out = tmp_path / "out"
    from bitwright.experiments import sweep as sweeps

    real = sweeps.Store._open

    def small(self):
        real(self)
        self.database.execute("PRAGMA max_page_count = 12")

    with monkeypatch.context() as patch:
        patch.setattr(sweeps.Store, "_open", small)
        with pytest.raises(InputError) as told:
            invoke(sweep, str(short), "--out", str(out))
    assert str(told.value).startswith(
        f"cannot write store {out / 'sweep.sqlite'}: database or disk"
    )
    assert not (out / "results.json").exists()
    kept = stored(out / "sweep.sqlite")
    document = json.loads(invoke(sweep, str(short), "--out", str(out), "--json"))
    assert document["computed"] == document["points"] - kept == 240 - kept


@pytest.mark.slow
def test_a_terminal_shows_the_time_left_and_the_best_points(file, tmp_path):
    """On stderr; stdout has the answer alone."""
    terminal, stderr = os.openpty()
    command = [sys.executable, "-P", "-m", "bitwright", "sweep", str(file), "--out", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--json"],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(stderr)
    seen = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(terminal)
    code, out, _ = finish(process)
    text = seen.decode(errors="replace")
    assert code == 0 and json.loads(out)["points"] == 3200
    for words in ("left", "/3200", "best points: no other is better in all", "w3g128-bitmod rows="):
        assert words in text, words
