"""The answers that were paid for, in one SQLite file that several processes share.

Every response is committed before anyone sees it, so a killed process loses only what was still on the wire. A request is claimed before
it is sent, so two notebooks that ask the same things at once do not pay twice; a claim has to be renewed, so those of a dead process lapse.

The file is in WAL mode, whose index is memory that the processes share, so all of them must be on one machine, and the file on a disk of
that machine: over a network file system, or a folder shared with a virtual machine or a container, two machines would overwrite each
other's answers. Opening a file on any kind of file system that is not known to be local warns. A cache that is only to be read, as for a
replay, may lie where nothing can be written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import sqlite3
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llmpp_core.llm.prompts import Prompt

# The prefix that many prompts share is stored once, in texts.
_TABLES = """
CREATE TABLE IF NOT EXISTS texts (sha256 TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, settings TEXT, prefix TEXT, query TEXT, sample INTEGER,
                                    response TEXT NOT NULL, seconds REAL, sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL);
"""
_COLUMNS = ("key", "settings", "prefix", "query", "sample", "response", "seconds", "sha256")
_INSERT = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
#: Name of the cache file in the user's cache folder.
FILE_NAME = "llm.sqlite3"
_MAGIC = b"SQLite format 3\0"
# A list of those of networks would never be complete; a kind that is missing here only warns.
_LOCAL = re.compile(
    r"ext[234]|xfs|btrfs|zfs|bcachefs|f2fs|jfs|nilfs2|reiserfs|ufs|hfs(plus)?|apfs|(v|ex)fat|msdos|ntfs3?|fuseblk|(tmp|ram|root|devtmp)fs|"
    r"overlay|aufs|unionfs|ecryptfs|squashfs|erofs|iso9660|udf|fuse\.(fuse-overlayfs|mergerfs|gocryptfs|ext[234]|exfat|ntfs-3g|zfs)"
)


class CacheError(RuntimeError):
    """The cache cannot be read or written, for example because the disk is full; what is in it stays."""


class Stored(NamedTuple):
    """A response body as it came, and how many seconds it took."""

    response: str
    seconds: float | None


class Cache:
    """Responses by key; raises CacheError if the file cannot be opened, or is something else, and is left as it is.

    Parameters
    ----------
    path : pathlib.Path
        The file; created with its folder where absent. One that is damaged is renamed to end in ``.damaged-N``, and the answers that can
        still be read are carried over.
    lease : float
        Seconds for which a claim holds unless renewed.
    read_only : bool
        Change nothing: a file that is absent is empty, and what can be read of a damaged one is read where it is.
    """

    def __init__(self, path: Path, lease: float = 5.0, read_only: bool = False):
        self.path = Path(path)
        self.lease = lease
        self._owner = uuid.uuid4().hex
        self._lock = threading.Lock()
        try:
            if not read_only:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            _require_cache(self.path)
            if not read_only and (kind := _foreign_file_system(self.path.parent)):
                advice = "on several machines at once answers would be lost; move it to a local disk"
                warnings.warn(f"the cache {self.path} is on a file system that is not known to be local ({kind}): {advice}", stacklevel=2)
            if read_only and self.path.exists() and self.path.stat().st_size:
                self._db = _open_to_read(self.path)
            else:
                self._db = _open(Path(":memory:") if read_only else self.path)
        except (sqlite3.OperationalError, OSError) as error:
            raise CacheError(f"the cache {self.path} cannot be opened: {getattr(error, 'strerror', None) or error}") from None
        except sqlite3.DatabaseError as error:
            damaged = self.path if read_only else _set_aside(self.path)
            self._db = _open(Path(":memory:") if read_only else self.path)
            kept = self._salvage(damaged)
            done = f"{kept} answers read" if read_only else f"set aside as {damaged.name}, {kept} answers kept"
            warnings.warn(f"the cache {self.path} is damaged ({error}): {done}", stacklevel=2)

    def get(self, key: str) -> Stored | None:
        """Return what is kept under a key, or None; a row whose checksum is wrong counts as absent."""
        with self._transaction() as db:
            return _get(db, key)

    def put(self, key: str, settings: dict[str, Any], prompt: Prompt, sample: int, stored: Stored) -> None:
        """Commit a response and end the claim on it."""
        prefix = hashlib.sha256(prompt.prefix.encode()).hexdigest()
        row = (key, json.dumps(settings, sort_keys=True), prefix, prompt.query, sample, *stored, _checksum(key, stored.response))
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", (prefix, prompt.prefix))
            db.execute(_INSERT, row)
            db.execute("DELETE FROM claims WHERE key = ?", (key,))

    def claim(self, key: str) -> str:
        """Claim the right to ask: "claimed", "elsewhere" if another process is about to get the answer, "answered" if it is here by now."""
        now = time.time()
        with self._transaction() as db:
            db.execute("BEGIN IMMEDIATE")
            if _get(db, key):
                return "answered"
            done = db.execute(
                "INSERT INTO claims VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, until = excluded.until "
                "WHERE claims.until < ? OR claims.owner = excluded.owner",
                (key, self._owner, now + self.lease, now),
            )
        return "claimed" if done.rowcount == 1 else "elsewhere"

    def renew(self) -> None:
        """Prolong all claims of this process."""
        with self._transaction() as db:
            db.execute("UPDATE claims SET until = ? WHERE owner = ?", (time.time() + self.lease, self._owner))

    def release(self, key: str | None = None) -> None:
        """End the claim of this process on a key, or all of them."""
        with self._transaction() as db:
            db.execute("DELETE FROM claims WHERE owner = ? AND key = coalesce(?, key)", (self._owner, key))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __len__(self) -> int:
        with self._transaction() as db:
            return int(db.execute("SELECT count(*) FROM answers").fetchone()[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock, self._db:
                yield self._db
        except sqlite3.DatabaseError as error:
            raise CacheError(f"the cache {self.path} cannot be used: {error}; what it holds is kept") from None

    def _salvage(self, damaged: Path) -> int:
        """Copy the answers that are whole from a damaged file; from both ends, since reading stops at the damage."""
        kept: dict[str, Any] = {}
        try:
            source = _copied(damaged)
        except sqlite3.DatabaseError:
            return 0
        for table, order in (("texts", "ASC"), ("texts", "DESC"), ("answers", "ASC"), ("answers", "DESC")):
            with contextlib.suppress(sqlite3.DatabaseError):
                for row in source.execute(f"SELECT * FROM {table} ORDER BY rowid {order}"):
                    if table == "texts":
                        self._db.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", row)
                    elif isinstance(row[5], str) and _checksum(row[0], row[5]) == row[7]:
                        kept[row[0]] = row
        with self._db:
            self._db.executemany(_INSERT, kept.values())
        return len(kept)


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30.0, check_same_thread=False)
    try:
        _prepare(db, path)
        # Synchronous NORMAL loses nothing when the process dies; a power cut may take the last moments, never the file.
        db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; {_TABLES}")
    except (sqlite3.Error, CacheError):
        db.close()
        raise
    return db


def _connect_to_read(path: Path) -> sqlite3.Connection:
    # As a URI, in which a path may hold #, ? and %.
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30.0, check_same_thread=False)


def _open_to_read(path: Path) -> sqlite3.Connection:
    """Open a file of which nothing may be written, not even the index that WAL needs beside it."""
    try:
        return _prepare(_connect_to_read(path), path)
    except sqlite3.OperationalError:
        # There is no index, and no place for one: read a copy, with what other processes have not yet carried over from the WAL.
        return _prepare(_copied(path), path)


def _copied(path: Path) -> sqlite3.Connection:
    """Return a copy of a file in memory, page by page, whatever is in them."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(path.with_name(path.name + suffix), Path(folder, FILE_NAME + suffix))
        db, copied = sqlite3.connect(":memory:", check_same_thread=False), sqlite3.connect(Path(folder, FILE_NAME))
        copied.backup(db)
        copied.close()
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """Check a database and make it ready to be read."""
    # A damaged row must read as a wrong checksum, not as an error.
    db.text_factory = lambda data: data.decode(errors="replace")
    tables = {str(name) for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and tuple(column[1] for column in db.execute("PRAGMA table_info(answers)")) != _COLUMNS:
        raise _no_cache(path, f"a database of other tables ({', '.join(sorted(tables))[:60]})")
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(" ".join(str(found).split())[:100])
    return db


def _require_cache(path: Path) -> None:
    """Raise CacheError if a file is something else than a cache, damaged or not, so that it is neither written to nor renamed."""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(4096)
        # A file that lost its beginning, to zeros or under the name that only caches have, is one to be set aside.
        if start.strip(b"\0") and not start.startswith(_MAGIC) and path.name != FILE_NAME:
            raise _no_cache(path, f"a file that begins with {start[:20]!r}")


def _no_cache(path: Path, what: str) -> CacheError:
    return CacheError(f"{path} is {what}, no cache of answers, and is left as it is: name another file")


def _foreign_file_system(folder: Path) -> str | None:
    """Return the kind of file system that a folder is on unless it is known to be local, as far as the system tells."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return None
    # White space and backslashes are written as octal numbers.
    kinds = {re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mount[1]): mount[2] for mount in mounts}
    found = next((kinds[str(place)] for place in (folder.resolve(), *folder.resolve().parents) if str(place) in kinds), "")
    return None if not found or _LOCAL.fullmatch(found) else found


def _get(db: sqlite3.Connection, key: str) -> Stored | None:
    row = db.execute("SELECT response, seconds, sha256 FROM answers WHERE key = ?", (key,)).fetchone()
    return Stored(row[0], row[1]) if row and _checksum(key, row[0]) == row[2] else None


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def _checksum(key: str, response: str) -> str:
    return hashlib.sha256(f"{key}\n{response}".encode()).hexdigest()
