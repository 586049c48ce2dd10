from __future__ import annotations

import contextlib
import shutil
import sqlite3
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_llm_server import prompt

from llmpp_core.llm import cache as llm_cache
from llmpp_core.llm.cache import FILE_NAME, Cache, CacheError, Stored
from llmpp_core.llm.client import Client, Settings


def fill(path: Path, n: int) -> Cache:
    cache = Cache(path)
    for i in range(n):
        cache.put(f"key{i}", {"model": "m"}, prompt(i), 0, Stored(f"response {i} " * 20, 0.5))
    return cache


def test_what_is_put_is_there_for_others_at_once_and_a_shared_prefix_once(tmp_path: Path) -> None:
    fill(tmp_path / "c", 50)
    assert Cache(tmp_path / "c").get("key1") == Stored("response 1 " * 20, 0.5)
    assert Cache(tmp_path / "c").get("other") is None
    db = sqlite3.connect(tmp_path / "c")
    assert db.execute("SELECT count(*) FROM texts").fetchone() == (1,)
    texts = db.execute("SELECT text || query FROM answers JOIN texts ON prefix = texts.sha256").fetchall()
    assert sorted(text for (text,) in texts) == sorted(prompt(i).text for i in range(50))


@pytest.mark.parametrize("damage", ["response = 'garbage'", "response = x'ff00fe'", "response = 5", "sha256 = ''"])
def test_a_corrupt_row_counts_as_absent_and_can_be_put_again(tmp_path: Path, damage: str) -> None:
    cache = fill(tmp_path / "c", 3)
    cache._db.execute(f"UPDATE answers SET {damage} WHERE key = 'key1'")
    cache._db.commit()
    assert cache.get("key1") is None
    assert cache.claim("key1") == "claimed"
    assert cache.get("key2") is not None
    cache.put("key1", {}, prompt(1), 0, Stored("new", None))
    assert cache.get("key1") == Stored("new", None)
    assert len(cache) == 3
    cache._db.execute("UPDATE answers SET key = 'key9' WHERE key = 'key1'")
    cache._db.commit()
    assert cache.get("key9") is None  # A response under the wrong key.


def spoil(path: Path, start: int, length: int, fill_with: bytes = b"\xff", n: int = 400) -> bytes:
    """Overwrite a part of a cache of n answers; returns what the file holds now."""
    cache = fill(path, n)
    cache._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cache.close()
    data = bytearray(path.read_bytes())
    start = len(data) // 2 // 4096 * 4096 if start < 0 else start
    data[start : start + length] = fill_with * len(data[start : start + length])
    path.write_bytes(data)
    return bytes(data)


# A cache may be in any folder: these mean something in a URI, a pattern or a shell.
FOLDERS = ["run#3", "done 100%25", "what?x=1 é \\ 'q' \""]


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("folder", FOLDERS)
def test_of_a_damaged_cache_in_any_folder_what_can_be_read_is_kept(tmp_path: Path, folder: str, read_only: bool) -> None:
    path = tmp_path / folder / FILE_NAME
    data = spoil(path, -1, 8192)
    with pytest.warns(UserWarning, match=r"damaged.*: \d+ answers read" if read_only else "damaged.*set aside as llm.sqlite3.damaged-1"):
        mended = Cache(path, read_only=read_only)
    # To be read, it stays where it is; to be written, it is set aside, not deleted.
    assert (path if read_only else path.with_name(f"{FILE_NAME}.damaged-1")).read_bytes() == data
    assert 100 < len(mended) < 400
    for i in (0, 399):
        assert mended.get(f"key{i}") == Stored(f"response {i} " * 20, 0.5)
    assert [place.name for place in tmp_path.iterdir()] == [folder]


