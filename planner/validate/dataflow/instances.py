"""Scheduling problems of the kind ReaLHF searches, of any size, without measurements: for judging searches, not plans.

Meshes, layouts, filters and memory follow ReaLHF's enumeration; times its structure over a made-up layer time (PPO of
Llama 2 7B, 512 sequences of 1024 + 1024 tokens). ``actor`` and ``critic`` scale sizes; ``noise`` makes candidates
differ at random.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.dataflow.solving.inputs import CAPACITY_BYTES
from planner.dataflow.solving.problem import CallCandidates, DataflowProblem, Edge

CALLS = ("actor_generate", "actor_train", "critic_inference", "critic_train", "reference", "reward")
_PARAMETERS, _HIDDEN, _LAYERS = 6_869_221_376, 4096, 32  # 3 v h + L (3 h i + 4 h^2)
_PROMPT, _TOKENS, _MINI_BATCHES = 1024, 1024, 4
_FORWARD_S = 0.08  # of one sequence on one GPU, about what an A100 takes
_SHARD_COST = {1: 1.0, 2: 1.08, 4: 1.24, 8: 1.56}  # what communication adds to a forward pass
_STEP_S = {1: 0.0002, 2: 0.0012, 4: 0.002, 8: 0.0035}  # fixed part of a decode step
_WEIGHTS_S, _CONTEXT_S = 0.0106, 0.00018  # per decode step: reading weights, and the cache of one sequence
_NODE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceOptions:
    """What varies between instances.

    Attributes:
        nodes: Nodes of 8 GPUs.
        actor: Size of actor and reference relative to 7B.
        critic: Size of critic and reward relative to 7B.
        sequences: Per iteration.
        noise: Standard deviation of the logarithm of times.
        seed: Of the noise.
    """

    nodes: int
    actor: float = 1.0
    critic: float = 1.0
    sequences: int = 512
    noise: float = 0.0
    seed: int = 0


def synthetic_problem(options: InstanceOptions) -> DataflowProblem:
    """One iteration of PPO without reallocation; every call, mesh and layout that ReaLHF would enumerate.

    Args:
        options: Size of the cluster and models.
    """
    rng = np.random.default_rng(options.seed)
    calls = []
    for name in CALLS:
        scale = options.actor if name.startswith(("actor", "reference")) else options.critic
        rows = list(_rows(name, options, scale))
        start, size, time_s, static, active, layout = (np.array(column) for column in zip(*rows, strict=True))
        calls.append(
            CallCandidates(
                name=name,
                start=start,
                size=size,
                time_s=np.round(time_s * np.exp(options.noise * rng.normal(size=len(rows))), 3),
                static_bytes=static.astype(np.float64),
                active_bytes=active.astype(np.float64),
                strategy_id=layout,
            )
        )
    edges = [Edge(parent=0, child=child) for child in (2, 4, 5)]
    edges += [Edge(parent=parent, child=child) for parent in (2, 4, 5) for child in (1, 3)]
    return DataflowProblem(
        calls=tuple(calls), edges=tuple(edges), capacity_bytes=np.full(options.nodes * _NODE, CAPACITY_BYTES)
    )


def _rows(name: str, options: InstanceOptions, scale: float) -> Iterator[tuple[int, int, float, float, float, int]]:
    nodes = options.nodes
    meshes = [(start, 4) for start in range(0, nodes * _NODE, 4)]
    meshes += [(first * _NODE, run * _NODE) for run in range(1, nodes + 1) for first in range(nodes - run + 1)]
    known: dict[int, list[tuple[float, float, float, int]]] = {}
    for start, size in meshes:
        if size not in known:
            known[size] = list(_layouts(name, size, options, scale))
        for time_s, static, active, layout in known[size]:
            yield start, size, time_s, static, active, layout


def _layouts(name: str, size: int, options: InstanceOptions, scale: float) -> Iterator[tuple[float, float, float, int]]:
    for pipeline in range(1, max(options.nodes, 8) + 1):
        share = size // pipeline
        if size % pipeline or not (share in (1, 2, 4) or share % 8 == 0):
            continue
        for tensor in (1, 2, 4, 8):
            if share % tensor:
                continue
            data = share // tensor
            priced = _priced(name, (pipeline, tensor, data), options.sequences, scale)
            if priced is not None and priced[1] + priced[2] < CAPACITY_BYTES:
                yield *priced, (pipeline * 16 + tensor) * 1024 + data


def _priced(
    name: str, degrees: tuple[int, int, int], sequences: int, scale: float
) -> tuple[float, float, float] | None:
    """Seconds, static and active bytes of one layout; none where ReaLHF's rules leave it out."""
    pipeline, tensor, data = degrees
    shards = pipeline * tensor
    weights = 4 * _PARAMETERS * scale / shards
    if name.endswith("train"):
        if tensor * data > _NODE or 2 * data * pipeline * _MINI_BATCHES > sequences:
            return None
        per_round = sequences / (2 * pipeline * data)
        rounds = 3 * pipeline - 1 if pipeline > 1 else 2
        time_s = 4 * _forward_s(per_round, tensor, scale) / pipeline * rounds + 0.08 * scale / shards
        states = 20 * _PARAMETERS * scale / (shards * data)
        return _discounted(time_s, pipeline, tensor), weights + states, per_round * _PROMPT * _HIDDEN * 2 / tensor
    if data * pipeline > sequences:
        return None
    per_round = sequences / (pipeline * data)
    prefill_s = _forward_s(per_round, tensor, scale) / pipeline * (2 * pipeline - 1)
    if not name.endswith("generate"):
        frozen = name in ("reference", "reward")
        return _discounted(prefill_s, pipeline, tensor), 0.0 if frozen else weights, weights if frozen else 0.0
    step_s = _STEP_S[tensor] + (_WEIGHTS_S + per_round * _CONTEXT_S) / tensor
    time_s = prefill_s + step_s * scale * (_TOKENS - 1)
    cache = 4 * sequences * (_PROMPT + _TOKENS) * _HIDDEN * _LAYERS / (shards * data)
    return time_s * (1 - 0.03 * min(data * tensor, 8) * (data * tensor > 1)), weights, cache


def _forward_s(sequences: float, tensor: int, scale: float) -> float:
    return sequences * _FORWARD_S * scale * _SHARD_COST[tensor] / tensor


def _discounted(time_s: float, pipeline: int, tensor: int) -> float:
    return time_s * (1 - 0.03 * tensor * (tensor > 1)) * (1 + 0.01 * pipeline * (pipeline > 8))
