"""The results store: one SQLite file, one row a point, columns as in `fields.COLUMNS`.

The primary key is the hash of all that decides a point, so that a row is computed once, whoever
computes it: several sweeps can share a store and write to it at once. Rows are added in one
transaction a chunk, through the write-ahead log; a process that is killed at any moment leaves
whole chunks. `PRAGMA user_version` is the version of the schema.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bitwright.quant import InputError

from .fields import COLUMNS, KINDS, Row
from .words import one_line

VERSION = 1  #: of the schema
_APPLICATION = 0x62777377  # "bwsw", tells our files from other SQLite files
_BUSY_S = 60.0  # how long a writer waits for another one
_SQL = {"int": "INTEGER", "float": "REAL", "text": "TEXT"}


class Store:
    """A store that is open; a context that closes it.

    Args:
        path: The file; made if it is missing.

    Raises:
        InputError: The file cannot be opened, is no store, or was written by a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.database = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self.database.close()
                raise
        except sqlite3.Error as error:
            raise self._told(error, "open") from None

    def _open(self) -> None:
        self._refuse_others()
        self._use_log()
        # A write-ahead log that is not flushed at every commit loses no commit to a killed process.
        self.database.execute("PRAGMA synchronous = NORMAL")
        self.database.execute("PRAGMA temp_store = MEMORY")
        columns = ", ".join(f'"{name}" {_SQL[kind]}' for name, kind in KINDS.items())
        self.database.execute("BEGIN IMMEDIATE")
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS points (key TEXT PRIMARY KEY, status TEXT NOT NULL, "
            f"error TEXT, {columns})"
        )
        self.database.execute(f"PRAGMA user_version = {VERSION}")
        self.database.execute(f"PRAGMA application_id = {_APPLICATION}")
        self.database.execute("COMMIT")

    def _refuse_others(self) -> None:
        (version,) = self.database.execute("PRAGMA user_version").fetchone()
        (application,) = self.database.execute("PRAGMA application_id").fetchone()
        (tables,) = self.database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != _APPLICATION:
            raise InputError(
                f"{self.path} is an SQLite file of another program; choose another --store"
            )
        if version > VERSION:
            raise InputError(
                f"store {self.path} was written by a newer bitwright (schema {version}, this one "
                f"reads {VERSION}); update bitwright, or choose another --store"
            )

    def _use_log(self) -> None:
        # SQLite does not wait for another process that is just opening the same file.
        end = time.monotonic() + _BUSY_S
        while True:
            try:
                self.database.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def _told(self, error: sqlite3.Error, what: str) -> InputError:
        full = " disk" in str(error)
        hint = (
            "; what it holds stays: free some space and start the sweep again"
            if full
            else "; choose a file that can be written with --store"
        )
        return InputError(f"cannot {what} store {self.path}: {one_line(str(error))}{hint}")

    def want(self, keys: Iterable[str]) -> None:
        """Say which points this sweep has, in order; what follows is about them.

        Raises:
            InputError: The disk is full.
        """
        try:
            self.database.execute("DROP TABLE IF EXISTS temp.wanted")
            self.database.execute(
                "CREATE TEMP TABLE wanted (place INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE)"
            )
            self.database.execute("BEGIN")
            self.database.executemany("INSERT INTO temp.wanted VALUES (?, ?)", enumerate(keys))
            self.database.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._told(error, "read") from None

    def missing(self, retry_failed: bool = False) -> list[int]:
        """Places of wanted points that have no row, or (if asked for) a failed one."""
        again = " OR p.status = 'failed'" if retry_failed else ""
        return [
            place
            for (place,) in self._read(
                "SELECT w.place FROM temp.wanted w LEFT JOIN points p ON p.key = w.key "
                f"WHERE p.key IS NULL{again} ORDER BY w.place"
            )
        ]

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Place and row of wanted points that have one, in order."""
        columns = ", ".join(f'p."{name}"' for name in COLUMNS)
        for place, *row in self._read(
            f"SELECT w.place, {columns} FROM temp.wanted w JOIN points p ON p.key = w.key "
            "ORDER BY w.place"
        ):
            yield place, tuple(row)

    def __len__(self) -> int:
        ((count,),) = self._read("SELECT count(*) FROM points")
        return int(count)

    def has(self, keys: Sequence[str]) -> set[str]:
        """Those of a few keys (at most 500) that have a row which is no failure."""
        marks = ", ".join("?" * len(keys))
        found = self._read(
            f"SELECT key FROM points WHERE status <> 'failed' AND key IN ({marks})", keys
        )
        return {key for (key,) in found}

    def add(self, rows: Sequence[Row], replace_failed: bool = False) -> None:
        """Add rows, all or none; of a point that has one already, that one stays.

        Args:
            rows: Values of COLUMNS.
            replace_failed: Rows of points that failed before take the place of those.

        Raises:
            InputError: The disk is full, or the store cannot be written; it is as it was before.
        """
        marks = ", ".join("?" * len(COLUMNS))
        conflict = "NOTHING"
        if replace_failed:
            names = ", ".join(f'"{name}" = excluded."{name}"' for name in COLUMNS[1:])
            conflict = f"UPDATE SET {names} WHERE points.status = 'failed'"
        insert = f"INSERT INTO points VALUES ({marks}) ON CONFLICT (key) DO {conflict}"
        try:
            self.database.execute("BEGIN IMMEDIATE")
            try:
                self.database.executemany(insert, rows)
                self.database.execute("COMMIT")
            except BaseException:
                if self.database.in_transaction:  # a full disk ends it by itself
                    self.database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._told(error, "write") from None

    def _read(self, query: str, values: Sequence[str] = ()) -> Iterator[tuple]:
        try:
            yield from self.database.execute(query, values)
        except sqlite3.Error as error:
            raise self._told(error, "read") from None
