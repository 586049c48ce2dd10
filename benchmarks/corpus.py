"""Preparing a corpus of WMT's size: time of each stage, memory and disk, in one run.

``python benchmarks/corpus.py`` writes generated pairs to two files (random words, Zipf-distributed; lengths log-normal with a mean of
25 words, a few of them empty, far too long or unequal), prepares them with 32,768 subwords, opens the result as training
does, and extrapolates to the real corpora by their numbers of pairs. Memory is the most that the preparing process and its children
held together, pages of mapped files included, sampled ten times a second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from llmpp_book.studies.paper_costs import PAIRS
from llmpp_core.jobs.provenance import processor
from llmpp_core.text import wmt as preparation
from llmpp_core.text.corpora import SIDES, find_wmt
from llmpp_core.text.wmt import Settings

TASK = "wmt14.en-de"
WORDS = 200_000


def lexicon(rng: np.random.Generator) -> np.ndarray:
    """Return different words, the frequent ones short."""
    syllables = np.array([f"{a}{b}{c}" for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "s")])
    words: dict[str, None] = {}
    while len(words) < WORDS:
        length = 1 + min(4, len(words) // 150 and 1 + len(words) // 4000)
        words.update(dict.fromkeys("".join(row) for row in syllables[rng.integers(len(syllables), size=(500, length))].tolist()))
    return np.array(list(words)[:WORDS], dtype=object)


def generate(folder: Path, pairs: int, seed: int = 0) -> None:
    """Write train, validation and test files of both languages."""
    rng = np.random.default_rng(seed)
    frequency = (1 / (np.arange(WORDS) + 2.7)).cumsum()
    words = {language: lexicon(rng) for language in ("en", "de")}
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in {"train": pairs, "validation": 3000, "test": 3000}.items():
        with open(folder / f"{split}.en", "w") as en, open(folder / f"{split}.de", "w") as de:
            for start in range(0, n, 100_000):
                size = min(100_000, n - start)
                lengths = {"en": np.maximum(1, rng.lognormal(np.log(25) - 0.245, 0.7, size)).astype(int)}
                lengths["de"] = np.maximum(1, lengths["en"] * rng.lognormal(-0.03, 0.18, size)).astype(int)
                if split == "train":
                    # One in a thousand each: nothing at all, a document instead of a sentence, a heading instead of one.
                    lengths["en"][rng.random(size) < 0.001] = 0
                    lengths["de"][rng.random(size) < 0.001] *= 30
                    lengths["de"][rng.random(size) < 0.001] = 1
                else:
                    lengths = {language: np.minimum(side, 60) for language, side in lengths.items()}
                # A word and its translation are equally frequent, so that both sides have about as many subwords.
                longer = np.maximum(lengths["en"], lengths["de"])
                starts = longer.cumsum() - longer
                ranks = np.searchsorted(frequency, rng.random(int(longer.sum())) * frequency[-1])
                for language, file in (("en", en), ("de", de)):
                    drawn = words[language][ranks].tolist()
                    rows = zip(starts, lengths[language], strict=True)
                    file.writelines(" ".join(drawn[a : a + n]) + ("." if n else "") + "\n" for a, n in rows)


def work(corpus: Path, out: Path, settings: Settings, jobs: int, connection: Any) -> None:
    """Prepare stage by stage, and send the seconds of each."""
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) if jobs > 1 else None
    out.mkdir(parents=True, exist_ok=True)

    files = {side: find_wmt(TASK, side, corpus) for side in SIDES}

    def finish() -> None:
        connection.send(preparation.prepare(TASK, out, settings, corpus=corpus)["counts"])

    def load() -> None:
        *_, pairs = preparation.load_prepared(out)
        batches = pairs.batches(128 * 4096, np.random.default_rng(0))
        rows = batches[: len(batches) // 20 + 1]
        started = time.perf_counter()
        tokens = sum(pairs.batch(batch).tokens for batch in rows)
        connection.send(tokens / (time.perf_counter() - started))

    with pool or nullcontext():
        stages = {
            "clean": lambda: preparation.clean_text(TASK, files["train"], out, settings),
            "vocabulary": lambda: preparation.train_vocabulary(preparation.held_out(TASK, files, out, settings), out, settings),
            "tokens": lambda: preparation.tokenise(out, settings, pool),
            "check": finish,
            "open and read": load,
        }
        for name, stage in stages.items():
            started = time.perf_counter()
            stage()
            connection.send((name, time.perf_counter() - started))


def resident(root: int) -> int:
    """Return the bytes that a process and its descendants hold, shared pages counted for each."""
    children: dict[int, list[int]] = {}
    held = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            held[int(folder.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
            children.setdefault(int(fields[1]), []).append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    total, left = 0, [root]
    while left:
        process = left.pop()
        total += held.get(process, 0)
        left += children.get(process, [])
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5_000_000)
    parser.add_argument("--jobs", type=int, default=1, help="processes that make tokens")
    parser.add_argument("--sample", type=int, default=1_000_000, help="pairs that subwords are trained on")
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.folder, prefix="corpus-"))
    try:
        started = time.perf_counter()
        generate(folder / "raw", args.pairs)
        print(f"generated {args.pairs:,} pairs in {time.perf_counter() - started:.0f} s")
        settings = Settings(32_768, sample=args.sample)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=(folder / "raw", folder / "out", settings, args.jobs, sender)
        )
        process.start()
        sender.close()
        peak, peaks, results = [0], {}, []

        def watch() -> None:
            while process.is_alive():
                peak[0] = max(peak[0], resident(process.pid or 0))
                time.sleep(0.1)

        threading.Thread(target=watch, daemon=True).start()
        seconds: dict[str, float] = {}
        while True:
            try:
                message = receiver.recv()
            except EOFError:
                break
            if isinstance(message, tuple):
                name, seconds[name] = message
                peaks[name], peak[0] = peak[0], 0
                print(
                    f"{name:14} {seconds[name]:8.1f} s {args.pairs / seconds[name]:12,.0f} pairs/s {peaks[name] / 2**20:8,.0f} MiB",
                    flush=True,
                )
            else:
                results.append(message)
        process.join()
        disk = {name: sum(file.stat().st_size for file in (folder / name).glob("*")) for name in ("raw", "out")}
    finally:
        shutil.rmtree(folder)
    preparing = sum(value for name, value in seconds.items() if name != "open and read")
    report = {
        "pairs": args.pairs,
        "counts": results[0],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "pairs_per_s": round(args.pairs / preparing),
        "peak_mib": {name: round(value / 2**20) for name, value in peaks.items()},
        "raw_mib": round(disk["raw"] / 2**20),
        "prepared_mib": round(disk["out"] / 2**20),
        "batch_tokens_per_s": round(results[1]),
        # The vocabulary comes from a sample, whose size does not grow with the corpus.
        "hours": {
            name: round((seconds["vocabulary"] + (preparing - seconds["vocabulary"]) * n / args.pairs) / 3600, 2)
            for name, n in PAIRS.items()
        },
        "processor": processor(),
        "jobs": args.jobs,
        "threads": os.environ.get("RAYON_NUM_THREADS", os.cpu_count()),
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
