"""The costs of HAT's space for WMT, and prompts about a space of HAT's, told its FLOPs."""

from __future__ import annotations

from functools import partial
from typing import Any

from llmpp_core.llm.prompts import Efficiency, PromptTask
from llmpp_core.space import cost
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import HAT_WMT, SearchSpace

count_parameters = partial(cost.count_parameters, qkv_dim=HAT_WMT.qkv_dim)
count_flops = partial(cost.count_flops, qkv_dim=HAT_WMT.qkv_dim)
parameter_counts = partial(cost.parameter_counts, qkv_dim=HAT_WMT.qkv_dim)
flop_counts = partial(cost.flop_counts, qkv_dim=HAT_WMT.qkv_dim)


def gflops(arch: Architecture) -> float:
    return count_flops(arch) / 1e9


def prompt_task(*arguments: Any, space: SearchSpace = HAT_WMT, **settings: Any) -> PromptTask:
    told = Efficiency("GFLOPS", "the billions of operations", gflops) if space is HAT_WMT else Efficiency.of(space.costs["FLOPs"])
    return PromptTask(*arguments, **{"space": space, "efficiency": told, **settings})
