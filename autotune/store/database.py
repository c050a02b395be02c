"""Opening the database file: what may be opened, bringing it up to date, errors in plain words.

Nothing is written before the file is known to be ours. A database that is up to date is opened
without Alembic, which costs tenths of a second to import and run.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, event, make_url

from autotune.core import AutotuneError, BadInputError, MissingEnvironmentError
from autotune.util import edge
from autotune.util.lockfile import Lock
from autotune.util.resources import data_root
from autotune.util.secret import without_user_info

APPLICATION_ID = 0x4175746F  # "Auto"; migration 0001 writes it into the header of the file
VERSION_TABLE = "autotune_alembic_version"
WRITING = {"autotune_writing": True}  # execution option of a transaction that will write
_MAGIC = b"SQLite format 3\0"

_FOREIGN = (
    "SELECT type, substr(name, 1, 40) FROM sqlite_master WHERE type IN ('view', 'trigger') "
    "OR (type = 'table' AND sql LIKE 'CREATE VIRTUAL%')"
)
_FAULTS: dict[int, tuple[type[AutotuneError], str]] = {
    sqlite3.SQLITE_BUSY: (
        MissingEnvironmentError,
        "stayed locked by another process; wait for that process, or end it, and try again",
    ),
    sqlite3.SQLITE_READONLY: (
        MissingEnvironmentError,
        "cannot be written; make the file and its folder writable, or use another file",
    ),
    sqlite3.SQLITE_FULL: (
        MissingEnvironmentError,
        "cannot grow, the disk is full; free some space and start the command again",
    ),
    sqlite3.SQLITE_IOERR: (
        MissingEnvironmentError,
        "cannot be read or written (disk error); check the disk and its free space",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        MissingEnvironmentError,
        "cannot be opened; check the rights on the file and its folder, and the free space",
    ),
    sqlite3.SQLITE_CORRUPT: (
        BadInputError,
        "is damaged; move it away, or rescue it with: sqlite3 FILE .recover",
    ),
    sqlite3.SQLITE_NOTADB: (BadInputError, "is not a SQLite database; use another file"),
}
_FAULTS[sqlite3.SQLITE_LOCKED] = _FAULTS[sqlite3.SQLITE_BUSY]
_FAULTS[sqlite3.SQLITE_PERM] = _FAULTS[sqlite3.SQLITE_READONLY]


@contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite, the file lock and the system report about ``path`` into one clear line.

    Mistakes of the program (a violated constraint, wrong SQL) pass through unchanged.

    Raises:
        MissingEnvironmentError: locked, read-only, full disk, input/output error.
        BadInputError: damaged, or not a SQLite database.
    """
    try:
        yield
    except sqlalchemy.exc.DBAPIError as error:
        if not isinstance(error.orig, sqlite3.Error):
            raise
        raise _translated(path, error.orig, error) from error
    except sqlite3.Error as error:
        raise _translated(path, error, error) from error
    except OSError as error:
        where = error.filename or path
        raise MissingEnvironmentError(
            f"{where}: {error.strerror or error}; choose a place for the database that can be "
            "written"
        ) from error


def _translated(path: Path, cause: sqlite3.Error, error: Exception) -> Exception:
    if isinstance(cause, sqlite3.IntegrityError | sqlite3.ProgrammingError):
        return error
    code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return _fault(path, code, str(cause))


def _fault(path: Path, code: int, message: str) -> AutotuneError:
    kind, text = _FAULTS.get(
        code, (BadInputError, "cannot be used; move it away or use another file")
    )
    reason = " ".join(message.split())
    return kind(f"{path}: {text}" + (f" (SQLite: {reason})" if reason else ""))


