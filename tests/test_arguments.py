"""Arguments of the kinds that users give by mistake: seeds for generators, costs of one architecture, few rows, other checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_nets import VOCAB, reversed_pairs

from llmpp_core import metrics
from llmpp_core.jobs.files import load_tensors, save_tensors
from llmpp_core.latency.predictor import split_rows
from llmpp_core.latency.profiler import measurement_order
from llmpp_core.llm.prompts import choose_demonstrations
from llmpp_core.nets.checkpoints import load_network
from llmpp_core.nets.predictor import SupernetPredictor
from llmpp_core.nets.training import Recipe, train
from llmpp_core.nets.transformer import Transformer
from llmpp_core.predictors.baselines import CalibratedPredictor, TablePredictor
from llmpp_core.predictors.distill import DistilledPredictor, distill
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.limits import Limit
from llmpp_core.space.genes import Genes
from llmpp_core.space.search_space import TINY

ARCHS = TINY.sample(12, np.random.default_rng(0))
SCORES = np.random.default_rng(1).random(12) + 20
TABLE = dict(zip(ARCHS, SCORES.tolist(), strict=True))
RECORDS = pd.DataFrame({"architecture": ARCHS, "bleu": SCORES})


# --- calibration over a base without an answer --------------------------------------------------------------------


class Sometimes(TablePredictor):
    """Has no answer about the second architecture of `ARCHS`."""

    def predict(self, archs: Any) -> np.ndarray:
        return np.where([arch == ARCHS[1] for arch in archs], np.nan, super().predict(archs))


@pytest.mark.parametrize("kind", ["linear", "saturating"])
def test_calibration_leaves_out_what_its_base_does_not_answer(kind: str) -> None:
    without = [arch for arch in ARCHS if arch != ARCHS[1]]
    expected = CalibratedPredictor(TablePredictor(TABLE), kind).fit(without, [2 * TABLE[arch] for arch in without])
    predictor = CalibratedPredictor(Sometimes(TABLE), kind).fit(ARCHS, 2 * SCORES)
    assert (predictor.n_labels_, predictor.n_dropped_) == (11, 1)
    assert predictor.predict(without) == pytest.approx(expected.predict(without))
    assert np.isnan(predictor.predict(ARCHS[1:2])).all()
    with pytest.raises(ValueError, match="base: none of its 1 outputs is a number"):
        CalibratedPredictor(Sometimes(TABLE), kind).fit(ARCHS[1:2], [1.0])


# --- other arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda rng: TINY.sample(3, rng),
        lambda rng: TINY.sample_balanced(3, rng),
        lambda rng: distill(TablePredictor(TABLE), TINY, 20, rng),
        lambda rng: metrics.random_splits({"t": RECORDS}, rng, 1),
        lambda rng: metrics.seed_noise(np.ones((3, 2)), rng),
        lambda rng: measurement_order(ARCHS, TINY, 1, rng),
        lambda rng: choose_demonstrations(ARCHS, 3, "random", rng, space=TINY),
        lambda rng: split_rows(10, rng),
    ],
)
@pytest.mark.parametrize("rng", [0, np.random.RandomState(0)], ids=["seed", "RandomState"])
def test_a_seed_in_the_place_of_a_generator_is_named(call: Any, rng: Any) -> None:
    with pytest.raises(ValueError, match=r"rng: expected a numpy.random.Generator, such as numpy.random.default_rng\(0\), got"):
        call(rng)


@pytest.mark.parametrize("cost", [lambda arch: arch.decoder_layers * 10, lambda arch: 4 * arch.encoder_embed_dim], ids=["depth", "width"])
@pytest.mark.parametrize("archs", [ARCHS, Genes(TINY).table(Genes(TINY).encode(ARCHS))], ids=["list", "table"])
def test_a_cost_of_one_architecture_is_told_that_it_gets_many(cost: Any, archs: Any) -> None:
    with pytest.raises(ValueError, match="mine: the cost is called with many architectures at once and must return one number for each"):
        Limit(cost, 10, "mine").costs(archs)


def test_an_error_inside_a_cost_stays_what_it_is() -> None:
    with pytest.raises(AttributeError, match="absent"):
        Limit(lambda archs: [arch.absent for arch in archs], 10).costs(ARCHS)


@pytest.mark.parametrize(("rows", "demonstrations"), [(10, 10), (12, 10), (5, 0)])
def test_splits_of_too_few_rows_are_refused(rows: int, demonstrations: int) -> None:
    with pytest.raises(ValueError, match=f"mine: {rows} rows are too few for {demonstrations} demonstrations"):
        metrics.random_splits({"mine": RECORDS[:rows]}, np.random.default_rng(0), 1, demonstrations)


def test_a_limit_in_another_unit_is_warned_of() -> None:
    def run(limit: float) -> None:
        next(EvolutionarySearch(TINY, [(TableOfDepth(), 1)], Limit(seconds, limit, "latency"), population=8, parents=2).iterate())

    with pytest.warns(UserWarning, match=r"latency: the first 8 candidates cost 0.\d+ to 0.\d+, far below the limit of 200; is it"):
        run(200.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(1.0)
        run(np.inf)


def seconds(archs: Any) -> np.ndarray:
    return np.array([0.1 * arch.decoder_layers for arch in archs])


class TableOfDepth:
    def predict(self, archs: Any) -> np.ndarray:
        return np.array([float(arch.decoder_layers) for arch in archs])


# --- checkpoints --------------------------------------------------------------------------------------------------


def rewritten(path: Path, kind: str, change: Any) -> Path:
    arrays, record = load_tensors(path, kind)
    change(arrays, record)
    save_tensors(path, kind, arrays, record)
    return path


@pytest.fixture
def student(tmp_path: Path) -> Path:
    DistilledPredictor(features="costs", space=TINY, ensemble=2, steps=1).fit(ARCHS, SCORES).save(tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def network(tmp_path: Path) -> Path:
    recipe = Recipe(1, 100, 1e-3)
    train(Transformer(TINY.smallest(), TINY, VOCAB), reversed_pairs(9, 0), recipe, seed=0, checkpoint=tmp_path / "network")
    return tmp_path / "network"


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, record: record["settings"].update(unknown=1),
        lambda arrays, record: record["settings"].pop("space"),
        lambda arrays, record: record.pop("teacher_"),
        lambda arrays, record: record.pop("format"),
        lambda arrays, record: arrays.pop("mean"),
    ],
)
def test_a_student_of_another_form_is_one_line(student: Path, change: Any) -> None:
    with pytest.raises(ValueError, match=r"student: (not of a form that this version reads|checkpoint format None)") as error:
        DistilledPredictor.load(rewritten(student, "distill", change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, record: record.pop("identity"),
        lambda arrays, record: record["identity"]["network"].update(unknown=1),
        lambda arrays, record: record["identity"]["space"].update(encoder_heads=[]),
        lambda arrays, record: arrays.pop(next(iter(arrays))),
        lambda arrays, record: arrays.update({name: array[..., :1] for name, array in arrays.items()}),
    ],
)
def test_a_network_of_another_form_is_one_line(network: Path, change: Any) -> None:
    with pytest.raises(ValueError, match="network: not of a form that this version reads: ") as error:
        load_network(rewritten(network, "training", change))
    assert "\n" not in str(error.value)


def test_what_is_no_such_checkpoint_is_one_line(student: Path, network: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="network: not a checkpoint of kind 'distill'"):
        DistilledPredictor.load(network)
    with pytest.raises(ValueError, match="student: not a checkpoint of kind 'training'"):
        load_network(student)
    with pytest.raises(ValueError, match=f"{tmp_path}: a folder, not a safetensors file"):
        load_network(tmp_path)
    with pytest.raises(ValueError, match="supernet: expected a SuperTransformer, got Transformer"):
        SupernetPredictor(load_network(network), reversed_pairs(9, 0)).predict(ARCHS)
