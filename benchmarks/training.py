"""How long the trainings of a task take on this machine: the smallest and the largest architecture, and each supernet.

``python benchmarks/training.py --threads 2`` goes through the first updates of each and extrapolates to the whole recipe; all updates
cost the same, but for the lengths of their sentences. `--share 1` trains to the end. Scores are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from llmpp_book.studies.measurements import SUPERNET_KINDS, prepare, provenance
from llmpp_core.nets.supernet import SuperTransformer
from llmpp_core.nets.training import train
from llmpp_core.nets.transformer import Transformer


def timed(model: Any, pairs: Any, recipe: Any, share: float, **settings: Any) -> float:
    """Return the seconds that the whole recipe takes, from a run that is stopped after a share of its updates."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.safetensors"
        # Caches fill and libraries choose their kernels in the first second.
        warm = train(model, pairs, recipe, seed=0, checkpoint=checkpoint, seconds=2, **settings)
        seconds = share * recipe.updates * warm.seconds / warm.updates
        history = train(model, pairs, recipe, seed=0, checkpoint=checkpoint, seconds=seconds, **settings)
    return recipe.updates * (history.seconds - warm.seconds) / (history.updates - warm.updates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="synthetic")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.05, help="share of the updates (default 0.05)")
    args = parser.parse_args()
    task, sides = prepare(args.task, args.device, args.threads)
    pairs, space, seconds, began = sides["train"], task.space, dict[str, float](), time.perf_counter()
    for name, arch in (("smallest", space.smallest()), ("largest", space.largest())):
        model = Transformer(arch, space, len(task.vocabulary), task.recipe.dropout).to(args.device)
        seconds[name] = timed(model, pairs, task.recipe, args.share)
    for name, (kind, sampling) in SUPERNET_KINDS.items():
        net = SuperTransformer(space, len(task.vocabulary), kind, dropout=task.supernet_recipe.dropout).to(args.device)
        seconds[name] = timed(net, pairs, task.supernet_recipe, args.share, sampling=sampling)
    print("| training | seconds |\n|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {taken:.0f} |")
    report = {"seconds": seconds, "threads": args.threads, "share": args.share, "load_average": round(os.getloadavg()[0], 1)}
    print(json.dumps({**report, "took": round(time.perf_counter() - began, 1), **provenance(args.device)}))


if __name__ == "__main__":
    main()