def database_path(url: str) -> Path:
    """The absolute path of the file that ``url`` names.

    Raises:
        BadInputError: if the URL is malformed or does not name a SQLite file.
    """
    hint = "write it as sqlite:///outputs/autotune.db"
    if "://" not in url and url.strip():
        hint = f"write it as sqlite:///{without_user_info(url)}"
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise BadInputError(
            f"database URL {without_user_info(url)!r} cannot be understood; {hint}"
        ) from error
    if "\0" in url:
        raise BadInputError(
            f"database URL {without_user_info(url)!r} holds a NUL character; {hint}"
        )
    shown = repr(parsed.render_as_string(hide_password=True))
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise BadInputError(
            f"database URL {shown}: only SQLite is supported, not {parsed.drivername}; {hint}"
        )
    if parsed.host is not None:
        raise BadInputError(f"database URL {shown} needs three slashes before a path; {hint}")
    if not parsed.database or parsed.database.startswith(":") or parsed.query:
        raise BadInputError(f"database URL {shown} must name a file and nothing else; {hint}")
    return Path(parsed.database).absolute()


def known_revisions() -> list[str]:
    """The revisions this program knows, oldest first: file names in `alembic/versions`.

    Raises:
        MissingEnvironmentError: if the installation lacks them.
    """
    folder = data_root() / "alembic" / "versions"
    revisions = sorted(path.name.split("_")[0] for path in folder.glob("[0-9]*_*.py"))
    if not revisions:
        raise MissingEnvironmentError(f"{folder}: holds no migrations; install autotune again")
    return revisions


def open_database(path: Path, *, create: bool = True, busy_seconds: float = 30.0) -> Engine:
    """Open the database at ``path``, made or brought up to date as needed.

    Args:
        path: the file.
        create: make a file and its folder that do not exist.
        busy_seconds: how long to wait for another process that writes.

    Raises:
        BadInputError: a folder, not a SQLite file, another program's database, damaged, written by
            a newer version, or missing while ``create`` is off.
        MissingEnvironmentError: read-only, locked too long, no space.
    """
    with translated_errors(path):
        if path.is_dir():
            raise BadInputError(f"{path}: is a folder; name a file in it, such as autotune.db")
        if not path.exists():
            if not create:
                raise BadInputError(f"{path}: no such database; check the path, or tune first")
            path.parent.mkdir(parents=True, exist_ok=True)
        _check_writable(path)
        head = known_revisions()[-1]
        if _version(path, busy_seconds) != head:
            with _upgrading(path, busy_seconds):
                if _version(path, busy_seconds) != head:
                    _upgrade(path, busy_seconds)
        return make_engine(path, busy_seconds)


@contextmanager
def _upgrading(path: Path, busy_seconds: float) -> Iterator[None]:
    """Be the only process that brings the file up to date.

    Raises:
        MissingEnvironmentError: another one takes longer than ``busy_seconds``.
    """
    lock = Lock(path.with_name(f"{path.name}.lock"))
    if not lock.acquire(busy_seconds):
        raise _fault(path, sqlite3.SQLITE_BUSY, "")
    try:
        yield
    finally:
        lock.release()


class Session:
    """Transactions on one database file, from the process that opened it."""

    def __init__(self, engine: Engine, path: Path, now: Callable[[], datetime]) -> None:
        self.engine = engine
        self.path = path
        self.now = now
        self._writer = engine.execution_options(**WRITING)
        self._pid = os.getpid()
        self._file = _identity(path)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads; what it reads becomes our types inside the block.

        Raises:
            BadInputError: values that are not of their types: the file was made by others.
        """
        try:
            with translated_errors(self.path), self.engine.begin() as connection:
                yield connection
        except (ValueError, TypeError, OverflowError) as error:
            said = " ".join(str(error).split())[:200]
            raise BadInputError(
                f"{self.path}: holds what autotune never writes ({said}); use another file"
            ) from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is durable when the block ends, and undone when it raises."""
        if os.getpid() != self._pid:
            raise RuntimeError(f"{self.path}: only the process that opened the store may write")
        if _identity(self.path) != self._file:
            raise MissingEnvironmentError(
                f"{self.path}: was deleted or replaced while this command ran; what it measured "
                "since is lost: put the file back, or start the command again"
            )
        with translated_errors(self.path), self._writer.begin() as connection:
            yield connection


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file a path names; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _check_writable(path: Path) -> None:
    """Ask the system first: SQLite would find out later, and say less."""
    for place in (path, path.parent):
        if place.exists() and not os.access(place, os.W_OK):
            raise MissingEnvironmentError(
                f"{place}: cannot be written; make it writable, or use a database elsewhere"
            )


