"""What the paper's pipeline costs at full size: operations, GPU-hours, money, memory and disk of every stage.

Everything follows from the closed-form FLOPs of `llmpp_core.space.cost`, the settings of HAT and of the paper, and a few measured or
assumed rates that are arguments. Nothing here is a measurement of WMT itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from llmpp_core.llm.settings import Price
from llmpp_core.space.architecture import SPAN_LAYERS, Architecture
from llmpp_core.space.cost import count_flops, count_parameters
from llmpp_core.space.inputs import as_list
from llmpp_core.space.search_space import HAT_WMT, SearchSpace
from llmpp_core.upstream import PAPER_TASKS

#: Training pairs on the Hugging Face Hub, as on the cards of wmt/wmt14 and wmt/wmt19. The papers' sets are a little smaller: 4.5 and 36
#: million for WMT'14 (Vaswani et al., 2017).
PAIRS = {"wmt14.en-de": 4_508_785, "wmt14.en-fr": 40_836_715, "wmt19.en-de": 34_782_245}
#: Highest dense throughput in TFLOP/s by the makers' data sheets: float32 on the P100, 16 bit with float32 sums on the others.
PEAK_TFLOPS = {"P100": 10.6, "V100": 125.0, "A100": 312.0, "H100": 989.0}
#: The base Transformer and how it was trained: 100,000 updates of 25,000 target tokens, 12 hours on 8 P100 (Vaswani et al., 2017).
TRANSFORMER_BASE = Architecture(
    encoder_embed_dim=512,
    decoder_embed_dim=512,
    encoder_ffn_dims=(2048,) * 6,
    encoder_heads=(8,) * 6,
    decoder_ffn_dims=(2048,) * 6,
    decoder_self_heads=(8,) * 6,
    decoder_cross_heads=(8,) * 6,
    decoder_cross_spans=(-1,) * 6,
)
_BASE_TOKENS, _BASE_VOCABULARY, _BASE_GPU_HOURS = 100_000 * 25_000, 37_000, 12 * 8
#: Backward passes cost two forward passes: the gradient of every product has one for each of its factors.
PASSES = 3


@dataclass(frozen=True)
class Machine:
    """A GPU to rent."""

    #: For tables.
    name: str
    #: Operations that training does per second, in 1e12: a share of the peak, see `of_peak`.
    tflops: float
    usd_per_hour: float

    def __post_init__(self) -> None:
        for name, value in (("tflops", self.tflops), ("usd_per_hour", self.usd_per_hour)):
            if not value > 0:
                raise ValueError(f"{name}: expected a positive number, got {value!r}")

    @classmethod
    def of_peak(cls, name: str, share: float, usd_per_hour: float) -> Machine:
        """Assume a share, above 0 and at most 1, of the peak of a GPU of `PEAK_TFLOPS`."""
        if name not in PEAK_TFLOPS:
            raise ValueError(f"unknown GPU {name!r}; known are {', '.join(PEAK_TFLOPS)}")
        if not 0 < share <= 1:
            raise ValueError(f"share: expected a number above 0 and at most 1, got {share!r}")
        return cls(f"{name} at {share:.0%} of peak", share * PEAK_TFLOPS[name], usd_per_hour)

    def hours(self, flops: float) -> float:
        """Return the GPU-hours that so many operations take."""
        return flops / (self.tflops * 1e12) / 3600


@dataclass(frozen=True)
class Plan:
    """The sizes of a pipeline: by default HAT's trainings and the paper's predictor and search."""

    #: A corpus of `PAIRS`.
    task: str = "wmt14.en-de"
    #: Joint subwords.
    vocab_size: int = PAPER_TASKS["wmt14.en-de"].subwords
    #: Of every training, of supernets too (HAT's configuration files: 40,000 updates of 128 x 4,096 tokens).
    updates: int = 40_000
    batch_tokens: int = 128 * 4096
    #: Tokens on a GPU at once; gradients add up to the batch.
    micro_batch_tokens: int = 4096
    #: Tokens of a sentence.
    length: int = 30
    #: Architectures trained from scratch, to show and to test predictors with.
    trainings: int = 30
    #: Architectures that the LLM labels, and tokens sent (as chapter 4 estimates them) and received for each.
    labels: int = 3000
    prompt_tokens: int = 2900
    answer_tokens: int = 25
    #: Different architectures that a search scores, about, out of the 3,750 that the official code scores again and again.
    candidates: int = 2200
    #: Target tokens that a score reads.
    valid_tokens: int = 3000 * 30

    @property
    def tokens(self) -> int:
        """Target tokens of one training."""
        return self.updates * self.batch_tokens


@dataclass(frozen=True)
class Preparation:
    """What preparing a corpus takes, as ``benchmarks/corpus.py`` measures it."""

    #: Pairs cleaned, encoded and checked per second.
    pairs_per_s: float
    #: Seconds that the vocabulary takes, whatever the size of the corpus: it is trained on a sample.
    vocabulary_s: float
    #: Most memory held.
    memory_gib: float
    #: Disk that raw and prepared files take.
    bytes_per_pair: float

    def hours(self, pairs: int) -> float:
        """Return vocabulary_s + pairs / pairs_per_s, in hours of this CPU."""
        return (self.vocabulary_s + pairs / self.pairs_per_s) / 3600


#: A corpus of 5 million generated pairs on two threads of a busy AMD EPYC; raw files included.
PREPARATION = Preparation(pairs_per_s=7515, vocabulary_s=55, memory_gib=1.1, bytes_per_pair=936)


def training_flops(archs: Sequence[Architecture], tokens: float, vocab_size: int, qkv_dim: int, length: int = 30) -> float:
    """Return 3 x FLOPs(one sentence pair) x tokens / length, FLOPs being the mean of `archs` with the output projection.

    `archs` are one, or those that a supernet draws; `tokens` are target tokens, and there are about as many source tokens.
    """
    mean = np.mean([count_flops(arch, vocab_size, length, qkv_dim=qkv_dim) for arch in as_list(archs)])
    return float(PASSES * mean * tokens / length)


def training_memory(arch: Architecture, vocab_size: int, tokens: int, qkv_dim: int) -> float:
    """Return bytes: 16 P + 10 T V + 2 T A, of a training with 16-bit activations.

    P are parameters with embeddings, each with its gradient and Adam's two moments in float32. T tokens on either side keep V logits
    (in 16 and 32 bit, and their gradient) and A activations for the backward pass: 4Q + 7D + F per encoder layer and
    4Q + 4QS + 9D + F per decoder layer, with S of the encoder's layers read. These coefficients are those of this project's network,
    counted in PyTorch with dropout and rounded; what a library allocates for a moment is not in it.
    """
    q, embeddings = qkv_dim, vocab_size * max(arch.encoder_embed_dim, arch.decoder_embed_dim)
    kept = sum(4 * q + 7 * arch.encoder_embed_dim + f for f in arch.encoder_ffn_dims)
    for f, span in zip(arch.decoder_ffn_dims, arch.decoder_cross_spans, strict=True):
        kept += 4 * q + 4 * q * SPAN_LAYERS[span] + 9 * arch.decoder_embed_dim + f
    return 16 * (count_parameters(arch, qkv_dim) + embeddings) + tokens * (10 * vocab_size + 2 * kept)


def implied_share() -> float:
    """Return the share of the P100s' peak that the base Transformer's published training time comes to by the model used here."""
    # Its attention is as wide as its embeddings.
    flops = training_flops([TRANSFORMER_BASE], _BASE_TOKENS, _BASE_VOCABULARY, TRANSFORMER_BASE.encoder_embed_dim)
    return flops / (_BASE_GPU_HOURS * 3600 * PEAK_TFLOPS["P100"] * 1e12)


def stages(
    plan: Plan, machine: Machine, preparation: Preparation, price: Price, space: SearchSpace = HAT_WMT, samples: int = 500
) -> pd.DataFrame:
    """Return the cost of every stage of the paper's pipeline.

    A training does 3 x FLOPs x tokens; a score of the supernet reads the validation side once, forward only. Average architectures
    are the mean of `samples` drawn uniformly, as supernet training and search draw them. Labelling asks for one architecture at a time.
    HS-NAS scores half of the candidates with the distilled predictor, which takes no time to speak of.

    Returns
    -------
    pandas.DataFrame
        One row per stage and a sum (with one of the two searches, HS-NAS), with the columns EFLOP (1e18 operations), GPU-hours,
        CPU-hours, USD, memory (GiB, of one process) and disk (GiB).
    """
    archs = space.sample(samples, np.random.default_rng(0))
    largest = space.largest()
    training = training_flops(archs, plan.tokens, plan.vocab_size, space.qkv_dim, plan.length)
    # Forward only.
    score = training_flops(archs, plan.valid_tokens, plan.vocab_size, space.qkv_dim, plan.length) / PASSES
    memory = training_memory(largest, plan.vocab_size, plan.micro_batch_tokens, space.qkv_dim) / 2**30
    embeddings = plan.vocab_size * max(space.encoder_embed_dim)
    weights = 4 * (count_parameters(largest, space.qkv_dim) + embeddings) / 2**30
    pairs = PAIRS[plan.task]
    llm = price.of(plan.labels * plan.prompt_tokens, plan.labels * plan.answer_tokens)
    rows: dict[str, dict[str, float]] = {
        "prepare the data": {
            "CPU-hours": preparation.hours(pairs),
            "memory": preparation.memory_gib,
            "disk": pairs * preparation.bytes_per_pair / 2**30,
        },
        # A checkpoint is written beside the one it replaces, with the optimiser's two moments.
        "train the supernet": {"flops": training, "memory": memory, "disk": 6 * weights},
        f"train {plan.trainings} from scratch": {"flops": plan.trainings * training, "memory": memory, "disk": 6 * weights},
        f"label {plan.labels:,} with an LLM": {"USD": llm},
        "search, supernet alone": {"flops": plan.candidates * score, "memory": 4 * weights},
        "search, HS-NAS": {"flops": plan.candidates * score / 2, "memory": 4 * weights},
        "train the winner": {"flops": training, "memory": memory, "disk": 6 * weights},
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["flops", "CPU-hours", "USD", "memory", "disk"]).fillna(0.0)
    table.insert(1, "GPU-hours", table["flops"].map(machine.hours))
    table["USD"] += table["GPU-hours"] * machine.usd_per_hour
    table.insert(0, "EFLOP", table.pop("flops") / 1e18)
    used = table.drop(index="search, supernet alone")
    table.loc["all, with HS-NAS"] = [*used[["EFLOP", "GPU-hours", "CPU-hours", "USD"]].sum(), used["memory"].max(), used["disk"].sum()]
    return table.rename_axis("stage")


def published() -> pd.DataFrame:
    """Return what others published about such costs, and where.

    Evolved Transformer's search is Strubell et al.'s estimate (2019). HAT gives its own cost only relative to it in its abstract; the
    GPU-hours are the quotient, on whatever GPU the authors of each had in mind.
    """
    evolved, ratio = 274_120 * 8, 12_041
    rows = [
        ("base Transformer, one training", _BASE_GPU_HOURS, "8 P100, 12 hours", "Vaswani et al. 2017"),
        ("big Transformer, one training", 8 * 3.5 * 24, "8 P100, 3.5 days", "Vaswani et al. 2017"),
        ("Evolved Transformer, whole search", evolved, "8 P100, 274,120 hours, estimated", "Strubell et al. 2019"),
        ("HAT, whole search", evolved / ratio, f"{ratio:,} times less than Evolved Transformer", "Wang et al. 2020"),
        ("HS-NAS against a search with the supernet alone", np.nan, "about 50 % fewer search hours", "Jawahar et al. 2024"),
    ]
    return pd.DataFrame(rows, columns=["what", "GPU-hours", "as published", "source"]).set_index("what")
