"""Accelerate: a YAML file for FSDP2, or DDP, and ``accelerate launch`` with the Hugging Face Trainer's arguments.

Target: accelerate 1.15 (``accelerate/commands/launch.py``, ``utils/dataclasses.py``, ``parallelism_config.py``) and
transformers 5. The tests feed Accelerate's own reader where it is installed.
"""

from typing import Any

import numpy as np
import yaml

from costmodels.plan import ContextKind, ExecutionPlan, PlanBatch, Recompute
from planner.exporters.exported import (
    Check,
    Exported,
    Gap,
    Target,
    always_overlaps,
    finished,
    gaps,
    headed,
    on_every_node,
    sharding,
)
from planner.exporters.trainer import attention_check, script_notes, trainer_arguments, trainer_gaps
from planner.results import Request
from planner.rules.base import ACCELERATE_PRECISIONS, HUGGINGFACE
from planner.rules.offload import moves_together
from profiles.hardware import ClusterSpec

TARGET = Target(
    name="accelerate",
    title="Accelerate 1.15 (FSDP2)",
    stacks=("fsdp", "fsdp-eager", "hf-trainer", "hf-trainer-compiled"),
)
CONFIG = "accelerate.yaml"
_MIXED = {"bf16": "bf16", "fp16": "fp16", "fp32": "no", "tf32": "no"}
# PyTorch's ring passes keys and values on step by step, or gathers all of them once (_AllToAllRotater and
# _AllGatherRotater of torch/distributed/tensor/experimental/_attention.py): the two kinds as they are priced.
_CONTEXT = {ContextKind.RING: "alltoall", ContextKind.ALL_GATHER: "allgather"}
_CONTEXT_NOTES = (
    "context ranks share attention without a mask, or with a causal one: no packing masks, no padding",
    "labels: a loop of one's own shifts them before ranks share them (shift_labels); the Trainer does",
)


def export(plan: ExecutionPlan, request: Request) -> Exported:
    """The file and the launch of a script that uses the Trainer.

    Args:
        plan: The plan.
        request: Model, job, the devices that the plan uses, and the stack it was priced for.
    """
    cluster = request.cluster
    checkpoints = plan.recompute == Recompute.FULL and plan.zero_stage == 0
    return finished(
        TARGET,
        plan,
        request,
        command=[
            ["accelerate", "launch", "--config_file", CONFIG],
            *placed(cluster),
            ["train.py"],
            *trainer_arguments(plan, request, shards=plan.zero_stage > 0),
            *([["--gradient_checkpointing", "true"]] if checkpoints else []),
        ],
        files={CONFIG: configuration(plan, request, TARGET)},
        gaps=unsupported(plan, request),
        left_to_you=(
            *script_notes(request, shared=plan.context_parallel > 1),
            *_shared(plan),
            *_split(plan),
            *_loaded(request),
            *_moved_in_script(plan),
            *on_every_node(cluster),
        ),
    )


def placed(cluster: ClusterSpec) -> list[list[str]]:
    """Which of several nodes this one is, and where the first is: arguments of ``accelerate launch``."""
    if cluster.num_nodes == 1:
        return []
    return [
        ["--machine_rank", '"${NODE_RANK}"', "--main_process_ip", '"${MASTER_ADDR}"'],
        ["--main_process_port", '"${MASTER_PORT:-29500}"'],
    ]


def configuration(plan: ExecutionPlan, request: Request, target: Target) -> str:
    """The text of Accelerate's file.

    Args:
        plan: The plan.
        request: What is trained, on what.
        target: What it is written for.
    """
    text = yaml.safe_dump(_configuration(plan, request), sort_keys=False)
    return headed(text, target, plan, request)


def _configuration(plan: ExecutionPlan, request: Request) -> dict[str, Any]:
    cluster = request.cluster
    alone = cluster.num_devices == 1
    found: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP" if plan.zero_stage else "NO" if alone else "MULTI_GPU",
        "mixed_precision": _MIXED.get(request.job.precision, "no"),
        "num_machines": cluster.num_nodes,
        "num_processes": cluster.num_devices,
    }
    compiled = {"fsdp": True, "hf-trainer-compiled": False}  # layer by layer, or whole
    if request.stack.name in compiled:
        regional = compiled[request.stack.name]
        found["dynamo_config"] = {"dynamo_backend": "INDUCTOR", "dynamo_use_regional_compilation": regional}
    if plan.zero_stage:
        found["fsdp_config"] = _fsdp(plan)
        found["parallelism_config"] = _parallelism(plan)
    return found


def _fsdp(plan: ExecutionPlan) -> dict[str, Any]:
    """FSDP2; which modules it wraps, the model says (``_no_split_modules``)."""
    found = {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": plan.zero_stage == 3,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_offload_params": plan.offload_optimizer or plan.offload_parameters,
        "fsdp_activation_checkpointing": plan.recompute == Recompute.FULL,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    }
    return found | ({"fsdp_activation_checkpointing_offload": True} if plan.offload_activations else {})


def _parallelism(plan: ExecutionPlan) -> dict[str, Any]:
    replicas, shard = sharding(plan)
    sizes = {
        "dp_replicate_size": replicas,
        "dp_shard_size": shard,
        "tp_size": plan.tensor_parallel,
        "cp_size": plan.context_parallel,
    }
    found: dict[str, Any] = {f"parallelism_config_{name}": size for name, size in sizes.items()}
    if plan.context_parallel > 1 and plan.context_kind in _CONTEXT:
        found["parallelism_config_cp_comm_strategy"] = _CONTEXT[plan.context_kind]
    return found


