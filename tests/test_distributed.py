"""Two processes under accelerate train, score and refuse what one does."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from distributed_work import CASES, PAIRS, UPDATES, run, run_half, scores
from small_nets import MICRO

from llmpp_book.__main__ import main
from llmpp_core.jobs.files import load_tensors
from llmpp_core.nets.distributed import share
from llmpp_core.text.special_tokens import PAD

TESTS = Path(__file__).parent


def launch(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run two processes that talk over the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The flag asks for several processes; without a GPU they compute on the CPU. The rest keeps accelerate from guessing.
    settings = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    address = ["--main_process_ip=127.0.0.1", f"--main_process_port={port}"]
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", *settings, *address, TESTS / "distributed_work.py", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """Return what each of two processes found."""
    for name, case in CASES.items():
        run_half(case, folder / f"{name}.one-to-two")
    whole = (folder / f"{next(iter(CASES))}.one-to-two").read_bytes()
    (folder / "damaged").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = launch(folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def weights(checkpoint: Path) -> dict[str, np.ndarray]:
    return load_tensors(checkpoint, "training")[0]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does(name: str, found: list[dict[str, Any]], folder: Path) -> None:
    case = CASES[name]
    # What processes do not share is the order in which they add up.
    near = {"rtol": 1e-9} if case.dtype == torch.float64 else {"rtol": 1e-3}
    alone = run(case, checkpoint=folder / f"{name}.one")
    ended = run(case, checkpoint=folder / f"{name}.two-to-one")
    assert len(alone.loss) == UPDATES
    for other in (vars(ended), *(mine[part][name] for mine in found for part in ("curves", "resumed"))):
        np.testing.assert_allclose(other["loss"], alone.loss, **near)
        assert (other["updates"], other["tokens"], other["finished"]) == (UPDATES, alone.tokens, True)
    expected = weights(folder / f"{name}.one")
    for part in ("two", "two-to-one", "one-to-two"):
        for key, array in weights(folder / f"{name}.{part}").items():
            np.testing.assert_allclose(array, expected[key], rtol=1e-6, atol=1e-7 if case.dtype == torch.float64 else 5e-3)


def test_candidates_split_over_two_processes_score_as_on_one(found: list[dict[str, Any]]) -> None:
    for name, expected in scores().items():
        for mine in found:
            np.testing.assert_allclose(mine["scores"][name], expected, atol=1e-6)


def test_the_first_shows_the_bar_its_clock_counts_and_threads_end_before_the_process(found: list[dict[str, Any]], folder: Path) -> None:
    assert [mine["bar"] for mine in found] == [True, False]
    assert [mine["updates"] for mine in found] == [1, 1]
    written = list(folder.glob("*.threads"))
    assert len(written) == 2
    assert not [name for path in written for name in path.read_text().split() if "gloo" in name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("damaged", "damaged: damaged, its checksum does not match"),
        ("another", "two is of another training: seed is 1 there and 2 here; choose another file or remove it"),
        ("seeds", "the processes differ in network, data, recipe, seed or checkpoint; start all with the same command"),
        ("seen by one", "the processes differ in network, data, recipe, seed or checkpoint; start all with the same command"),
    ],
)
def test_what_one_process_refuses_no_other_waits_for(name: str, message: str, found: list[dict[str, Any]]) -> None:
    for mine in found:
        assert message in mine["refused"][name]
        assert "\n" not in mine["refused"][name]


def test_the_command_goes_on_with_fewer_processes_and_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yml").write_text(MICRO.smallest().to_hat_yaml())
    words = ["train", "tests.reversed", "--arch", str(tmp_path / "a.yml"), "--checkpoint", str(tmp_path / "c")]
    done = launch(*words)
    assert re.fullmatch(
        r"2 process\(es\), cpu\n1 of 20 updates, \d+ target tokens, \d+ s, training loss \d\.\d+\nnot complete; the same .*\n"
        r"2 process\(es\), cpu\n",
        done.stdout,
    ), done
    assert done.returncode != 0
    # The second process says it, too, if the launcher is slow to end it.
    assert f"{tmp_path / 'c'} is of another training: seed is 0 there and 1 here; choose another file or remove it\n" in done.stderr
    assert main(words) == 0
    assert re.fullmatch(
        r"1 process\(es\), cpu\n20 of 20 updates, .*, training loss \d\.\d+\nvalid_loss \d\.\d+, valid_nll .*test_bleu \d+\.\d+\n",
        capsys.readouterr().out,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tests.reversed", "--supernet", "Hat"], "unknown supernet 'Hat'; known are HAT, Supernet (Sandwich), Layer-wise MoS, Neuron-"),
        (["tests.reversed", "--arch", "nothing.yml"], "nothing.yml: No such file or directory"),
        (["tests.reversed"], "one of the arguments --supernet --arch is required"),
    ],
)
def test_what_the_command_cannot_train_is_one_line(words: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    try:
        code = main(["train", *words, "--checkpoint", str(tmp_path / "c")])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("batches", "ranks"), [(1, 1), (1, 3), (2, 2), (3, 2), (4, 2), (4, 6)])
def test_every_sentence_goes_to_one_process_and_every_process_works_as_often(batches: int, ranks: int) -> None:
    group = PAIRS.batches(120, np.random.default_rng(0))[:batches]
    shares = [list(share(PAIRS, group, SimpleNamespace(process_index=i, num_processes=ranks))) for i in range(ranks)]
    assert len(set(map(len, shares))) == 1
    parts = list(chain.from_iterable(shares))
    assert sorted(number for number, _ in parts) == list(range(len(parts)))
    assert sum(batch.tokens for _, batch in parts) == sum(PAIRS.batch(rows).tokens for rows in group)
    assert sum(int((batch.labels != PAD).sum()) for _, batch in parts) == sum(batch.tokens for _, batch in parts)
    sentences = sorted(tuple(row[row != PAD].tolist()) for _, batch in parts for row in batch.labels if (row != PAD).any())
    assert sentences == sorted(tuple(PAIRS.tgt[i, 1 : PAIRS.tgt_lengths[i]].tolist()) for rows in group for i in rows)
    if batches % ranks == 0:
        assert len(parts) == batches