def test_a_cache_that_lost_its_beginning_is_set_aside_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    for number, (length, fill_with) in enumerate([(4096, b"\0"), (10**9, b"\xff")], 1):
        data = spoil(path, 0, length, fill_with, n=20)
        with pytest.warns(UserWarning, match=f"damaged.*set aside as llm.sqlite3.damaged-{number}, 0 answers kept"):
            cache = Cache(path)
        cache.put("key", {}, prompt(0), 0, Stored("fine", None))
        cache.close()
        assert (tmp_path / f"{FILE_NAME}.damaged-{number}").read_bytes() == data
        path.unlink()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    "foreign", [b"architecture,bleu\n1,25.3\n" * 100, bytes(range(256)) * 50, None], ids=["text", "binary", "database"]
)
def test_a_file_that_is_no_cache_is_refused_and_left_as_it_is(tmp_path: Path, foreign: bytes | None, read_only: bool) -> None:
    path = tmp_path / "mine"
    path.write_bytes(foreign or b"")
    if foreign is None:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE places (id INTEGER, url TEXT)")
    data = path.read_bytes()
    with pytest.raises(CacheError, match=f"^{path} is .*, no cache of answers, and is left as it is: name another file$"):
        Cache(path, read_only=read_only)
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_only_to_be_read_needs_no_place_to_write_nor_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").touch()
    assert [len(Cache(tmp_path / name, read_only=True)) for name in ("empty", "absent")] == [0, 0]
    assert not (tmp_path / "absent").exists()
    open_cache = fill(tmp_path / "c", 3)  # Whose answers are in the WAL still.
    assert (tmp_path / "c-wal").stat().st_size > 0
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("c", "c-wal"):
        shutil.copyfile(tmp_path / name, folder / name)
    open_cache.close()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def refuse(path: Path) -> sqlite3.Connection:  # As a read-only disk does; root is stopped by nothing else.
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(llm_cache, "_connect_to_read", refuse)
    cache = Cache(folder / "c", read_only=True)
    assert [cache.get(f"key{i}") for i in range(3)] == [Stored(f"response {i} " * 20, 0.5) for i in range(3)]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_replay_changes_nothing_and_sees_what_others_put(tmp_path: Path) -> None:
    with contextlib.closing(fill(tmp_path / "c", 3)) as live:
        client = Client(Settings("m"), cache=tmp_path / "c", mode="replay")
        assert client.lookup("key1") == Stored("response 1 " * 20, 0.5)
        live.put("new", {}, prompt(9), 0, Stored("x", None))
        assert client.lookup("new") == Stored("x", None)
        with pytest.raises(CacheError, match="cannot be used: attempt to write a readonly database"):
            client.cache.put("other", {}, prompt(9), 0, Stored("x", None))


def test_claims_hold_against_others_until_released_answered_or_lapsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_cache, "time", SimpleNamespace(time=lambda: now))
    now, one, two = 100.0, Cache(tmp_path / "c", lease=5.0), Cache(tmp_path / "c", lease=5.0)
    assert one.claim("a") == one.claim("b") == one.claim("c") == "claimed"
    assert one.claim("a") == "claimed"
    assert two.claim("a") == two.claim("b") == "elsewhere"
    one.release("a")
    assert two.claim("a") == "claimed"
    one.put("b", {}, prompt(0), 0, Stored("x", None))
    assert two.claim("b") == "answered"
    now += 4
    one.renew()
    now += 4
    assert two.claim("c") == "elsewhere"
    now += 2
    assert two.claim("c") == "claimed"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for place in ("folder", "file/c"):
        with pytest.raises(CacheError, match=f"{place} cannot be opened: "):
            Cache(tmp_path / place)


MOUNTS = ["nfs4 /mnt/n", "9p /mnt/c", "virtiofs /v", "fakeowner /v", "fuse.grpcfuse /v", "fuse.drive /content", "fuse.sshfs /my \\ disk"]


@pytest.mark.parametrize("mount", [*MOUNTS, "ext4 /v", "xfs /mnt/my disk", "tmpfs /t\ta", "overlay /"])
def test_file_systems_that_are_not_known_to_be_local_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mount: str) -> None:
    kind, point = mount.split(" ", 1)
    written = "".join(f"\\{ord(c):03o}" if c in " \t\\" else c for c in point)
    read = Path.read_text
    mounts = f"x / ext4 rw 0 0\ns {written} {kind} rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **options: mounts if str(self) == "/proc/mounts" else read(self, **options))
    assert llm_cache._foreign_file_system(Path(point) / "some" / "folder") == (kind if mount in MOUNTS else None)
    monkeypatch.setattr(llm_cache, "_foreign_file_system", lambda folder: "9p")
    with pytest.warns(UserWarning, match=r"not known to be local \(9p\): on several machines at once answers would be lost"):
        Cache(tmp_path / "c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Cache(tmp_path / "c", read_only=True)  # Nothing can be lost.
