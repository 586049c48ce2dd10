"""Zero-cost proxies: how promising is a network before any training?

A proxy is a function of a freshly drawn network and a few batches. `PROXIES` names them, ``PROXIES["mine"] = function`` adds one, and
`ZeroCostPredictor` makes any of them a predictor. "Weights" are here the matrices of attention and feed-forward layers, queries, keys
and values of self-attention being one; without embeddings, whose gradients would drown those of the layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from llmpp_core.nets.training import smoothed_loss
from llmpp_core.nets.transformer import CrossAttention, Memory, SelfAttention, Transformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.regressor import ArchitectureScorer
from llmpp_core.space.search_space import SearchSpace
from llmpp_core.text.batches import Batch, Pairs
from llmpp_core.text.special_tokens import PAD


def gradient_norm(model: Transformer, batches: Sequence[Batch]) -> float:
    """Return the Euclidean norms of the loss's gradient, one per matrix, added up (Abdelfattah et al. 2021); reads one batch."""
    return sum(float(gradient.double().norm()) for gradient in _gradients(model, batches[0]))


def snip(model: Transformer, batches: Sequence[Batch]) -> float:
    """Return the summed absolute products of weights and gradients (SNIP, Lee et al. 2019); reads one batch.

    To first order, each is how much the loss changes if that weight is set to zero.
    """
    return sum(float((w.detach() * g).double().abs().sum()) for w, g in zip(_weights(model), _gradients(model, batches[0]), strict=True))


def synflow(model: Transformer, batches: Sequence[Batch]) -> float:
    """Return the log of the synaptic flow from all-ones embeddings to the decoder's output (SynFlow, Tanaka et al. 2020); reads no data.

    The flow is the sum of w dR/dw over the weights, where R adds up the outputs of the network with absolute weights. What layer
    normalisation puts out adds up to zero, so R would be zero whatever the weights. The network is therefore made linear: normalisation
    is removed, residual connections stay, and attention averages its values evenly. Queries and keys are then on no path, heads do not
    count, and a span over more encoder layers lowers the score, as earlier layers carry less. The flow grows past the range of
    float32, hence float64 and the logarithm.
    """
    encoder, decoder = _linear(model.encoder), _linear(model.decoder)
    # All positions of all-ones sequences are alike, so one position tells all.
    ones = torch.ones(1, 1, model.embedding.embedding_dim, dtype=torch.float64, device=model.positions.device)
    mask = torch.ones(1, 1, dtype=torch.bool, device=ones.device)
    states, x = [ones[..., : model.arch.encoder_embed_dim]], ones[..., : model.arch.decoder_embed_dim]
    for layer in encoder:
        states.append(layer(states[-1], mask[:, None, None, :]))
    for layer in decoder:
        x = layer(x, Memory(states[:-4:-1], mask))
    weights = [*_weights(encoder), *_weights(decoder)]
    flows = [(w.detach() * g).sum() for w, g in zip(weights, torch.autograd.grad(x.sum(), weights), strict=True)]
    return float(torch.stack(flows).sum().log())


def naswot(model: Transformer, batches: Sequence[Batch]) -> float:
    """Return how differently the feed-forward layers treat different tokens (NASWOT, Mellor et al. 2021); reads one batch.

    A token's code is which ReLUs of its stack let it through, and the kernel of two tokens is the number of ReLUs on which they agree;
    its log-determinant is the larger, the less alike the codes. Those of the source tokens in the encoder and of the target tokens in
    the decoder are added. The kernel is singular where two codes are equal or tokens outnumber ReLUs, so one is added to its diagonal.
    """
    batch, total = batches[0], 0.0
    for stack, kept in ((model.encoder, batch.src != PAD), (model.decoder, batch.labels != PAD)):
        with torch.no_grad():
            _, outputs = _observe(model, batch, [layer.ffn.up for layer in stack])
        # Signs +1 and -1 have the inner product agreements - disagreements.
        signs = torch.cat([(output[kept] > 0).double() * 2 - 1 for output in outputs], dim=1)
        kernel = (signs @ signs.T + signs.shape[1]) / 2
        total += float(torch.logdet(kernel + torch.eye(len(kernel), dtype=torch.float64, device=kernel.device)))
    return total


def jacobian_covariance(model: Transformer, batches: Sequence[Batch]) -> float:
    """Return how little the Jacobians of different sentences correlate (Abdelfattah et al. 2021); reads one batch.

    A sentence's Jacobian is the gradient of its summed logits with respect to its embedded source. With e the eigenvalues of the
    correlations between sentences and k = 1e-5, the score is minus the sum of log(e + k) + 1 / (e + k).
    """
    logits, embedded = _observe(model, batches[0], [model.source_dropout])
    (jacobian,) = torch.autograd.grad(logits[batches[0].labels != PAD].sum(), embedded)
    rows = jacobian.double().flatten(1)
    rows = nn.functional.normalize(rows - rows.mean(dim=1, keepdim=True), dim=1)
    eigenvalues = torch.linalg.eigvalsh(rows @ rows.T).clamp(min=0) + 1e-5
    return -float((eigenvalues.log() + 1 / eigenvalues).sum())


