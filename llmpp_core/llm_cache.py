"""The answers that were paid for, in one SQLite file that several processes share.

Every response is committed before anyone sees it, so a killed process loses only what was still on the wire. A request
is claimed before it is sent, so two notebooks that ask the same things at once do not pay twice; a claim has to be
renewed, so those of a dead process lapse.

The file is in WAL mode, whose index is memory that the processes share, so all of them must be on one machine, and the file on a disk
of that machine. On a network file system (NFS, SMB, Lustre) two machines would each see an index of their own and overwrite each other's
answers, and even one machine depends on locks that such systems keep loosely; opening a file there warns. When several machines label,
one process keeps the cache and the others send it what they were answered (see `llm_workers`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llmpp_core.prompts import Prompt

# The prefix that many prompts share is stored once, in texts.
_TABLES = """
CREATE TABLE IF NOT EXISTS texts (sha256 TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, settings TEXT, prefix TEXT, query TEXT, sample INTEGER,
                                    response TEXT NOT NULL, seconds REAL, sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL);
"""
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.glusterfs", "afs", "fuse.sshfs"}
_INSERT = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


class CacheError(RuntimeError):
    """The cache cannot be read or written, for example because the disk is full; what is in it stays."""


class Stored(NamedTuple):
    """A response body as it came, and how many seconds it took."""

    response: str
    seconds: float | None


class Cache:
    """Responses by key.

    Parameters
    ----------
    path : pathlib.Path
        The file; created with its folder where absent. One that is damaged is renamed to end in ``.damaged-N``, and the
        answers that can still be read are carried over.
    lease : float
        Seconds for which a claim holds unless renewed.
    """

    def __init__(self, path: Path, lease: float = 5.0):
        self.path = Path(path)
        self.lease = lease
        self._owner = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._texts: set[str] = set()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if kind := _network_file_system(self.path.parent):
            advice = "on several machines at once answers would be lost; move it to a local disk"
            warnings.warn(f"the cache {self.path} is on a network file system ({kind}): {advice}", stacklevel=2)
        try:
            self._db = _open(self.path)
        except sqlite3.OperationalError as error:
            raise CacheError(f"the cache {self.path} cannot be opened: {error}") from None
        except sqlite3.DatabaseError as error:
            aside = _set_aside(self.path)
            self._db = _open(self.path)
            kept = self._salvage(aside)
            warnings.warn(f"the cache {self.path} is damaged ({error}): set aside as {aside.name}, {kept} answers kept", stacklevel=2)

    def get(self, key: str) -> Stored | None:
        """Return what is kept under a key, or None; a row whose checksum is wrong counts as absent."""
        with self._transaction() as db:
            return _get(db, key)

    def put(self, key: str, settings: dict[str, Any], prompt: Prompt, sample: int, stored: Stored) -> None:
        """Commit a response and end the claim on it."""
        prefix = hashlib.sha256(prompt.prefix.encode()).hexdigest()
        row = (key, json.dumps(settings, sort_keys=True), prefix, prompt.query, sample, *stored, _checksum(key, stored.response))
        with self._transaction() as db:
            if prefix not in self._texts:
                db.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", (prefix, prompt.prefix))
            db.execute(_INSERT, row)
            db.execute("DELETE FROM claims WHERE key = ?", (key,))
        self._texts.add(prefix)

    def claim(self, key: str) -> str:
        """Claim the right to ask.

        Returns
        -------
        {"claimed", "elsewhere", "answered"}
            "elsewhere" if another process is about to get the answer, "answered" if it is here by now.
        """
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

    def _salvage(self, aside: Path) -> int:
        """Copy the answers that are whole from a damaged file; from both ends, since reading stops at the damage."""
        kept: dict[str, Any] = {}
        for order in ("ASC", "DESC"):
            for table in ("texts", "answers"):
                try:
                    old = sqlite3.connect(f"file:{aside}?mode=ro", uri=True)
                    for row in old.execute(f"SELECT * FROM {table} ORDER BY rowid {order}"):
                        if table == "texts":
                            self._db.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", row)
                        elif isinstance(row[5], str) and _checksum(row[0], row[5]) == row[7]:
                            kept[row[0]] = row
                except sqlite3.DatabaseError:
                    continue
        with self._db:
            self._db.executemany(_INSERT, kept.values())
        return len(kept)


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30.0, check_same_thread=False)
    try:
        # Synchronous NORMAL loses nothing when the process dies; a power cut may take the last moments, never the file.
        # A damaged row must read as a wrong checksum, not as an error.
        db.text_factory = lambda data: data.decode(errors="replace")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(" ".join(str(found).split())[:100])
        db.executescript(_TABLES)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _network_file_system(folder: Path) -> str | None:
    """Return the kind of file system that a folder is on if it is one of a network, as far as the system tells."""
    mounts: dict[Path, str] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
            _, point, kind, *_ = line.split()
            mounts[Path(point)] = kind
    for place in (folder.resolve(), *folder.resolve().parents):
        if place in mounts:
            return mounts[place] if mounts[place] in _NETWORK else None
    return None


def _get(db: sqlite3.Connection, key: str) -> Stored | None:
    row = db.execute("SELECT response, seconds, sha256 FROM answers WHERE key = ?", (key,)).fetchone()
    return Stored(row[0], row[1]) if row and _checksum(key, row[0]) == row[2] else None


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm", ""):
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.replace(aside.with_name(aside.name + suffix))
    return aside


def _checksum(key: str, response: str) -> str:
    return hashlib.sha256(f"{key}\n{response}".encode()).hexdigest()
