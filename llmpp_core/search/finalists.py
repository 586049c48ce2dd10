"""What a search hands on to a costlier predictor: not its best, which are alike, but the best of several kinds."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import Any

import numpy as np

from llmpp_core.search.records import SearchResult
from llmpp_core.space.genes import Genes


def finalists(found: SearchResult, genes: Genes, n: int = 51, groups: int = 3) -> list[Any]:
    """Return the best that a search scored, evenly over the best groups.

    A cheap predictor's favourites are one neighbourhood, in which it can hardly tell better from worse; it is better at telling which
    kinds are worth a look. So what it scored is grouped by the space's stratum, such as the depth, and the groups ranked by their best.

    Parameters
    ----------
    found : SearchResult
        Of a search with one predictor.
    genes : Genes
        Of its space.
    n, groups : int
        How many in all, and of how many groups; fewer where a group has less than its share.

    Returns
    -------
    list of networks
        Best group first, best first in each.
    """
    pairs = chain.from_iterable(zip(record.population, record.scores, strict=True) for record in found.records)
    # Equal scores in the order of the genomes, so that a search that was resumed hands on the same.
    ranked = sorted(((score, genome) for genome, score in dict(pairs).items() if score is not None), key=lambda pair: (-pair[0], pair[1]))
    table = genes.table(genes.from_text(genome for _, genome in ranked))
    members = defaultdict[Any, list[int]](list)
    # Positions, since the numbers of a category are all alike.
    kinds = np.zeros(len(table)) if genes.space.stratum is None else table.positions(genes.space.stratum)[:, 0]
    for place, value in enumerate(kinds.tolist()):
        members[value].append(place)
    best = list(members.values())[:groups]
    return [table[place] for i, places in enumerate(best) for place in places[: n // len(best) + (i < n % len(best))]]
