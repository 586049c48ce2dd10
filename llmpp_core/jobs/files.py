"""Files that are never seen half-written, and tensors that say what they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, all or nothing, and onto the disk before this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def need_disk(folder: Path, needed: int, what: str) -> None:
    """Raise ValueError if the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(f"{folder}: {what} need about {needed / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free")


def need_writable(path: Path) -> None:
    """Raise ValueError unless a file can be written to `path`: to be found out before the work, not after. Leaves nothing behind."""
    # The folder itself, or what it would be made in.
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        if not folder.is_dir():
            raise NotADirectoryError("its folder is a file")
        with tempfile.TemporaryFile(dir=folder):
            pass
        if path.exists():
            with open(path, "ab"):
                pass
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep others from adding to a file or folder meanwhile, by a lock beside it; raises ValueError if one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{path}: another process is adding to it; wait for it, or stop it") from None
    try:
        yield
    finally:
        # While it is held: who opened the file before sees that it is gone, and makes another.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def save_tensors(path: str | Path, kind: str, tensors: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """Write a safetensors file of a `kind` that also holds a JSON `record` and a checksum of everything; all or nothing."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    text = json.dumps(record, sort_keys=True, default=lambda value: value.tolist())
    # One entry, since safetensors writes several in any order.
    replace_file(Path(path), to_safetensors(arrays, metadata={f"llmpp.{kind}": f"{_digest(text, arrays)} {text}"}))


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_tensors` wrote; raises ValueError naming the file if it is damaged or something else."""
    if Path(path).is_dir():
        raise ValueError(f"{path}: a folder, not a safetensors file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        if str(path) in str(error):
            raise
        raise OSError(f"{path}: {error}") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file: {' '.join(str(error).split())}") from None
    if f"llmpp.{kind}" not in metadata:
        raise ValueError(f"{path}: not a checkpoint of kind {kind!r}")
    sha256, _, text = metadata[f"llmpp.{kind}"].partition(" ")
    if sha256 != _digest(text, arrays):
        raise ValueError(f"{path}: damaged, its checksum does not match")
    return arrays, json.loads(text)


@contextlib.contextmanager
def understood(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong while what was read whole, a checkpoint or a row, becomes an object into a ValueError of one line."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: not of a form that this version reads: {type(error).__name__}: {' '.join(str(error).split())}") from None


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file that is still being written; a last line cut off by a crash is left out, a damaged one a ValueError naming it."""
    if not path.is_file():
        return []
    rows, lines = [], path.read_bytes().split(b"\n")
    # A last line without an end may be whole all the same, as an editor leaves it: half an object is no JSON.
    for number, line in enumerate(lines[:-1] if read_row(lines[-1]) is None else lines, 1):
        if (row := read_row(line)) is None:
            raise ValueError(f"{path}:{number}: not a JSON object")
        rows.append(row)
    return rows


def read_row(line: bytes | str) -> dict[str, Any] | None:
    """Return the JSON object that a line holds; None if it holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


# What Python writes for numbers that JSON has no word for; strings are matched so that their content is left alone.
_NO_JSON = re.compile(r'"(?:\\.|[^"\\])*"|-?Infinity|NaN')
_AS_JSON = {"NaN": "null", "Infinity": "1e999", "-Infinity": "-1e999"}


def to_json(row: Mapping[str, Any]) -> str:
    """Return one line of valid JSON, whatever numbers are in it: nan becomes null, infinity a number too large for any float."""
    text = json.dumps(row, default=lambda value: value.tolist())
    return _NO_JSON.sub(lambda found: _AS_JSON.get(found[0], found[0]), text) if "NaN" in text or "Infinity" in text else text


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a JSONL file, onto the disk; a last line cut off by a crash goes first. One process writes a file.

    Raises OSError if it cannot be written; the rows are then in a file of the same name among the temporary ones, which the error names.
    """
    data = "".join(to_json(row) + "\n" for row in rows).encode()
    try:
        _append(path, data)
    except OSError as error:
        spare = Path(tempfile.gettempdir()) / f"llmpp-{os.getuid()}" / path.name
        try:
            _append(spare, data)
        except OSError:
            raise error from None
        reason = error.strerror or error
        raise OSError(f"{path}: cannot be written: {reason}; what was to be added is in {spare}: append it to the table") from None


def _append(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        with contextlib.suppress(OSError):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                last = (whole := file.read(size)).rfind(b"\n") + 1
                if read_row(whole[last:]) is None:
                    size = file.truncate(last)
                else:
                    data = b"\n" + data
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            # All or nothing: what is kept elsewhere is to be appended whole.
            file.truncate(size)
            raise


class SourceError(RuntimeError):
    """An upstream file is damaged, or can be had neither locally nor from the network."""


def cache_dir() -> Path:
    """Return the folder that downloads go to: the user's cache folder for llmpp; SourceError if nothing says where that is."""
    try:
        return platformdirs.user_cache_path("llmpp")
    except RuntimeError:
        raise SourceError("there is no cache folder, since this user has no home; set HOME, XDG_CACHE_HOME or LLMPP_DATA_DIR") from None
