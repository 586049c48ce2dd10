"""A space, a corpus and a task small enough for tests."""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
import torch
from killing import run_interrupted, run_killed

from llmpp_core.nets.supernet import SuperTransformer
from llmpp_core.nets.training import Recipe
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.search_space import SearchSpace
from llmpp_core.tasks.registry import register
from llmpp_core.tasks.task import ParallelText, Task
from llmpp_core.text.batches import Pairs
from llmpp_core.text.vocabulary import Vocabulary

__all__ = ["MICRO", "VOCAB", "new_network", "new_supernet", "reversed_pairs", "reversed_task", "run_interrupted", "run_killed"]

#: Every width differs from every other, so that a mix-up of two does not go unseen.
MICRO = SearchSpace(
    "MICRO",
    encoder_embed_dim=(20, 12),
    decoder_embed_dim=(24, 16),
    encoder_layers=(4, 3),
    decoder_layers=(3, 2, 1),
    encoder_ffn_dims=(28, 14),
    encoder_heads=(4, 2),
    decoder_ffn_dims=(36, 18),
    decoder_self_heads=(4, 2),
    decoder_cross_heads=(4, 2),
    qkv_dim=32,
)
#: Size of the vocabulary of `reversed_pairs`, and of networks for it.
VOCAB = 12
# Matrices this small gain nothing from several threads, which on a busy machine wait for one another a hundred times as long.
torch.set_num_threads(1)
# Forking from a process that has imported everything makes a new one start at once; PyTorch imports some of its parts late.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["llmpp_book.studies.measurements", "torch._dynamo", "torch.distributed.tensor", "pytest"]
)


def reversed_pairs(n: int, seed: int, longest: int = 6) -> Pairs:
    """Return sentences of 1 to `longest` random tokens; the translation is the sentence backwards."""
    rng = np.random.default_rng(seed)
    sentences = [rng.integers(4, VOCAB, size=rng.integers(1, longest + 1)).tolist() for _ in range(n)]
    return Pairs.from_tokens(sentences, [ids[::-1] for ids in sentences])


def new_supernet(kind: str = "shared", space: SearchSpace = MICRO, *, seed: int = 0, **settings: Any) -> SuperTransformer:
    """Return a supernet with random weights, in evaluation mode; biases and norms are random as well."""
    return _randomised(SuperTransformer(space, VOCAB, kind, **settings), seed)


def new_network(arch: Any, space: SearchSpace = MICRO, *, seed: int = 0, dropout: float = 0.1) -> Transformer:
    """Return the network of an architecture with random weights, in evaluation mode; biases and norms are random as well."""
    return _randomised(Transformer(arch, space, VOCAB, dropout), seed)


def _randomised(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    model.initialise(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@register("tests.reversed")
def reversed_task() -> Task:
    """Return a task of two letters, to be told the other way round; a few updates are enough to learn where sentences end."""
    text = {}
    for seed, (side, n) in enumerate({"train": 300, "valid": 12, "test": 12}.items()):
        words = np.random.default_rng(seed).choice(list("abcdefgh"), size=(n, 2)).tolist()
        text[side] = ParallelText([" ".join(pair) for pair in words], [" ".join(pair[::-1]) for pair in words], side)
    recipe = Recipe(updates=20, batch_tokens=120, learning_rate=0.02, dropout=0.0)
    return Task(
        name="tests.reversed",
        title="Backwards",
        space=MICRO,
        vocabulary=Vocabulary.morphemes(text["train"].src),
        text=text,
        recipe=recipe,
        supernet_recipe=Recipe(updates=40, batch_tokens=300, learning_rate=0.005, dropout=0.0),
        bleu_tokenizer="none",
        beam=1,
    )
