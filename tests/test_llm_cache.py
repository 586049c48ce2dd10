from __future__ import annotations

import sqlite3
import time
import warnings
from pathlib import Path

import pytest
from fake_llm_server import prompt

from llmpp_core import llm_cache
from llmpp_core.llm_cache import Cache, CacheError, Stored


def fill(path: Path, n: int) -> Cache:
    cache = Cache(path)
    for i in range(n):
        cache.put(f"key{i}", {"model": "m"}, prompt(i), 0, Stored(f"response {i} " * 20, 0.5))
    return cache


def test_what_is_put_is_there_for_others_at_once(tmp_path: Path) -> None:
    fill(tmp_path / "c", 3)
    assert Cache(tmp_path / "c").get("key1") == Stored("response 1 " * 20, 0.5)
    assert Cache(tmp_path / "c").get("other") is None


def test_a_shared_prefix_is_stored_once(tmp_path: Path) -> None:
    fill(tmp_path / "c", 50)
    db = sqlite3.connect(tmp_path / "c")
    assert db.execute("SELECT count(*) FROM texts").fetchone() == (1,)
    texts = db.execute("SELECT text || query FROM answers JOIN texts ON prefix = texts.sha256").fetchall()
    assert sorted(text for (text,) in texts) == sorted(prompt(i).text for i in range(50))


@pytest.mark.parametrize("damage", ["'garbage'", "x'ff00fe'", "''", "5"])
def test_a_corrupt_row_counts_as_absent_and_can_be_put_again(tmp_path: Path, damage: str) -> None:
    cache = fill(tmp_path / "c", 3)
    cache._db.execute(f"UPDATE answers SET response = {damage} WHERE key = 'key1'")
    cache._db.commit()
    assert cache.get("key1") is None
    assert cache.claim("key1") == "claimed"
    assert cache.get("key2") is not None
    cache.put("key1", {}, prompt(1), 0, Stored("new", None))
    assert cache.get("key1") == Stored("new", None)
    assert len(cache) == 3


def test_a_response_under_the_wrong_key_counts_as_absent(tmp_path: Path) -> None:
    cache = fill(tmp_path / "c", 2)
    cache._db.execute("UPDATE answers SET key = 'key9' WHERE key = 'key1'")
    cache._db.commit()
    assert cache.get("key9") is None


def test_a_file_that_is_no_database_is_set_aside_not_deleted(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "c").write_bytes(b"not a database at all, " * 100)
        with pytest.warns(UserWarning, match=f"damaged.*set aside as c.damaged-{number}, 0 answers kept"):
            cache = Cache(tmp_path / "c")
        cache.put("key", {}, prompt(0), 0, Stored("fine", None))
        cache.close()
        assert (tmp_path / f"c.damaged-{number}").read_bytes().startswith(b"not a database")


def test_a_damaged_database_is_set_aside_and_what_can_be_read_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "c"
    cache = fill(path, 400)
    cache._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cache.close()
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 8192] = b"\xff" * 8192
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="damaged"):
        mended = Cache(path)
    assert (tmp_path / "c.damaged-1").read_bytes() == bytes(data)
    assert 100 < len(mended) < 400
    assert mended.get("key0") == Stored("response 0 " * 20, 0.5)
    assert mended.get("key399") == Stored("response 399 " * 20, 0.5)


def test_claims_hold_against_others_until_released_answered_or_lapsed(tmp_path: Path) -> None:
    one, two = Cache(tmp_path / "c", lease=0.2), Cache(tmp_path / "c", lease=0.2)
    assert one.claim("a") == one.claim("b") == one.claim("c") == "claimed"
    assert one.claim("a") == "claimed"
    assert two.claim("a") == two.claim("b") == "elsewhere"
    one.release("a")
    assert two.claim("a") == "claimed"
    one.put("b", {}, prompt(0), 0, Stored("x", None))
    assert two.claim("b") == "answered"
    time.sleep(0.15)
    one.renew()
    time.sleep(0.1)
    assert two.claim("c") == "elsewhere"
    time.sleep(0.2)
    assert two.claim("c") == "claimed"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(CacheError, match="folder cannot be opened"):
        Cache(tmp_path / "folder")


@pytest.mark.skipif(not Path("/proc/mounts").exists(), reason="this system does not list what is mounted")
def test_a_network_file_system_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Cache(tmp_path / "c")
    # The kinds that are mounted here, as if they were of a network.
    kinds = {line.split()[2] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()}
    monkeypatch.setattr(llm_cache, "_NETWORK", kinds)
    with pytest.warns(UserWarning, match=r"is on a network file system \(.+\): on several machines at once answers would be lost"):
        Cache(tmp_path / "c")
