"""The store: rows once, newer and foreign files refused, a full disk, writers side by side."""

import sqlite3
import subprocess
import sys

import pytest

from bitwright.experiments import sweep
from bitwright.quant import InputError


def row(key, status="ok", latency=1.0):
    values = dict.fromkeys(sweep.COLUMNS)
    values |= {"key": key, "status": status, "rows": 32, "decode_latency_s": latency}
    return tuple(values.values())


def test_rows_come_back_in_the_order_that_is_wanted_and_exactly(tmp_path):
    with sweep.Store(tmp_path / "s.sqlite") as store:
        third = 1 / 3
        store.add([row("a", latency=third), row("b"), row("c", latency=2**53 + 1.0), row("d")])
        store.want(["c", "x", "a"])
        assert store.missing() == [1] and len(store) == 4
        assert [(place, found) for place, found in store.rows()] == [
            (0, row("c", latency=2**53 + 1.0)),
            (2, row("a", latency=third)),
        ]
        assert store.has(["a", "x", "c"]) == {"a", "c"}


def test_a_row_stays_and_a_failure_only_goes_when_asked(tmp_path):
    with sweep.Store(tmp_path / "s.sqlite") as store:
        store.add([row("a", latency=1.0), row("b", "failed")])
        store.add([row("a", latency=2.0), row("b", latency=2.0)])
        store.want(["a", "b"])
        assert [r for _, r in store.rows()] == [row("a"), row("b", "failed")]
        assert (store.missing(), store.missing(retry_failed=True)) == ([], [1])
        assert store.has(["a", "b"]) == {"a"}  # a failure is not what a retry may skip
        store.add([row("a", latency=2.0), row("b", latency=2.0)], replace_failed=True)
        assert [r for _, r in store.rows()] == [row("a"), row("b", latency=2.0)]


def test_what_a_user_sees_in_sqlite(tmp_path):
    path = tmp_path / "s.sqlite"
    with sweep.Store(path) as store:
        store.add([row("a")])
        (mode,) = store.database.execute("PRAGMA journal_mode").fetchone()
    database = sqlite3.connect(path)
    assert mode == "wal" and database.execute("PRAGMA user_version").fetchone() == (1,)
    assert database.execute('SELECT key, "rows", decode_latency_s FROM points').fetchall() == [
        ("a", 32, 1.0)
    ]
    database.close()


def test_a_newer_store_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "s.sqlite"
    with sweep.Store(path) as store:
        store.add([row("a")])
        store.database.execute("PRAGMA user_version = 7")
    before = path.read_bytes()
    with pytest.raises(InputError) as told:
        sweep.Store(path)
    assert str(told.value) == (
        f"store {path} was written by a newer bitwright (schema 7, this one reads 1); update "
        "bitwright, or choose another --store"
    )
    assert path.read_bytes() == before


def test_files_that_are_no_store_are_refused(tmp_path):
    other = tmp_path / "other.sqlite"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE mine (a)")
    database.commit()
    database.close()
    text = tmp_path / "notes.txt"
    text.write_text("no database at all, but long enough to be looked at" * 20)
    for path, words in (
        (other, f"{other} is an SQLite file of another program; choose another --store"),
        (text, f"cannot open store {text}: file is not a database; choose a file that can be"),
        (tmp_path, f"cannot open store {tmp_path}: unable to open database file; choose a file"),
        (tmp_path / "no" / "s.sqlite", "unable to open database file; choose a file that can be"),
    ):
        with pytest.raises(InputError) as told:
            sweep.Store(path)
        assert words in str(told.value) and "\n" not in str(told.value)


def full_soon(store, pages=3):
    """From now on the file may only grow by a few pages: SQLite's own "disk is full"."""
    (size,) = store.database.execute("PRAGMA page_count").fetchone()
    store.database.execute(f"PRAGMA max_page_count = {size + pages}")


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    path = tmp_path / "s.sqlite"
    with sweep.Store(path) as store:
        store.add([row(f"first {i}") for i in range(20)])
        full_soon(store)
        with pytest.raises(InputError) as told:
            store.add([row(f"more {i}") for i in range(5000)])
        assert str(told.value) == (
            f"cannot write store {path}: database or disk is full; what it holds stays: free some "
            "space and start the sweep again"
        )
        assert len(store) == 20  # a chunk is stored whole or not at all
        store.add([row("small")])  # the connection goes on
    with sweep.Store(path) as store:
        store.add([row(f"more {i}") for i in range(5000)])
        assert len(store) == 5021


WRITER = """
import sys
from bitwright.experiments import sweep

path, writer = sys.argv[1:]
rest = dict.fromkeys(sweep.COLUMNS)
with sweep.Store(path) as store:
    for start in range(0, 200, 10):
        # Half of the keys are those of the other writers.
        keys = [f"{writer if i % 2 else 'all'} {i}" for i in range(start, start + 10)]
        store.add([tuple({**rest, "key": key, "status": "ok"}.values()) for key in keys])
"""


def test_writers_side_by_side_lose_and_double_nothing(tmp_path):
    """Four processes open one new file at once and write to it."""
    path = tmp_path / "s.sqlite"
    command = [sys.executable, "-P", "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    with sweep.Store(path) as store:
        assert len(store) == 100 + 4 * 100
