"""DeepSpeed: its JSON configuration, for a script of one's own or for the Hugging Face Trainer.

Target: DeepSpeed 0.19 (``deepspeed/runtime/config.py``, ``zero/config.py``) and, for the Trainer, transformers 5. The
tests feed DeepSpeed's own reader where it is installed. Stages and experts are said in a script, not there.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from costmodels.plan import ContextKind, ExecutionPlan, PlanBatch, Recompute
from planner.exporters.exported import (
    Check,
    Exported,
    Gap,
    Target,
    finished,
    gaps,
    on_every_node,
    torchrun,
)
from planner.exporters.trainer import attention_check, script_notes, trainer_arguments, trainer_gaps
from planner.results import Request
from planner.rules.base import HUGGINGFACE

TARGET = Target(name="deepspeed", title="DeepSpeed 0.19", stacks=("deepspeed", "hf-trainer"))
CONFIG = "ds_config.json"
_FORMATS = ("fp32", "fp16", "bf16")
_OWN_OPTIMIZERS = {"adamw": "AdamW"}  # others come from the script


def export(plan: ExecutionPlan, request: Request) -> Exported:
    """The configuration and the launch of a script that reads it.

    Args:
        plan: The plan.
        request: Model, job, the devices that the plan uses, and the stack it was priced for.
    """
    trainer = request.stack.framework == HUGGINGFACE
    if trainer:
        command = [*torchrun(request.cluster), ["train.py"]]
        command += [["--deepspeed", CONFIG], *trainer_arguments(plan, request)]
        command += [["--gradient_checkpointing", "true"]] if plan.recompute == Recompute.FULL else []
        starts = on_every_node(request.cluster)
    else:
        command, starts = _launcher(request), _hosts(request)
    return finished(
        TARGET,
        plan,
        request,
        command=command,
        files={CONFIG: written(configuration(plan, request, trainer=trainer))},
        gaps=unsupported(plan, request),
        left_to_you=(*script_notes(request), *(() if trainer else _in_script(plan, request)), *starts),
    )


def written(configuration: Mapping[str, Any]) -> str:
    """A configuration as the text of its file."""
    return json.dumps(configuration, indent=2) + "\n"


def _launcher(request: Request) -> list[list[str]]:
    nodes, devices = request.cluster.num_nodes, request.cluster.node.devices_per_node
    hosts = [["--hostfile", "hostfile"]] if nodes > 1 else []
    sizes = ["--num_nodes", str(nodes), "--num_gpus", str(devices)]
    return [["deepspeed", *sizes], *hosts, ["train.py"], ["--deepspeed", "--deepspeed_config", CONFIG]]


def _hosts(request: Request) -> tuple[str, ...]:
    words = f"hostfile names the {request.cluster.num_nodes} nodes, a line each: NAME slots="
    return (f"{words}{request.cluster.node.devices_per_node}",) if request.cluster.num_nodes > 1 else ()


def configuration(plan: ExecutionPlan, request: Request, *, trainer: bool) -> dict[str, Any]:
    """The file that DeepSpeed reads, or the Trainer hands to it.

    Args:
        plan: The plan.
        request: What is trained.
        trainer: Whether the Hugging Face Trainer fills in what is ``auto`` and makes optimizers DeepSpeed has not.
    """
    job = request.job
    # DeepSpeedConfig checks it against all ranks, AutoTP's among them (deepspeed/runtime/config.py, _batch_assertion).
    found: dict[str, Any] = {"train_batch_size": job.global_batch_size} if plan.tensor_parallel == 1 else {}
    found |= {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.num_microbatches,
        "zero_optimization": _zero(plan),
    }
    if _weights(request) != "fp32":
        found[_weights(request)] = _sixteen_bits(request)
        if job.gradient_dtype:
            found["data_types"] = {"grad_accum_dtype": job.gradient_dtype}
    if job.optimizer in _OWN_OPTIMIZERS and (plan.offload_optimizer or not trainer):
        settings = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
        found["optimizer"] = {"type": _OWN_OPTIMIZERS[job.optimizer], **({"params": settings} if trainer else {})}
    elif plan.zero_stage:
        found["zero_allow_untested_optimizer"] = True
    if plan.tensor_parallel > 1:
        found["tensor_parallel"] = {"autotp_size": plan.tensor_parallel}
    if plan.context_parallel > 1:
        found["sequence_parallel_size"] = plan.context_parallel
    if plan.offload_activations and not trainer:
        found["activation_checkpointing"] = {"cpu_checkpointing": True}
    return found


def _zero(plan: ExecutionPlan) -> dict[str, Any]:
    """ZeRO's section; overlap only means gradients at stages 1 and 2, and gathers ahead at stage 3."""
    found: dict[str, Any] = {"stage": plan.zero_stage, "overlap_comm": plan.overlap_grad_reduce}
    if plan.zero_stage == 3 and not plan.overlap_param_gather:
        found["stage3_prefetch_bucket_size"] = 0
    if plan.offload_optimizer:
        found["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if plan.offload_parameters:
        found["offload_param"] = {"device": "cpu", "pin_memory": True}
    return found


def _weights(request: Request) -> str:
    """Format that weights are stored in."""
    return "fp32" if request.job.precision == "tf32" else request.job.precision


def _sixteen_bits(request: Request) -> dict[str, Any]:
    job = request.job
    found: dict[str, Any] = {"enabled": True}
    if _weights(request) == "bf16" and job.master_dtype == "bf16":
        found["bf16_master_weights_and_grads"] = True
        found["bf16_optimizer_states"] = job.state_dtype == "bf16"
    return found


def unsupported(plan: ExecutionPlan, request: Request) -> tuple[Gap, ...]:
    """What a plan, its job or its model has that the target cannot express."""
    checks = plan_checks(PlanBatch.from_plans([plan]), request)
    trained = trainer_gaps(request) if request.stack.framework == HUGGINGFACE else ()
    return (*gaps(*checks), *_job_gaps(request), *trained)


def plan_checks(plans: PlanBatch, request: Request) -> tuple[Check, ...]:
    """What it has not, of plans."""
    trainer = request.stack.framework == HUGGINGFACE
    ring = (plans.context_parallel > 1) & (plans.context_kind != int(ContextKind.ULYSSES))
    ddp, stays = trainer & (plans.zero_stage == 0), trainer & plans.offload_activations
    degree = plans.zero_shard_degree > 0
    return (
        (ring, "plan.context_kind", "sequences are split by Ulysses only", "context_kind ulysses"),
        (ddp, "plan.zero_stage", "0 was priced as DDP", "zero 1, or --format accelerate"),
        (degree, "plan.zero_shard_degree", "0.19.7 has no shard degree (MiCS)", "hsdp 0"),
        attention_check(request, np.zeros(len(plans), dtype=np.bool_)),
        (stays, "plan.offload_activations", "the Trainer's checkpoints stay on the device", "--format accelerate"),
    )


def _job_gaps(request: Request) -> tuple[Gap, ...]:
    job, weights = request.job, _weights(request)
    halved = (weights, job.master_dtype) == ("bf16", "bf16") and job.state_dtype in ("fp32", "bf16")
    states = job.optimizer == "adamw" and not halved and (job.master_dtype, job.state_dtype) != ("fp32", "fp32")
    half = f"master weights in {job.master_dtype} with moments in {job.state_dtype} are no option"
    sums = job.gradient_dtype in ("", "fp32", weights)
    return gaps(
        (not sums, "job.gradient_dtype", f"is not {job.gradient_dtype} with {weights} weights", "leave it out"),
        (weights not in _FORMATS, "job.precision", f"there is no option for {weights}", "bf16"),
        (states, "job.master_dtype" if job.master_dtype != "fp32" else "job.state_dtype", half, "both fp32, or bf16"),
        (job.optimizer == "none", "job.optimizer", "a run has an optimizer", "adamw"),
    )


def _in_script(plan: ExecutionPlan, request: Request) -> tuple[str, ...]:
    """What the user's own script does."""
    found = ["train.py calls deepspeed.initialize, whose config is " + CONFIG]
    if request.job.optimizer not in _OWN_OPTIMIZERS:
        found.append(f"the optimizer: {request.job.optimizer}")
    if plan.recompute == Recompute.FULL:
        found.append("recomputation: model.gradient_checkpointing_enable()")
    if plan.offload_activations:
        found.append(
            "checkpoints on the host: deepspeed.checkpointing.configure, then its checkpoint() for every layer"
        )
    if plan.context_parallel > 1:
        found.append(
            "sequences over ranks: deepspeed.initialize gets mpu=UlyssesSPAttentionHF.register_with_transformers(...), "
            "and UlyssesSPDataLoaderAdapter the data (deepspeed.runtime.sequence_parallel.ulysses_sp)"
        )
    if request.job.precision == "tf32":
        found.append("TF32: torch.backends.cuda.matmul.allow_tf32 = True")
    return tuple(found)
