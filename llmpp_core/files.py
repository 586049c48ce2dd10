"""Files that are never seen half-written, and tensors that say what they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
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


def writable(folder: Path) -> Path:
    """Make a folder and return it, or where that is not allowed, as on a machine of a cluster, one among the temporary files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"llmpp-{os.getuid()}" / folder.name
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_tensors(path: str | Path, kind: str, tensors: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """Write a safetensors file that also holds a JSON `record` and a checksum of everything; all or nothing.

    Parameters
    ----------
    path : path
        The file.
    kind : str
        What is in it; `load_tensors` asks for the same.
    tensors : mapping of str to numpy.ndarray
        The tensors by name.
    record : mapping
        What JSON can hold.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    text = json.dumps(record, sort_keys=True, default=lambda number: number.item())
    # One entry, since safetensors writes several in any order.
    replace_file(Path(path), to_safetensors(arrays, metadata={f"llmpp.{kind}": f"{_digest(text, arrays)} {text}"}))


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_tensors` wrote; raises ValueError naming the file if it is damaged or something else."""
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


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file that is still being written; a last line cut off by a crash is left out.

    Raises
    ------
    ValueError
        If another line is not a JSON object; names file and line.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: not a JSON object")
        rows.append(row)
    return rows


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a JSONL file, onto the disk; a last line cut off by a crash goes first. One process writes a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with open(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        with contextlib.suppress(OSError):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read(size).rfind(b"\n") + 1)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
