"""Small corpora of the form of WMT's, and their preparation in a process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llmpp_core.text.wmt import Settings, prepare

#: So small that a corpus of a hundred pairs has several shards.
SMALL = Settings(120, sample=60, shard=32)
NAME = "wmt14.en-de"


def write_corpus(folder: Path, n: int = 100) -> Path:
    """Write files of lines, random words and the same in capitals; the training side has pairs to leave out."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, pairs) in enumerate({"train": n, "validation": 9, "test": 8}.items()):
        rng = np.random.default_rng(seed)
        words = ["".join(rng.choice(list("abcdefgh"), 3)) for _ in range(40)]
        src = [" ".join(rng.choice(words, rng.integers(2, 12))) for _ in range(pairs)]
        tgt = [sentence.upper() for sentence in src]
        if split == "train":
            src[3], tgt[5], src[40], tgt[50] = "", " ", "w " * 251, "one two three four five six seven " * 4
            # One word, and many subwords.
            src[60], tgt[60] = "".join(np.random.default_rng(9).choice(list("abcdefgh"), 2000)), "B"
        for language, side in (("en", src), ("de", tgt)):
            (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in side))
    return folder


def prepare_small(corpus: Path, out: Path) -> None:
    """Prepare as one process of several would."""
    prepare(NAME, out, SMALL, corpus=corpus)
