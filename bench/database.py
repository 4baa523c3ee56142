"""The history on disk: one SQLite file of runs and their figures, for several processes at once.

`PRAGMA user_version` is its format: a file of an older one is brought up step by step when it is opened, a newer one is
refused. A run's key is the SHA-256 of when, where and of what it was taken and of its samples: importing it again changes
nothing.
"""

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from bench.figures import figures
from bench.record import Record
from kdc_edge import schema
from kdc_edge.errors import BundleError, KdcError, ResourceError, UsageError

APPLICATION = 0x6B646365  # "kdce" in the file's header: other programs' databases are left alone
WAIT_S = 60.0  # for another process that is writing
# Step i brings a file of format i to format i + 1. A step that has been released is never edited.
STEPS = (
    """
    CREATE TABLE runs (
        key TEXT PRIMARY KEY, created TEXT NOT NULL, complete INTEGER NOT NULL, device TEXT NOT NULL,
        processor TEXT NOT NULL, how TEXT NOT NULL, bundle TEXT NOT NULL, name TEXT NOT NULL, precision TEXT NOT NULL,
        revision TEXT, record TEXT NOT NULL);
    CREATE TABLE figures (
        key TEXT NOT NULL REFERENCES runs ON DELETE CASCADE, metric TEXT NOT NULL, value REAL NOT NULL,
        PRIMARY KEY (key, metric)) WITHOUT ROWID;
    CREATE INDEX by_bundle ON runs (bundle, device, how, created);
    """,
)


@dataclass(frozen=True)
class Row:
    """One figure of one run."""

    key: str
    created: str
    complete: int
    """1, or 0 for a run that was cut short."""
    device: str
    """Fingerprint of the machine."""
    processor: str
    how: str
    """Runtime, provider, threads."""
    bundle: str
    name: str
    precision: str
    revision: str | None
    metric: str
    value: float

    @property
    def series(self) -> tuple[str, str, str]:
        """What makes values comparable over time: place, bundle, metric."""
        return f"{self.device} {self.how}", self.bundle, self.metric


@dataclass(frozen=True)
class Wanted:
    """Which figures; None is all. Device is a fingerprint or part of a processor's name, the others beginnings."""

    device: str | None = None
    bundle: str | None = None
    """Beginning of an id, or a name."""
    metric: str | None = None
    revision: str | None = None


class Database:
    """An open history."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, records: Sequence[Record]) -> int:
        """All of them or none; returns how many were new. A finished run takes the place of its unfinished record."""
        with _writing(self._connection) as connection:
            return sum(_add(connection, record) for record in records)

    def rows(self, wanted: Wanted = Wanted()) -> list[Row]:
        """Figures in the order of their runs."""
        condition, values = _where(wanted)
        names = [field.name for field in fields(Row)]
        query = f"SELECT {', '.join(names)} FROM runs JOIN figures USING (key)"
        cursor = self._connection.execute(f"{query} WHERE {condition} ORDER BY created, key, metric", values)
        return [Row(**dict(zip(names, row, strict=True))) for row in cursor]

    def metrics(self) -> list[str]:
        return [name for (name,) in self._connection.execute("SELECT DISTINCT metric FROM figures ORDER BY metric")]

    def count(self) -> int:
        (count,) = self._connection.execute("SELECT count(*) FROM runs").fetchone()
        return count


@contextmanager
def opened(path: Path, create: bool = True) -> Iterator[Database]:
    """The history at `path`, brought to this format. BundleError for a damaged one (a copy is kept) or a newer one."""
    if not create and not path.is_file():
        raise UsageError(f"{path}: no such history; python -m bench history RECORD... makes one")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)) as connection:
            _prepare(connection, path)
            yield Database(connection)
    except sqlite3.Error as error:
        raise _explained(error, path) from error


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION:
        raise BundleError(f"{path}: a database, and not a history of bench; name another file")
    if found > len(STEPS):
        raise BundleError(f"{path}: format {found}, this kdc-edge reads {len(STEPS)}; update kdc-edge")
    (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if state != "ok":
        raise sqlite3.DatabaseError(state)
    if found < len(STEPS):
        with _writing(connection):
            _migrate(connection)
    connection.execute("PRAGMA foreign_keys = ON")


def _migrate(connection: sqlite3.Connection) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()  # another process may have been first
    for number in range(found, len(STEPS)):
        for statement in filter(str.strip, STEPS[number].split(";")):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {len(STEPS)}")


@contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """One transaction that has the file for itself from its start; undone by an error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _add(connection: sqlite3.Connection, record: Record) -> bool:
    bundle = record.bundle
    same_run = (record.created, record.fingerprint, bundle["id"], record.command)
    taken = schema.canonical([*same_run, schema.dump(record.latency)])
    key = hashlib.sha256(taken).hexdigest()  # not of fields that later versions may add
    alike = "created = ? AND device = ? AND bundle = ? AND json_extract(record, '$.command') = ?"
    if record.complete:
        connection.execute(f"DELETE FROM runs WHERE complete = 0 AND {alike}", same_run)
    elif connection.execute(f"SELECT 1 FROM runs WHERE complete = 1 AND {alike}", same_run).fetchone():
        return False
    row = (
        *(
            key,
            record.created,
            int(record.complete),
            record.fingerprint,
            record.machine["processor"],
            record.settings.how,
        ),
        *(bundle["id"], bundle["name"], bundle["precision"], record.revision),
        schema.canonical(schema.dump(record)).decode(),
    )
    inserted = connection.execute(f"INSERT OR IGNORE INTO runs VALUES ({', '.join('?' * len(row))})", row).rowcount
    if inserted:
        values = [(key, metric, value) for metric, value in figures(record).items()]
        connection.executemany("INSERT INTO figures VALUES (?, ?, ?)", values)
    return bool(inserted)


def _where(wanted: Wanted) -> tuple[str, list[str]]:
    clauses, values = ["1"], []
    if wanted.device is not None:
        clauses.append("(device = ? OR instr(lower(processor), lower(?)))")
        values += [wanted.device, wanted.device]
    if wanted.bundle is not None:
        clauses.append("(name = ? OR substr(bundle, 1, length(?)) = ?)")
        values += [wanted.bundle] * 3
    for column, beginning in (("metric", wanted.metric), ("revision", wanted.revision)):
        if beginning is not None:
            clauses.append(f"substr({column}, 1, length(?)) = ?")
            values += [beginning] * 2
    return " AND ".join(clauses), values


def _explained(error: sqlite3.Error, path: Path) -> KdcError:
    if type(error) is sqlite3.DatabaseError:  # no subclass: the file is corrupt, or none of sqlite's
        return _damaged(path, str(error))
    if "full" in str(error):
        return ResourceError(f"{path}: the disk is full; nothing of this import was kept, free some space")
    return UsageError(
        f"{path}: {error}; it must be a file that this process may write, and no other is writing for so long"
    )


def _damaged(path: Path, problem: str) -> BundleError:
    """The refusal, after a copy that nothing overwrites."""
    copy = next(name for i in range(1, 10**6) if not (name := path.with_name(f"{path.name}.damaged-{i}")).exists())
    shutil.copy2(path, copy)
    return BundleError(
        f"{path}: damaged ({problem}); nothing in it was changed and {copy} is a copy of it. Move it away and import the "
        "records again: python -m bench history RECORD..."
    )
