"""What a search hands on to a costlier predictor: not its best, which are alike, but the best of several kinds."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain

from llmpp_core.search.records import SearchResult
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.genes import Genes


def finalists(found: SearchResult, genes: Genes, n: int = 51, groups: int = 3, by: str = "decoder_layers") -> list[Architecture]:
    """Return the best that a search scored, evenly over the best groups.

    A cheap predictor's favourites are one neighbourhood, in which it can hardly tell better from worse; it is better at telling which
    kinds are worth a look. So the architectures scored are grouped, and the groups ranked by their best.

    Parameters
    ----------
    found : SearchResult
        Of a search with one predictor.
    genes : Genes
        Of its space.
    n, groups : int
        How many in all, and of how many groups; fewer where there are no more.
    by : str
        The choice, made once, whose values are the groups.

    Returns
    -------
    list of Architecture
        Best group first, best first in each.
    """
    pairs = chain.from_iterable(zip(record.population, record.scores, strict=True) for record in found.records)
    # Equal scores in the order of the genomes, so that a search that was resumed hands on the same.
    ranked = sorted(((score, genome) for genome, score in dict(pairs).items() if score is not None), key=lambda pair: (-pair[0], pair[1]))
    table = genes.table(genes.from_text(genome for _, genome in ranked))
    members = defaultdict[int, list[int]](list)
    for place, value in enumerate(table.values(by).tolist()):
        members[value].append(place)
    best = list(members.values())[:groups]
    return [table[place] for i, places in enumerate(best) for place in places[: n // len(best) + (i < n % len(best))]]
