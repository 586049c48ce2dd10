"""Arrow shards of a corpus larger than memory: written whole, memory-mapped, and read as if they were the tensors of `batches.Pairs`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmpp_core.jobs.files import replace_file
from llmpp_core.text.vocabulary import BOS, EOS, PAD

_RECORD = b"llmpp"


def write_shard(path: Path, columns: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Write columns of equal length, lists or Arrow arrays, and a JSON `record` as one Arrow file, all or nothing."""
    import pyarrow as pa  # type: ignore[import-untyped]

    batch = pa.record_batch([pa.array(column) for column in columns.values()], names=list(columns))
    text = json.dumps({**record, "rows": batch.num_rows}, sort_keys=True).encode()
    sink = pa.BufferOutputStream()
    # The form of the `datasets` library's own files, which its `Dataset.from_file` reads; in one piece, so that offsets and values
    # are one array each.
    with pa.ipc.new_stream(sink, batch.schema.with_metadata({_RECORD: text})) as writer:
        writer.write_batch(batch.replace_schema_metadata({_RECORD: text}))
    replace_file(path, sink.getvalue())


def read_shard(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return a shard's memory-mapped Arrow table and its record; raises ValueError naming the file if it is damaged."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        record = json.loads(table.schema.metadata[_RECORD])
        whole = table.num_rows == record["rows"]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: {'damaged' if path.exists() else 'missing'}; remove what is left of it and prepare the corpus again")
    return table, record


@dataclass(frozen=True, eq=False)
class StoredTokens:
    """One side of a corpus on disk, in what `Pairs` asks of it a padded tensor of shape (n, longest).

    Parameters
    ----------
    offsets, values : sequence of numpy.ndarray
        Of each shard, where its sentences begin and the tokens of them all, without markers.
    begin : bool
        Whether a sentence begins with BOS; all end in EOS.
    digest : str
        Of all tokens.
    n : int
        Number of sentences, the first ones of the shards.
    device : torch.device
        Where batches go.
    """

    offsets: Sequence[np.ndarray]
    values: Sequence[np.ndarray]
    begin: bool
    digest: str
    n: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def lengths(self) -> np.ndarray:
        """Return the lengths with markers, int16 of shape (n,)."""
        return np.concatenate([np.diff(o).astype(np.int16) for o in self.offsets])[: self.n] + np.int16(1 + self.begin)

    def to(self, device: torch.device | str) -> StoredTokens:
        """Return the same with batches on another device."""
        return replace(self, device=torch.device(device))

    def __getitem__(self, key: Any) -> Any:
        """Return the first sentences, for a slice, or a padded int32 tensor, for row numbers and a slice of positions."""
        if isinstance(key, slice):
            return replace(self, n=len(range(self.n)[key]))
        return self._rows(np.asarray(key[0].cpu()), key[1].stop)

    def _rows(self, rows: np.ndarray, width: int) -> Tensor:
        found = np.full((len(rows), width), PAD, dtype=np.int32)
        ends = np.cumsum([len(o) - 1 for o in self.offsets])
        shards = np.searchsorted(ends, rows, side="right")
        position = np.arange(width - self.begin)
        if self.begin:
            found[:, 0] = BOS
        for shard in np.unique(shards):
            (here,) = np.nonzero(shards == shard)
            offsets, values = self.offsets[shard], self.values[shard]
            local = rows[here] - (ends[shard] - (len(offsets) - 1))
            start, length = offsets[local].astype(np.int64)[:, None], (offsets[local + 1] - offsets[local])[:, None]
            block = np.full((len(here), len(position)), PAD, dtype=np.int32)
            inside = position < length
            block[inside] = values[(start + position)[inside]]
            block[position == length] = EOS
            found[here, int(self.begin) :] = block
        return torch.from_numpy(found).to(self.device)

    def counts(self) -> np.ndarray:
        """Return how often each token occurs, EOS included and BOS not; reads everything, a shard at a time."""
        total, left = np.zeros(EOS + 1, dtype=np.int64), self.n
        for offsets, values in zip(self.offsets, self.values, strict=True):
            rows = min(left, len(offsets) - 1)
            found = np.bincount(values[: offsets[rows]], minlength=len(total))
            found[: len(total)] += total
            total, left = found, left - rows
        total[EOS] += self.n
        return total


def stored_tokens(paths: Sequence[Path], digest: str) -> tuple[StoredTokens, StoredTokens]:
    """Return source and target tokens of shards with list columns "src" and "tgt"."""
    tables = [read_shard(path)[0] for path in paths]
    sides = []
    for column in ("src", "tgt"):
        # Empty shards have nothing to map.
        arrays = [table.column(column).chunk(0) for table in tables if table.num_rows]
        offsets, values = [a.offsets.to_numpy() for a in arrays], [a.values.to_numpy() for a in arrays]
        sides.append(StoredTokens(offsets, values, column == "tgt", digest, sum(len(o) - 1 for o in offsets)))
    return sides[0], sides[1]
