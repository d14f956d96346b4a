"""What the benchmarks price: GPT-3 175B on DGX H100 nodes, the whole legal space of Megatron-LM."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from costmodels.context import CostContext
    from costmodels.plan import PlanBatch

MODEL = "gpt3-175b"
JOB = {"sequence_length": 2048, "global_batch_size": 12288, "precision": "bf16"}
CLUSTERS = {1024: "128x8xH100-80GB", 16384: "2048x8xH100-80GB"}


def use_one_core() -> None:
    """Bind this process to one core, and numerical libraries to one thread; call before importing NumPy."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def space(devices: int) -> tuple["PlanBatch", "CostContext"]:
    """The whole legal space of the job on that many devices, and what it is priced in."""
    from planner.request import Options, cost_context, resolve_request, setting_of
    from planner.space import plan_space

    request = resolve_request(MODEL, CLUSTERS[devices], JOB, None, Options())
    found = plan_space(setting_of(request), domain_devices=request.cluster.domain_devices)
    return found.plans, cost_context(request)
