"""A space, a corpus and a task small enough for tests, and work in processes that are killed at random moments."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmpp_core.jobs.files import read_rows
from llmpp_core.nets.supernet import SuperTransformer
from llmpp_core.nets.training import Recipe
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.search_space import SearchSpace
from llmpp_core.tasks.registry import register
from llmpp_core.tasks.task import ParallelText, Task
from llmpp_core.text.batches import Pairs
from llmpp_core.text.vocabulary import Vocabulary

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
    ["llmpp_book.studies.ground_truth", "torch._dynamo", "torch.distributed.tensor", "pytest"]
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


def run_killed(
    work: Callable[..., None], arguments: tuple[Any, ...], watched: Path, kills: int, rng: np.random.Generator, steps: int = 1
) -> None:
    """Run `work` in processes that are killed at random moments, and in the end in one that is not.

    A process is killed a little while after it was seen to change something in the folder `watched` `steps` times, so each gets
    further than the one before it.
    """
    context = multiprocessing.get_context("forkserver")
    for attempt in range(kills + 1):
        before, changes = _state(watched), 0
        process = context.Process(target=work, args=arguments)
        process.start()
        while attempt < kills and process.is_alive() and changes < steps:
            time.sleep(0.001)
            now = _state(watched)
            before, changes = now, changes + (now != before)
        if attempt < kills:
            process.join(rng.uniform(0, 0.02))
            process.kill()
        process.join(120)
        if process.exitcode == 0:
            # On a fast machine the work may be done before its turn to be killed.
            assert attempt >= min(kills, 2)
            return
        assert process.exitcode == -9
    raise AssertionError("the last process was not to be killed")


def run_interrupted(script: str, folder: Path, number: int) -> list[int]:
    """Run a script that adds rows to the file it is given, interrupt it after twenty, and return the numbers of the rows kept.

    A script that is interrupted and not killed has to say so in one line. Either way all of its processes have to end.
    """
    source, table = folder / "script.py", folder / "rows.jsonl"
    source.write_text(script)
    process = subprocess.Popen([sys.executable, source, table], stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(read_rows(table)) < 20 and process.poll() is None:
        time.sleep(0.01)
    if number == signal.SIGINT:
        # To all of them, as a terminal does.
        os.killpg(process.pid, number)
    else:
        process.kill()
    # The pipe is closed when the last of them has ended.
    _, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert err == "interrupted; what is finished is kept, and the same command goes on from there\n"
    return [row["i"] for row in read_rows(table)]


def _state(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.append((path.name, status.st_mtime_ns, status.st_size))
    return found
