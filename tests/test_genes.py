"""Rows of genes: the same moves as the space's own, many at once, and the same costs and features."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import MINI

from llmpp_core.space.architecture import Architecture
from llmpp_core.space.cost import count_flops, count_parameters, flop_counts, parameter_counts
from llmpp_core.space.features import CostFeatures, DepthFeatures, HATFeatures, LayerFeatures, OfficialFeatures
from llmpp_core.space.genes import ArchitectureTable, Genes
from llmpp_core.space.search_space import HAT_WMT, SPACES, SearchSpace

quick = settings(max_examples=25)
spaces = st.sampled_from(list(SPACES.values()))
seeds = st.integers(0, 2**32 - 1)


def rebuilt(table: ArchitectureTable) -> list[Architecture]:
    """Return the architectures by way of the checks of their constructor."""
    return [Architecture.from_prompt_lines(arch.to_prompt_lines()) for arch in table]


@quick
@given(spaces, seeds)
def test_rows_tables_and_texts_round_trip(space: SearchSpace, seed: int) -> None:
    genes = Genes(space)
    rows = genes.sample(20, np.random.default_rng(seed))
    table = genes.table(rows)
    archs = rebuilt(table)
    assert all(arch in space for arch in archs)
    assert list(table) == archs
    assert [hash(arch) for arch in table] == [hash(arch) for arch in archs]
    assert table[3] == genes.table(rows)[3] == archs[3]
    assert list(table[2:5]) == archs[2:5]
    assert np.array_equal(genes.encode(archs), rows)
    assert np.array_equal(genes.from_text(genes.to_text(rows)), rows)


@quick
@given(spaces, seeds)
def test_costs_and_features_of_a_table_are_those_of_its_architectures(space: SearchSpace, seed: int) -> None:
    table = Genes(space).table(Genes(space).sample(20, np.random.default_rng(seed)))
    archs = rebuilt(table)
    for features in (HATFeatures(), OfficialFeatures(), LayerFeatures(), CostFeatures(qkv_dim=space.qkv_dim), DepthFeatures()):
        assert np.array_equal(features.transform(table), features.transform(archs)), features
    assert parameter_counts(table, space.qkv_dim).tolist() == [count_parameters(arch, space.qkv_dim) for arch in archs]
    assert flop_counts(table, 1000, 23, qkv_dim=space.qkv_dim).tolist() == [
        count_flops(arch, 1000, 23, qkv_dim=space.qkv_dim) for arch in archs
    ]


@quick
@given(spaces, seeds)
def test_children_consist_of_the_genes_of_their_parents(space: SearchSpace, seed: int) -> None:
    genes, rng = Genes(space), np.random.default_rng(seed)
    a, b = genes.sample(20, rng), genes.sample(20, rng)
    child = genes.crossover(a, b, rng)
    assert ((child == a) | (child == b) | (child == -1)).all()
    assert np.array_equal(genes.crossover(a, a, rng), a)
    assert np.array_equal(genes.mutate(a, rng, 1e-9), a)
    assert all(arch in space for arch in rebuilt(genes.table(genes.mutate(child, rng, 0.3))))


def test_mutation_resamples_each_gene_with_its_probability() -> None:
    genes, rng = Genes(HAT_WMT), np.random.default_rng(0)
    rows = np.repeat(genes.encode([HAT_WMT.largest()]), 20000, axis=0)
    mutants = genes.mutate(rows, rng, 0.3)
    changed = (mutants[:, :4] != rows[:, :4]).mean(axis=0)
    assert changed == pytest.approx(0.3 * (1 - 1 / genes.cardinalities[:4]), abs=0.015)


def test_crossover_takes_from_both_parents_evenly(rng: np.random.Generator) -> None:
    genes = Genes(HAT_WMT)
    a, b = (np.repeat(genes.encode([arch]), 5000, axis=0) for arch in (HAT_WMT.smallest(), HAT_WMT.largest()))
    varied = genes.cardinalities[:4] > 1
    assert (genes.crossover(a, b, rng) == b)[:, :4].mean(axis=0)[varied] == pytest.approx(0.5, abs=0.03)


def test_neighbours_are_all_that_differ_in_one_choice() -> None:
    genes = Genes(MINI)
    all_rows = genes.everything()
    assert len(set(genes.to_text(all_rows))) == len(all_rows) == MINI.size()
    for row in all_rows[::97]:
        near, origins, changed = genes.neighbours(row[None])
        assert len(set(genes.to_text(near))) == len(near)
        assert not origins.any()
        assert all(arch in MINI for arch in rebuilt(genes.table(near)))
        both = (near >= 0) & (row >= 0)
        assert ((near != row) & both).sum(axis=1).tolist() == [1] * len(near)
        assert (near[np.arange(len(near)), changed] != row[changed]).all()
        alternatives = sum(n - 1 for n, value in zip(genes.cardinalities, row, strict=True) if value >= 0)
        assert len(near) == alternatives


@pytest.mark.parametrize("first", ["", "é", "9", "."])
def test_foreign_genomes_are_refused(first: str) -> None:
    genes = Genes(HAT_WMT)
    text = genes.to_text(genes.encode([HAT_WMT.smallest()]))[0]
    with pytest.raises(ValueError, match="genome"):
        genes.from_text([text, first + text[1:]])


def test_architectures_outside_the_space_are_refused() -> None:
    with pytest.raises(ValueError, match="not in search space MINI"):
        Genes(MINI).encode([HAT_WMT.smallest()])
