"""What users hand over: series of architectures and scores of any type, and frames, taken by position and by name.

The kind of fault: a pandas Series is indexed by labels, an iterator is empty when read a second time, a frame is read by its
columns' places. All functions of the package that take such a series are in `READERS` and `METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hat_costs import flop_counts, parameter_counts, prompt_task
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline, make_union
from small_nets import VOCAB, new_supernet, reversed_pairs

from llmpp_book.studies.paired import paired
from llmpp_book.studies.paper_costs import training_flops
from llmpp_core import metrics
from llmpp_core.latency.hat_mlp import LatencyMLP
from llmpp_core.latency.predictor import LatencyPredictor, LatencyPrior, choose_measurements, latency_errors, latency_terms
from llmpp_core.latency.profiler import MeasuredLatency, measurement_order
from llmpp_core.llm.predictor import LLMPredictor
from llmpp_core.llm.prompts import build_prompt, choose_demonstrations
from llmpp_core.llm.settings import Settings
from llmpp_core.nets.predictor import SupernetPredictor
from llmpp_core.nets.proxies import ZeroCostPredictor
from llmpp_core.predictors.baselines import CalibratedPredictor, TablePredictor, baselines
from llmpp_core.predictors.distill import DistilledPredictor
from llmpp_core.predictors.partial_dependence import partial_dependence
from llmpp_core.search.limits import parameter_limit
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.features import (
    HAT_FEATURE_NAMES,
    CostFeatures,
    DepthFeatures,
    HATFeatures,
    LayerFeatures,
    OfficialFeatures,
    ScoreFeatures,
)
from llmpp_core.space.genes import Genes
from llmpp_core.space.inputs import as_list, as_scores, warn_if_weak
from llmpp_core.space.search_space import TINY

TASK = prompt_task("t", "a task", "score", "a number", 0.0, 100.0, space=TINY)
ARCHS = TINY.sample(12, np.random.default_rng(0))
SCORES = np.random.default_rng(1).random(12) + 20
TABLE = dict(zip(ARCHS, SCORES.tolist(), strict=True))
TRAINED = pd.DataFrame({"architecture": ARCHS * 2, "valid_bleu": [*SCORES, *(SCORES + 0.1)]})
ORDER = [5, 0, 11, 3, 2, 8, 1, 10, 4, 9, 7, 6]


def objects(values: Any) -> np.ndarray:
    found = np.empty(len(values), dtype=object)
    found[:] = list(values)
    return found


#: Forms of the same series. The labels of the last two say another order than the positions do, or none.
FORMS: dict[str, Callable[[Any], Any]] = {
    "tuple": tuple,
    "array of objects": objects,
    "Index": lambda values: pd.Index(objects(values)),
    "generator": lambda values: (value for value in values),
    "values of a dict": lambda values: dict(enumerate(values)).values(),
    "shuffled Series": lambda values: pd.Series(list(values), index=ORDER),
    "part of a Series": lambda values: pd.Series(list(values), index=np.arange(12) + 100),
}


class Listener:
    """Takes the place of a client: keeps what it is asked and answers nothing."""

    settings = Settings("listener")

    def ask(self, prompts: Any, samples: int) -> list[Any]:
        self.prompts = [prompt.text for prompt in prompts]
        return []


def llm(archs: Any, scores: Any) -> Any:
    predictor = LLMPredictor(Listener(), TASK, form="json", batch_size=5, demonstrations=5, choice="random").fit(archs, scores)
    return predictor.demonstrations_


def llm_prompts(archs: Any, scores: Any) -> Any:
    predictor = LLMPredictor(Listener(), TASK, form="json", batch_size=5).fit(ARCHS, SCORES)
    predictor.predict(archs)
    return predictor.client.prompts


def fitted(predictor: Any) -> Callable[[Any, Any], Any]:
    return lambda archs, scores: predictor().fit(archs, scores).predict(ARCHS)


def predicted(predictor: Any) -> Callable[[Any, Any], Any]:
    return lambda archs, scores: predictor().fit(ARCHS, SCORES).predict(archs)


def student() -> DistilledPredictor:
    return DistilledPredictor(features="averages", space=TINY, ensemble=2, steps=2)


def supernet() -> SupernetPredictor:
    return SupernetPredictor(new_supernet(space=TINY), reversed_pairs(8, 0))


def proxy() -> ZeroCostPredictor:
    return ZeroCostPredictor("NASWOT", reversed_pairs(8, 0), TINY, VOCAB, batch_size=4)


def remembered(archs: Any, scores: Any) -> Any:
    cost = MeasuredLatency.__new__(MeasuredLatency)
    cost._known = TABLE
    return cost(archs)


READERS: dict[str, Callable[[Any, Any], Any]] = {
    "LLMPredictor.fit": llm,
    "LLMPredictor.predict": llm_prompts,
    "DistilledPredictor.fit": fitted(student),
    "DistilledPredictor.predict": predicted(student),
    "CalibratedPredictor.fit": fitted(lambda: CalibratedPredictor(TablePredictor(TABLE))),
    "CalibratedPredictor.fit that learns": fitted(lambda: CalibratedPredictor(baselines(64)["depth"])),
    "CalibratedPredictor.predict": predicted(lambda: CalibratedPredictor(TablePredictor(TABLE))),
    "TablePredictor.predict": predicted(lambda: TablePredictor(TABLE)),
    "LatencyPredictor.fit": fitted(LatencyPredictor),
    "LatencyPredictor.predict": predicted(LatencyPredictor),
    "LatencyMLP.fit": fitted(lambda: LatencyMLP(steps=2)),
    "LatencyMLP.predict": predicted(lambda: LatencyMLP(steps=2)),
    "SupernetPredictor.predict": predicted(supernet),
    "ZeroCostPredictor.predict": predicted(proxy),
    "LatencyPrior.learn": lambda archs, scores: LatencyPrior.learn([(archs, scores)]).mean,
    "LatencyPrior.from_device": lambda archs, scores: LatencyPrior.from_device(archs, scores).mean,
    "latency_terms": lambda archs, scores: latency_terms(archs),
    "choose_measurements": lambda archs, scores: choose_measurements(archs, 5, LatencyPrior.ignorant(latency_terms(ARCHS))),
    "MeasuredLatency": remembered,
    "Limit.costs": lambda archs, scores: parameter_limit(TINY, 1e6).costs(archs),
    "parameter_counts": lambda archs, scores: parameter_counts(archs),
    "flop_counts": lambda archs, scores: flop_counts(archs),
    "training_flops": lambda archs, scores: training_flops(archs, 1e6, 100, 512),
    "Genes.encode": lambda archs, scores: Genes(TINY).encode(archs),
    "measurement_order": lambda archs, scores: measurement_order(archs, TINY, 2, np.random.default_rng(0)),
    "build_prompt": lambda archs, scores: build_prompt(TASK, zip(ARCHS, scores, strict=True), archs, form="json").text,
    "choose_demonstrations": lambda archs, scores: choose_demonstrations(archs, 5, "spread", space=TINY),
    "partial_dependence": lambda archs, scores: partial_dependence(TablePredictorOfDepth(), TINY, archs)["mean"],
    "paired": lambda archs, scores: paired(archs, ARCHS[::-1], TRAINED, groups=scores).value,
}
RECORDED = ScoreFeatures({arch: (score, -score) for arch, score in TABLE.items()})
TRANSFORMERS = (
    HATFeatures(),
    OfficialFeatures(),
    LayerFeatures(),
    CostFeatures(qkv_dim=64),
    DepthFeatures(),
    RECORDED,
)
METRICS: dict[str, Callable[[Any, Any], Any]] = {
    "mean_absolute_error": metrics.mean_absolute_error,
    "kendall_tau": metrics.kendall_tau,
    "kendall_tau within groups": lambda true, predicted: metrics.kendall_tau(SCORES, predicted, true),
    "top_k_regret": metrics.top_k_regret,
    "latency_errors": latency_errors,
}


class TablePredictorOfDepth:
    def predict(self, archs: Any) -> np.ndarray:
        return np.array([arch.decoder_layers for arch in archs], dtype=float)


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, (dict, str, list)):
        return bool(found == expected)
    return np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reader", READERS)
def test_every_form_of_a_series_is_read_by_position(reader: str, form: str) -> None:
    expected = READERS[reader](ARCHS, SCORES.tolist())
    assert same(READERS[reader](FORMS[form](ARCHS), FORMS[form](SCORES.tolist())), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("metric", METRICS)
def test_metrics_read_scores_by_position(metric: str, form: str) -> None:
    groups = np.round(SCORES)
    expected = METRICS[metric](groups, np.roll(SCORES, 1))
    assert same(METRICS[metric](FORMS[form](groups.tolist()), FORMS[form](np.roll(SCORES, 1).tolist())), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=lambda transformer: type(transformer).__name__)
def test_transformers_read_by_position_and_refuse_what_can_be_read_once(transformer: Any, form: str) -> None:
    if form == "generator":
        # A union would give the first of its transformers all, and the others nothing.
        with pytest.raises(ValueError, match="archs: a generator can be read only once, and a pipeline reads several times; give a list"):
            transformer.transform(FORMS[form](ARCHS))
    else:
        assert same(transformer.transform(FORMS[form](ARCHS)), transformer.transform(ARCHS))


ODD = [
    (ARCHS[0].to_hat_yaml(), "expected a sequence, got str"),
    (ARCHS[0], "expected a sequence, got Architecture"),
    (set(ARCHS), "expected a sequence, got set"),
    (TABLE, "expected a sequence, got dict"),
    (7, "expected a sequence, got int"),
    ([*ARCHS[:3], ARCHS[0].to_hat_yaml()], r"archs\[3\]: expected an Architecture, got str"),
    ([None, *ARCHS], r"archs\[0\]: expected an Architecture, got NoneType"),
    (pd.DataFrame({"architecture": ARCHS}), r"expected an Architecture, got str|column encoder_embed_dim.* is missing"),
]


# The others take whatever they have a score for, or leave the question to what they are made of.
STRICT = [name for name in READERS if name.split(".")[0] not in ("TablePredictor", "CalibratedPredictor", "Genes", "MeasuredLatency")]


@pytest.mark.parametrize(("archs", "message"), ODD, ids=[message[:40] for _, message in ODD])
@pytest.mark.parametrize("reader", STRICT)
def test_what_is_no_series_of_architectures_is_named(reader: str, archs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("archs", "(archs|ours)")):
        READERS[reader](archs, SCORES)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ("25", "scores: expected a sequence of numbers, got str"),
        (25.0, "scores: expected a sequence of numbers, got float"),
        ({1.0, 2.0}, "scores: expected a sequence of numbers, got set"),
        ([1.0, None, 2.0], r"scores\[1\]: expected a finite number, got nan"),
        (pd.Series([1.0, pd.NA, 2.0]), r"scores\[1\]: expected a number, got '<NA>'"),
        ([1.0, 2.0, "a"], r"scores\[2\]: expected a number, got 'a'"),
        ([1.0, np.inf, 2.0], r"scores\[1\]: expected a finite number, got inf"),
        ([[1.0], [2.0], [3.0]], r"scores: expected 3 numbers, one per architecture, got shape \(3, 1\)"),
        ([1.0, 2.0], r"scores: expected 3 numbers, one per architecture, got shape \(2,\)"),
    ],
)
def test_what_is_no_vector_of_scores_is_named(scores: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_scores(scores, 3)


# --- frames -------------------------------------------------------------------------------------------------------

FRAME = pd.DataFrame(HATFeatures().transform(ARCHS), columns=list(HAT_FEATURE_NAMES))


@pytest.mark.parametrize(
    "make",
    [lambda: make_pipeline(HATFeatures(), Ridge()), LatencyPredictor, lambda: LatencyMLP(steps=2)],
    ids=["HATFeatures", "latency", "MLP"],
)
def test_columns_go_by_name(make: Any) -> None:
    other = FRAME.assign(more=1.0)[[*sorted(FRAME), "more"]]
    assert same(make().fit(FRAME, SCORES).predict(other), make().fit(FRAME, SCORES).predict(FRAME))
    assert same(make().fit(other, SCORES).predict(FRAME), make().fit(FRAME, SCORES).predict(FRAME))
    with pytest.raises(ValueError, match="X: column decoder_layers is missing; expected encoder_embed_dim, "):
        make().fit(FRAME.drop(columns="decoder_layers"), SCORES)


def test_a_union_with_recorded_scores_names_its_columns() -> None:
    union = make_union(DepthFeatures(), RECORDED)
    assert union.fit_transform(ARCHS).shape == (12, 3)
    assert union.get_feature_names_out().tolist() == [
        "depthfeatures__decoder_layers",
        "scorefeatures__score_0",
        "scorefeatures__score_1",
    ]


# --- evidence -----------------------------------------------------------------------------------------------------

WEAK = {
    "constant": (ARCHS, [25.0] * 12, "all 12 scores are 25"),
    "one": (ARCHS[:1], [25.0], "they are of 1 different architectures"),
    "two": (ARCHS[:2], [25.0, 26.0], "they are of 2 different architectures"),
    "one, again and again": ([ARCHS[0]] * 10, list(range(20, 30)), "they are of 1 different architectures"),
    "contradiction": (
        [*ARCHS[:3], ARCHS[0]],
        [20.0, 21.0, 22.0, 29.0],
        "an architecture is given with scores that lie 9 apart, and different architectures only 3.5",
    ),
}


@pytest.mark.parametrize("case", WEAK)
@pytest.mark.parametrize(
    "make",
    [
        lambda: LLMPredictor(None, TASK),
        lambda: DistilledPredictor(features="costs", space=TINY, ensemble=1, steps=1),
        lambda: CalibratedPredictor(TablePredictor({arch: float(i) for i, arch in enumerate(ARCHS)})),
        LatencyPredictor,
        lambda: LatencyMLP(steps=1),
    ],
    ids=["LLM", "distilled", "calibrated", "latency", "MLP"],
)
def test_fits_warn_of_scores_that_tell_nothing(make: Any, case: str) -> None:
    archs, scores, message = WEAK[case]
    if len(archs) == 1 and not isinstance(make(), (LLMPredictor, CalibratedPredictor)):
        with pytest.raises(ValueError, match="at least 2"):
            make().fit(archs, scores)
        return
    with pytest.warns(UserWarning, match=f"^predictions from these scores are little more than guesses: {message}"):
        make().fit(archs, scores)


@pytest.mark.filterwarnings("error")
def test_scores_that_tell_something_are_not_warned_of() -> None:
    warn_if_weak(ARCHS, SCORES)
    LLMPredictor(None, TASK).fit(ARCHS * 3, np.round(np.concatenate([SCORES, SCORES + 0.1, SCORES - 0.1]), 2))


def test_a_table_of_genes_stays_one() -> None:
    table = Genes(TINY).table(Genes(TINY).encode(ARCHS))
    assert as_list(table) is table
    assert same(
        baselines(TINY.qkv_dim)["parameters"].fit(table, SCORES).predict(table),
        baselines(TINY.qkv_dim)["parameters"].fit(ARCHS, SCORES).predict(ARCHS),
    )


@pytest.mark.parametrize("thing", ["arch", None, 3])
def test_what_is_no_architecture_is_not_in_a_space(thing: Any) -> None:
    with pytest.raises(ValueError, match=f"expected an Architecture, got {type(thing).__name__}"):
        TINY.validate(thing)
    assert not isinstance(thing, Architecture)
