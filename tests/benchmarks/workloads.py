"""What the benchmarks price: GPT-3 175B on DGX H100 nodes, the whole legal space of Megatron-LM."""

import os
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from costmodels.context import CostContext
    from costmodels.plan import IntArray, PlanBatch
    from costmodels.stage_plans.plan import StagePlanBatch
    from costmodels.stage_plans.prices import StagePrices

MODEL = "gpt3-175b"
JOB = {"sequence_length": 2048, "global_batch_size": 12288, "precision": "bf16"}
STAGED_MODEL = "qwen2.5-32b"  # 64 layers
STAGED_CLUSTER = "4x8xA100-80GB+4x8xH100"
STAGED_JOB = {"sequence_length": 4096, "global_batch_size": 256}
# Experts and long sequences multiply the plans: 1.8 million.
MOE_MODEL = "deepseek-v3"
MOE_JOB = {"sequence_length": 131072, "global_batch_size": 1024}
CLUSTERS = {1024: "128x8xH100-80GB", 16384: "2048x8xH100-80GB"}


def use_one_core() -> None:
    """Bind this process to one core, and numerical libraries to one thread; call before importing NumPy."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def space(devices: int) -> tuple["PlanBatch", "CostContext"]:
    """The whole legal space of the job on that many devices, and what it is priced in."""
    from planner.question.request import Options, cost_context, resolve_request, setting_of
    from planner.space.enumeration import plan_space

    request = resolve_request(MODEL, CLUSTERS[devices], JOB, None, Options())
    found = plan_space(setting_of(request), domain_devices=request.cluster.domain_devices)
    return found.plans, cost_context(request)


def staged_plans(count: int, *, stages: int, microbatches: int = 64) -> tuple["StagePlanBatch", "StagePrices"]:
    """Random plans whose stages differ in device, degrees, layers and recomputation, as an annealer would try them."""
    import numpy as np

    from costmodels.stage_plans.plan import StagePlanBatch
    from planner.question.request import Options, cost_context, resolve_request, setting_of
    from planner.search.stage_space import stage_space
    from profiles.mixed_cluster import parse_mixed_cluster

    mixed = parse_mixed_cluster(STAGED_CLUSTER)
    requests = [resolve_request(STAGED_MODEL, group, STAGED_JOB, None, Options()) for group in mixed.groups]
    space = stage_space(
        [setting_of(request) for request in requests],
        [cost_context(request) for request in requests],
        joint={pair: cost_context(requests[0], mixed.joint(*pair)) for pair in combinations(range(len(requests)), 2)},
    )
    random, layers = np.random.default_rng(0), requests[0].model.num_layers
    rows = space.rows(microbatches)
    rows = rows[space.configs.num_devices[rows] <= mixed.num_devices // stages]
    cuts = np.sort(np.argsort(random.random((count, layers - 1)), axis=1)[:, : stages - 1] + 1, axis=1)
    held: IntArray = np.diff(np.pad(cuts, ((0, 0), (1, 1)), constant_values=((0, 0), (0, layers))), axis=1)
    full = random.integers(0, held + 1)
    plans = StagePlanBatch.from_columns(
        np.full(count, stages),
        random.choice(rows, (count, stages)),
        held,
        full_dense=full,
        selective_dense=random.integers(0, held - full + 1),
        num_microbatches=microbatches,
    )
    return plans, space.prices
