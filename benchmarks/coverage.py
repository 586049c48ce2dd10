"""How often the 95 % interval of a difference between two schedules holds the truth, by simulation; prints a table.

The truth is what the recorded searches of the synthetic task found, in pairs of equal seeds, with the recorded means of their trainings
drawn towards the mean of their depth by what is noise in them. A repetition draws pairs, then trainings, with the noise of their depth.

    python benchmarks/coverage.py [REPETITIONS]
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd

from llmpp_book.studies import search_tables as st
from llmpp_book.studies.paired import paired, training_noise

PAIRS = [("HS-NAS", "costly"), ("adaptive", "costly"), ("switch 25", "costly"), ("cheap", "costly"), ("HS-NAS", "stopped like HS-NAS")]


def main(repetitions: int = 400) -> None:
    """Print the coverage by pair of schedules, measure, number of searches and number of trainings."""
    rng, searches, trained = np.random.default_rng(0), st.searches("synthetic"), st.found("synthetic")
    grouped = st.by_schedule(searches[searches["limit_ms"] == st.middle_limit(searches)])
    rows = []
    for measure in ("valid_loss", "valid_bleu"):
        noise = training_noise(trained, measure)["variance"]
        groups = trained.groupby("architecture", sort=False)[measure].agg(["mean", "size"])
        depths = pd.Series([arch.decoder_layers for arch in groups.index], index=groups.index)
        single = noise.loc[depths].set_axis(groups.index)
        centre = groups["mean"].groupby(depths).transform("mean")
        spread = (groups["mean"] - centre).var() - (single / groups["size"]).mean()
        truth = centre + (groups["mean"] - centre) * spread / (spread + single / groups["size"])
        for ours, theirs in PAIRS:
            a, b = grouped[ours], grouped[theirs]
            seeds = a.index.intersection(b.index)
            found = [list(part.loc[seeds, "architecture"]) for part in (a, b)]
            true = float(np.mean([truth[x] - truth[y] for x, y in zip(*found, strict=True)]))
            row = {"measure": measure, "pair": f"{ours} - {theirs}"}
            for searched, trainings in ((10, 3), (10, 12), (40, 3), (40, 12)):
                hits = 0
                for _ in range(repetitions):
                    drawn = rng.integers(len(seeds), size=searched)
                    pairs = [[part[i] for i in drawn] for part in found]
                    archs = list(dict.fromkeys([*pairs[0], *pairs[1]]))
                    scores = truth[archs].to_numpy()[:, None] + single[archs].to_numpy()[:, None] ** 0.5 * rng.normal(
                        size=(len(archs), trainings)
                    )
                    table = pd.DataFrame({"architecture": np.repeat(np.array(archs, dtype=object), trainings), measure: scores.ravel()})
                    _, low, high = paired(*pairs, table, measure).interval()
                    hits += low <= true <= high
                row[f"{searched} searches x {trainings}"] = hits / repetitions
            rows.append(row)
            print(row, flush=True)
    table = pd.DataFrame(rows).set_index(["measure", "pair"])
    print(table.to_string(float_format="{:.3f}".format))
    print(f"mean {table.to_numpy().mean():.3f}, from {table.to_numpy().min():.3f} to {table.to_numpy().max():.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
