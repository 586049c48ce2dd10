"""SupernetPredictor against the plain loop, over the candidates of a real search, in one run.

``python benchmarks/supernet.py`` trains a supernet for a moment, runs HAT's evolutionary search with it (125 candidates, 30
iterations), and scores what it scored a second time as the official code does: every candidate of every iteration, parents and
repeats included, one after the other, sentences in the order of the file, each batch put together anew. That would take long, so
the plain loop scores a random sample of the candidates and its time is scaled to all. Scores have to be the same.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from llmpp_core.jobs.provenance import processor
from llmpp_core.nets.predictor import SupernetPredictor
from llmpp_core.nets.supernet import SuperTransformer
from llmpp_core.nets.training import Recipe, smoothed_loss, train, uniform
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.space.architecture import Architecture
from llmpp_core.tasks.registry import load_task
from llmpp_core.tasks.task import Task
from llmpp_core.text.batches import Pairs


@torch.inference_mode()
def plain_score(supernet: SuperTransformer, task: Task, arch: Architecture, device: str, batch: int = 32) -> float:
    """Return minus the validation loss, by the straightforward loop."""
    src, tgt = (task.vocabulary.encode(side) for side in (task.text["valid"].src, task.text["valid"].tgt))
    loss, tokens = 0.0, 0
    for start in range(0, len(src), batch):
        pairs = Pairs.from_tokens(src[start : start + batch], tgt[start : start + batch]).to(device)
        rows = pairs.batch(np.arange(len(pairs)))
        loss += smoothed_loss(supernet(rows.src, rows.tgt, arch), rows.labels, task.supernet_recipe.label_smoothing).item()
        tokens += rows.tokens
    return -loss / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="synthetic")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--updates", type=int, default=300, help="updates of the supernet")
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--sample", type=int, default=150, help="candidates that the plain loop scores")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    task = load_task(args.task)
    supernet = SuperTransformer(task.space, len(task.vocabulary)).to(args.device)
    recipe = Recipe(args.updates, task.supernet_recipe.batch_tokens, task.supernet_recipe.learning_rate, dropout=0.0)
    train(supernet, task.pairs["train"].to(args.device), recipe, seed=0, sampling=uniform, progress="supernet")

    predictor = SupernetPredictor(supernet, task.pairs["valid"].to(args.device), task.supernet_recipe.label_smoothing)
    result = EvolutionarySearch(task.space, [(predictor, args.iterations)], seed=0).run(progress=True)
    fast = result.seconds["score"]
    search = EvolutionarySearch(task.space, [(predictor, 1)])
    candidates = [arch for record in result.records for arch in search.genes.table(search.genes.from_text(record.population))]

    rng = np.random.default_rng(0)
    drawn = [candidates[i] for i in rng.choice(len(candidates), min(args.sample, len(candidates)), replace=False)]
    plain_score(supernet, task, drawn[0], args.device)  # warm-up
    start = time.perf_counter()
    plain = [plain_score(supernet, task, arch, args.device) for arch in drawn]
    slow = (time.perf_counter() - start) / len(drawn) * len(candidates)
    difference = float(np.abs(np.array(plain) - predictor.predict(drawn)).max())

    # What is held at once: all batches, and the encoder states of the candidate at hand for each core.
    valid = task.pairs["valid"]
    states = int(sum(valid.src_lengths)) * max(task.space.encoder_embed_dim) * (max(task.space.encoder_layers) + 1) * 4
    print(f"device: {args.device}, {processor()}, {args.threads} thread(s)")
    print(f"candidates of the search: {len(candidates):,}, different ones: {sum(result.evaluations.values()):,}")
    print(f"SupernetPredictor: {fast:.1f} s; plain loop: {slow:.1f} s (from {len(drawn)} candidates); ratio {slow / fast:.1f}")
    print(f"largest difference of a score: {difference:.1e} nats")
    print(f"encoder states held per core: at least {states / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