def _shared(plan: ExecutionPlan) -> tuple[str, ...]:
    """What Accelerate's guide asks of who shares a context, and what it recommends."""
    if plan.context_parallel == 1:
        return ()
    ring = (
        "cp_comm_strategy alltoall is the ring that was priced; Accelerate's guide expects allgather to be faster in "
    )
    ring += "most cases: planned for with --context-kind all_gather"
    return (*_CONTEXT_NOTES, *([ring] if plan.context_kind is ContextKind.RING else []))


def _split(plan: ExecutionPlan) -> tuple[str, ...]:
    """Accelerate splits no layer: transformers does, as it loads them."""
    words = (
        'tensor parallelism: from_pretrained(tp_plan="auto", device_mesh=...), the mesh that ParallelismConfig builds'
    )
    return (words,) if plan.tensor_parallel > 1 else ()


def _loaded(request: Request) -> tuple[str, ...]:
    """Transformers 5 loads weights in the format of the checkpoint; DeepSpeed keeps fp32 copies, Accelerate none."""
    job = request.job
    if job.trains_adapters_only or job.master_dtype != "fp32" or job.numerics.storage_bytes == 4:
        return ()
    return ("weights: from_pretrained(dtype=torch.float32), or 16 bits of a checkpoint are all there is of them",)


def _moved_in_script(plan: ExecutionPlan) -> tuple[str, ...]:
    """Accelerate moves checkpoints of FSDP2 alone."""
    words = "checkpoints on the host: trl's SFTConfig(activation_offloading=True), or torch's save_on_cpu around layers"
    return (words,) if plan.offload_activations and plan.zero_stage == 0 else ()


def unsupported(plan: ExecutionPlan, request: Request) -> tuple[Gap, ...]:
    """What a plan, its job or its model has that the target cannot express."""
    checks = plan_checks(PlanBatch.from_plans([plan]), request)
    return (*gaps(*checks), *unsupported_by_job(request))


def plan_checks(plans: PlanBatch, request: Request) -> tuple[Check, ...]:
    """What it has not, of plans."""
    c, t, d, zero = plans.context_parallel, plans.tensor_parallel, plans.data_parallel, plans.zero_stage
    whole = np.isin(plans.recompute, (Recompute.NONE, Recompute.FULL))
    hybrid = (t * c > 1) & (d > 1) & ((zero == 0) | (plans.shard_degree <= c))
    half = (zero > 0) & ~moves_together(plans)
    other = "--format deepspeed" if request.stack.framework == HUGGINGFACE else "both on, or both off"
    unsharded = (t > 1) & (zero == 0)
    splits = plans.tensor_parallel_overlap & (t > 1)
    lone = (zero > 0) & (d * c == 1)
    # Beside adapters the shards of whole weights are little, and on the host they take no room.
    whole_weights = request.stack.framework == HUGGINGFACE and not request.job.trains_adapters_only
    partly = (zero == 2) & whole_weights & ~plans.offload_parameters & ~plans.offload_optimizer
    sharded = "zero 3, or --format deepspeed" if whole_weights else "zero 2 or 3, or --format deepspeed"
    windows = (c > 1) & (request.model.sliding_window > 0)
    paged = (zero > 0) & request.job.paged_optimizer
    return (
        (lone, "plan.zero_stage", "a single replica is not sharded", "zero 0, or --format deepspeed"),
        (plans.pipeline_parallel > 1, "plan.pipeline_parallel", "there are no pipeline stages", "pp 1"),
        (plans.expert_parallel > 1, "plan.expert_parallel", "there is no expert parallelism", "ep 1"),
        (unsharded, "plan.tensor_parallel", "goes with FSDP2 alone", "tp 1, or zero 3"),
        (zero == 1, "plan.zero_stage", "FSDP2 shards gradients too", sharded),
        (
            partly,
            "plan.zero_stage",
            "what keeps whole weights is priced as DeepSpeed's",
            "zero 3, or --format deepspeed",
        ),
        (windows, "plan.context_parallel", "layers with windows are not shared", "cp 1"),
        attention_check(request, c > 1),
        (hybrid, "plan.zero_shard_degree", "tp and cp need shards over data-parallel ranks", "hsdp 0"),
        (half, "plan.offload_parameters", "weights and optimizer are on the host, or neither", other),
        (~whole, "plan.recompute", "every layer is recomputed or none", "recompute none or full"),
        (splits, "plan.tensor_parallel_overlap", "tensor-parallel traffic is not split", "--format torchtitan"),
        (~always_overlaps(plans), "plan.overlap_grad_reduce", "transfers of FSDP2 and DDP overlap", "overlap on"),
        (paged, "job.paged_optimizer", "bitsandbytes knows no shards of FSDP2", "zero 0, or --format deepspeed"),
    )


def unsupported_by_job(request: Request) -> tuple[Gap, ...]:
    """What it has not, of jobs."""
    job = request.job
    state = job.state_dtype != "fp32" and job.optimizer == "adamw"
    found = gaps(
        (
            job.precision not in ACCELERATE_PRECISIONS,
            "job.precision",
            f"needs code of one's own for {job.precision}",
            "bf16",
        ),
        (job.gradient_dtype not in ("", "fp32"), "job.gradient_dtype", f"is not {job.gradient_dtype}", "leave it out"),
        (job.master_dtype != "fp32", "job.master_dtype", "weights are loaded in fp32 and cast", "fp32"),
        (state, "job.state_dtype", "moments have the format of the weights", "fp32, or optimizer adamw8bit"),
    )
    return (*found, *trainer_gaps(request))
