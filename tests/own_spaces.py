"""A declared space of one's own with trained networks, for the tests of `llmpp_core.pipeline`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

EXAMPLE = Path(__file__).parents[1] / "examples" / "small_gpts"
DIGITS = """\
space: digit CNNs
network: a convolutional network for grey images of 8x8 pixels
choices:
  blocks: {values: [1, 2, 3], text: is the number of convolutions}
  channels: {values: [8, 16, 32], per: blocks, before: 1, text: is the number of output channels of the convolution}
  kernel: {values: [3, 5], per: blocks, text: is the side of its square kernel}
  pool: {values: [mean, max], text: is how the last feature map is reduced to one number per channel}
  hidden: {values: ['yes', 'no'], text: tells whether there is a hidden layer before the output}
  hidden_width: {values: [16, 32], when: hidden == 'yes', text: is the width of that hidden layer}
costs:
  MACs: {blocks: 64*kernel**2*channels_before*channels}
"""
TEN = """\
blocks,channels,kernel,pool,hidden,hidden_width,accuracy
1,8,3,mean,no,,78.1
1,32,3,max,yes,32,86.3
1,16,5,mean,no,-,82.4
2,8 16,3 3,max,no,,89.0
2,16 16,3 5,mean,yes,16,91.2
2,"[32, 32]",5;5,max,yes,32,94.7
2,8;8,3,mean,yes,16,86.5
3,8 16 32,3 3 3,max,no,,94.1
3,32 32 32,5 3 3,max,yes,32,97.3
3,8 8 8,3,mean,no,,89.3
"""


def perplexity(network: Mapping[str, Any]) -> float:
    """Return the score that the example's head documents."""
    layers = sum(4 * network["width"] ** 2 + 2 * network["width"] * width for width in network["ffn"])
    millions = (32000 * network["width"] + layers) * 1e-6
    return round(16 + 40 * millions**-0.4 + 0.5 * (network["width"] / 256 - network["layers"] / 4) ** 2, 2)


def example(folder: Path, /, **fields: Any) -> Path:
    """Copy the example and return its run.yml, with fields changed; those of a group are added to it."""
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
    return changed(folder / "run.yml", **fields)


def digits(folder: Path, /, **fields: Any) -> Path:
    """Write a space of small CNNs, ten trained ones and a run, and return its run.yml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "space.yml").write_text(DIGITS)
    (folder / "trained.csv").write_text(TEN)
    run = {"space": "space.yml", "trained": "trained.csv", "score": {"column": "accuracy", "better": "higher", "low": 0, "high": 100}}
    (folder / "run.yml").write_text(yaml.safe_dump(run))
    return changed(folder / "run.yml", **fields)


def changed(run: Path, /, **fields: Any) -> Path:
    """Change fields of a run."""
    given = yaml.safe_load(run.read_text())
    for name, value in fields.items():
        given[name] = given.get(name, {}) | value if isinstance(value, dict) else value
    run.write_text(yaml.safe_dump(given, sort_keys=False))
    return run


def offline(url: str) -> dict[str, Any]:
    """Return the fields that ask the endpoint at a URL that is no language model."""
    return {
        "task": {"description": "reading digits"},
        "model": {"name": "not-an-llm/incontext-ridge-v1", "base_url": url, "batch": 20},
        "labels": 60,
    }