def _version(path: Path, busy_seconds: float) -> str | None:
    """The revision of the file, read without changing it; None for a new or empty file.

    Raises:
        BadInputError: if the file is not ours or newer than this program.
    """
    if not path.exists():
        return None
    try:
        with edge.open_file(path) as file:
            head = edge.read_some(file, len(_MAGIC))
    except edge.EdgeError as error:
        raise edge.bad_input(path, error) from None
    if not head:
        return None
    if head != _MAGIC:
        raise _fault(path, sqlite3.SQLITE_NOTADB, "")
    uri = f"{path.as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=busy_seconds)) as connection:
        # One transaction: a migration may be committed between two reads.
        connection.execute("BEGIN")
        names = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
        tables = [name for (name,) in connection.execute(names)]
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            if not tables and application == 0:
                return None
            holds = ", ".join(tables[:3]) or "no tables"
            raise BadInputError(
                f"{path}: is the database of another program (it holds {holds}); use another file"
            )
        foreign = connection.execute(_FOREIGN).fetchone()
        if foreign is not None:
            raise BadInputError(
                f"{path}: has a {foreign[0]} {foreign[1]!r}, which autotune never makes and which "
                "would run as it reads or writes; use another file"
            )
        query = f"SELECT version_num FROM {VERSION_TABLE}"  # noqa: S608 - a constant
        versions = [version for (version,) in connection.execute(query)]
    if len(versions) != 1:
        raise _fault(path, sqlite3.SQLITE_CORRUPT, f"{VERSION_TABLE} holds {versions}")
    version = str(versions[0])
    if version not in known_revisions():
        raise BadInputError(
            f"{path}: was written by a newer version of autotune (database version {version}); "
            "upgrade autotune, or use another file"
        )
    return version


def make_engine(path: Path, busy_seconds: float = 30.0) -> Engine:
    """An engine for ``path`` with our settings on every connection. Touches no file yet."""
    url = URL.create("sqlite", database=str(path))
    engine = sqlalchemy.create_engine(
        url,
        connect_args={"timeout": busy_seconds},
        json_deserializer=lambda text: edge.parse_json(text, lost=True),
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _record: object) -> None:
        # We begin transactions ourselves: sqlite3 would leave CREATE TABLE and PRAGMA outside.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")  # a file may come from elsewhere
        # FULL syncs the log at every commit. With NORMAL a committed batch survives kill -9 but
        # not a power cut, and a GPU under load is where power cuts come from. One commit a batch
        # costs a few milliseconds at most; NORMAL would save that and risk minutes of measuring.
        connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads first and writes later would fail at once, not wait, when
        # another process wrote in between; so one that will write takes the lock at the start.
        writing = connection.get_execution_options().get("autotune_writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _upgrade(path: Path, busy_seconds: float) -> None:
    from alembic.config import Config  # noqa: PLC0415

    from alembic import command  # noqa: PLC0415 - slow; only for a database that is behind

    config = Config()
    folder = str(data_root() / "alembic").replace("%", "%%")
    config.set_main_option("script_location", folder)
    with migration_connection(path, busy_seconds) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def migration_connection(path: Path, busy_seconds: float = 30.0) -> Iterator[Connection]:
    """A connection in one transaction: of a migration killed half-way, nothing has happened."""
    engine = make_engine(path, busy_seconds)
    try:
        with engine.connect().execution_options(**WRITING) as connection:
            raw: Any = connection.connection.driver_connection
            # Readers do not wait for the writer. Kept in the file, so it is set here only.
            raw.execute("PRAGMA journal_mode = WAL")
            # SQLite changes a table by making it anew, which foreign keys would not allow.
            raw.execute("PRAGMA foreign_keys = OFF")
            with connection.begin():
                yield connection
    finally:
        engine.dispose()