def zico(model: Transformer, batches: Sequence[Batch]) -> float:
    """Return how steady the gradients are from batch to batch (ZiCo, Li et al. 2023); reads all batches.

    Each weight's absolute gradient has a mean and a standard deviation over the batches. Their ratios are added up over the weights
    of a matrix whose gradient varies, and the logarithms of these sums over the matrices.
    """
    total = 0.0
    for gradients in zip(*(_gradients(model, batch) for batch in batches), strict=True):
        sizes = torch.stack(gradients).double().abs()
        deviations = sizes.std(dim=0, correction=0)
        total += float((sizes.mean(dim=0) / deviations)[deviations > 0].sum().log())
    return total


#: The proxies by name: functions of a network in evaluation mode and batches; higher is better.
PROXIES: dict[str, Callable[[Transformer, Sequence[Batch]], float]] = {
    "gradient norm": gradient_norm,
    "SNIP": snip,
    "SynFlow": synflow,
    "NASWOT": naswot,
    "Jacobian covariance": jacobian_covariance,
    "ZiCo": zico,
}


class ZeroCostPredictor(ArchitectureScorer):
    """A proxy's score of architectures with freshly drawn weights; higher is better.

    All architectures see the same two batches and start from the same seeds. Scores are remembered in the dict `scores_`. Wrap it in
    `llmpp_core.predictors.baselines.CalibratedPredictor` for scores on the scale of BLEU.

    Parameters
    ----------
    proxy : str
        A name in `PROXIES`.
    pairs : Pairs
        Training pairs, on the device to use.
    space : SearchSpace
        The space of the architectures.
    vocab_size : int
        Size of the joint vocabulary.
    batch_size : int
        Sentence pairs in each of the two batches, of which most proxies read the first alone.
    seed : int
        Draws the sentences, and the weights as `llmpp_core.nets.training.train` does with that seed.
    repeats : int
        Number of draws of the weights, with `seed`, `seed` + 1 and so on; the score is the mean.
    """

    def __init__(
        self, proxy: str, pairs: Pairs, space: SearchSpace, vocab_size: int, batch_size: int = 64, seed: int = 0, repeats: int = 1
    ):
        self.proxy = proxy
        self.pairs = pairs
        self.space = space
        self.vocab_size = vocab_size
        self.batch_size = batch_size
        self.seed = seed
        self.repeats = repeats

    def _check(self, archs: Sequence[Architecture]) -> None:
        if self.proxy not in PROXIES:
            raise ValueError(f"proxy: {self.proxy!r} is not known; known are {', '.join(PROXIES)}")
        if min(self.batch_size, self.repeats) < 1:
            raise ValueError(f"batch_size, repeats: expected at least 1 each, got {self.batch_size}, {self.repeats}")
        if 2 * self.batch_size > len(self.pairs):
            raise ValueError(f"pairs: 2 batches of {self.batch_size} need more than the {len(self.pairs)} there are")

    def _scores(self, archs: Sequence[Architecture]) -> list[float]:
        rows = np.random.default_rng(self.seed).choice(len(self.pairs), (2, self.batch_size), replace=False)
        batches, device, means = [self.pairs.batch(part) for part in rows], self.pairs.src.device, []
        for arch in archs:
            model = Transformer(arch, self.space, self.vocab_size).to(device).eval()
            scores = []
            for seed in range(self.seed, self.seed + self.repeats):
                model.initialise(torch.Generator(device).manual_seed(seed))
                scores.append(PROXIES[self.proxy](model, batches))
            if not all(map(math.isfinite, scores)):
                raise ValueError(f"proxy {self.proxy}: not every score is a finite number: {scores} for {arch}")
            means.append(float(np.mean(scores)))
        return means


def _weights(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if p.ndim == 2 and name != "embedding.weight"]


def _gradients(model: Transformer, batch: Batch) -> tuple[Tensor, ...]:
    """Return the gradients of the batch's cross-entropy per token, one per matrix."""
    loss = smoothed_loss(model(batch.src, batch.tgt), batch.labels, 0.0) / batch.tokens
    return torch.autograd.grad(loss, _weights(model))


def _observe(model: Transformer, batch: Batch, modules: Sequence[nn.Module]) -> tuple[Tensor, list[Tensor]]:
    """Return the logits of the batch, and what each module put out on the way."""
    outputs: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda module, inputs, output: outputs.append(output)) for module in modules]
    logits = model(batch.src, batch.tgt)
    for hook in hooks:
        hook.remove()
    return logits, outputs


def _linear(stack: Sequence[nn.Module]) -> nn.ModuleList:
    """Return a copy in float64 that is linear in positive inputs: absolute weights, no biases, no normalisation, even attention."""
    linear = nn.ModuleList(copy.deepcopy(layer) for layer in stack).double()
    for parameter in linear.parameters():
        parameter.data = parameter.data.abs() if parameter.ndim == 2 else torch.zeros_like(parameter)
    for name, module in list(linear.named_modules()):
        if isinstance(module, nn.LayerNorm):
            linear.set_submodule(name, nn.Identity())
        elif isinstance(module, SelfAttention):  # without queries all keys weigh the same
            module.qkv.weight.data.chunk(3)[0].zero_()
        elif isinstance(module, CrossAttention):
            module.query.weight.data.zero_()
    return linear
