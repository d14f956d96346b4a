"""nanotron: a YAML file for its ``run_train.py``.

Target: nanotron as its repository has it in 2025 (``src/nanotron/config/config.py``, ``parallelism_config.py`` and
``models_config.py``, read at commits 00708b80 and 19f88fbe); the package 0.4 of PyPI is of 2024 and knows fewer fields.
Its reader is strict (``dacite.Config(strict=True)``): a field that it does not know ends the run, and the first class
of models that knows all fields of ``model_config`` is the one that is built.
"""

from typing import Any

import numpy as np
import yaml

from costmodels.gradient_formats import gradient_format
from costmodels.plan import BoolArray, ExecutionPlan, PlanBatch, Recompute, Schedule
from costmodels.stages.balance import balanced_stage_layers
from costmodels.stages.table import stage_table
from planner.exporters.exported import (
    Check,
    Exported,
    Gap,
    Target,
    end_checks,
    finished,
    gaps,
    headed,
    on_every_node,
    torchrun,
    whole_steps,
)
from planner.results import Request
from planner.rules.formats import weights_format
from profiles.model import ModelSpec

TARGET = Target(name="nanotron", title="nanotron (its repository in 2025)", stacks=("nanotron",))
CONFIG = "config.yaml"
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_PRECISIONS = ("bf16", "fp32")  # its trainer scales no loss, which gradients in fp16 need
_ENGINES = {Schedule.ONE_F_ONE_B: "1f1b", Schedule.GPIPE: "afab"}
_TRIAL_STEPS = 20  # as long as a run is tried whose length is not given


def export(plan: ExecutionPlan, request: Request) -> Exported:
    """The file and the launch of ``run_train.py``.

    Args:
        plan: The plan.
        request: Model, job, the devices that the plan uses, and the stack it was priced for.
    """
    text = yaml.safe_dump(_configuration(plan, request), sort_keys=False)
    return finished(
        TARGET,
        plan,
        request,
        command=[*torchrun(request.cluster), ["run_train.py", "--config-file", CONFIG]],
        files={CONFIG: headed(text, TARGET, plan, request)},
        environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"},  # run_train.py asks for it
        gaps=unsupported(plan, request),
        left_to_you=(*_yours(request), *on_every_node(request.cluster)),
    )


def _configuration(plan: ExecutionPlan, request: Request) -> dict[str, Any]:
    job = request.job
    steps = whole_steps(job) or _TRIAL_STEPS
    return {
        "general": {"project": "planner", "run": "plan", "seed": 42},
        "parallelism": _parallelism(plan),
        "tokens": {
            "sequence_length": job.sequence_length,
            "train_steps": steps,
            "micro_batch_size": plan.micro_batch_size,
            "batch_accumulation_per_replica": plan.num_microbatches,
        },
        "model": {
            "dtype": _DTYPES[weights_format(job)],
            "init_method": {"std": 0.02},
            "model_config": _model(plan, request),
        },
        "optimizer": _optimizer(plan, request),
        "checkpoints": {"checkpoints_path": "checkpoints", "checkpoint_interval": steps},
        "logging": {"iteration_step_info_interval": 1},
        # Without a data set it trains on tokens that it makes up (run_train.py, dummy_infinite_data_generator).
        "data_stages": [{"name": "trial", "start_training_step": 1, "data": {"dataset": None, "seed": 42}}],
    }


def _parallelism(plan: ExecutionPlan) -> dict[str, Any]:
    """Degrees; ``REDUCE_SCATTER`` is sequence parallelism."""
    return {
        "dp": plan.data_parallel,
        "pp": plan.pipeline_parallel,
        "tp": plan.tensor_parallel,
        "context_parallel_size": plan.context_parallel,
        "expert_parallel_size": plan.expert_parallel,
        "pp_engine": _ENGINES[plan.schedule],
        "tp_mode": "REDUCE_SCATTER" if plan.sequence_parallel else "ALL_REDUCE",
        "tp_linear_async_communication": plan.tensor_parallel_overlap,
        "recompute_layer": plan.recompute == Recompute.FULL,
    }


def _model(plan: ExecutionPlan, request: Request) -> dict[str, Any]:
    """The shape, as a Llama; as a Qwen 2, whose class has biases, windows and context ranks, where it needs these."""
    model, job = request.model, request.job
    shape: dict[str, Any] = {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": max(model.max_sequence_length, job.sequence_length),
        "tie_word_embeddings": model.tie_word_embeddings,
    }
    if not (model.qkv_bias or model.sliding_window or plan.context_parallel > 1):
        return {"is_llama_config": True, **shape}
    # Of its kernels (nn/attention.py) the ring is FlashAttention's.
    kernel = "ring" if plan.context_parallel > 1 else "flash_attention_2"
    windows = {"sliding_window_size": model.sliding_window} if model.sliding_window else {}
    return {
        "is_qwen2_config": True,
        **shape,
        "attention_bias": model.qkv_bias,
        "_attn_implementation": kernel,
        **windows,
    }


def _optimizer(plan: ExecutionPlan, request: Request) -> dict[str, Any]:
    job = request.job
    adam = {"adam_eps": 1e-8, "adam_beta1": 0.9, "adam_beta2": 0.95, "torch_adam_is_fused": True}
    return {
        "optimizer_factory": {"name": "sgd"} if job.optimizer == "sgd" else {"name": "adamW", **adam},
        "zero_stage": plan.zero_stage,
        "weight_decay": 0.01,
        "clip_grad": 1.0,
        "accumulate_grad_in_fp32": _accumulates_longer(request),
        "learning_rate_scheduler": {
            "learning_rate": 1e-4,
            "lr_warmup_steps": 0,
            "lr_warmup_style": "linear",
            "lr_decay_style": "cosine",
            "min_decay_lr": 1e-5,
        },
    }


def _accumulates_longer(request: Request) -> bool:
    """Whether 16-bit weights have gradients and a copy in fp32: nanotron has both or neither."""
    return weights_format(request.job) != "fp32" and gradient_format(request.job, request.stack) == "fp32"


def unsupported(plan: ExecutionPlan, request: Request) -> tuple[Gap, ...]:
    """What a plan, its job or its model has that the target cannot express."""
    checks = plan_checks(PlanBatch.from_plans([plan]), request)
    return (*_model_gaps(request.model), *gaps(*checks), *_job_gaps(request))


def plan_checks(plans: PlanBatch, request: Request) -> tuple[Check, ...]:
    """What it has not, of plans."""
    windows = (plans.context_parallel > 1) & (request.model.sliding_window > 0)
    waits = ~plans.overlap_grad_reduce & (plans.data_parallel > 1)
    staged = _laid_out_otherwise(plans, request.model)
    stages = int(plans.pipeline_parallel.max(initial=1))
    own = balanced_stage_layers(request.model, stages)
    some = ", ".join(str(count) for count in own[:8]) + ", ..." * (stages > 8)
    there = f"layers go to stages by their cost and that of the output layer, here {some}"
    hint = f"pp 1{f', or first_stage_layers {own[0]}' if stages == 2 else ''}"
    return (
        (staged, "plan.pipeline_parallel", there, hint),
        (windows, "plan.context_parallel", "its ring knows no windows", "cp 1"),
        (waits, "plan.overlap_grad_reduce", "gradients are summed as the backward pass makes them", "overlap on"),
    )


def _laid_out_otherwise(plans: PlanBatch, model: ModelSpec) -> BoolArray:
    """(N,) whether the layers that stages were priced with are others than those that nanotron gives them."""
    layers, p = stage_table(plans, model, full=True).layers, plans.pipeline_parallel
    found = np.zeros(len(plans), dtype=np.bool_)
    for stages in np.unique(p).tolist():
        rows = np.flatnonzero(p == stages)
        found[rows] = (layers[rows, :stages] != balanced_stage_layers(model, stages)).any(axis=1)
    return found


def _model_gaps(model: ModelSpec) -> tuple[Gap, ...]:
    """What is neither a Llama nor a Qwen 2."""
    heads = model.head_dim * model.num_attention_heads
    some = bool(model.sliding_window) and model.windowed_layers < model.num_layers
    wide = f"heads are as wide as hidden_size / num_attention_heads; got {model.head_dim}"
    experts = "its mixtures of experts are written otherwise from version to version"
    return gaps(
        (model.moe is not None, "model.moe", experts, "--format megatron-lm"),
        (model.latent_attention is not None, "model.latent_attention", "there is none", "--format megatron-lm"),
        (heads != model.hidden_size, "model.head_dim", wide, ""),
        (not model.gated_mlp, "model.gated_mlp", "the MLP has a gate", ""),
        (not model.rms_norm, "model.rms_norm", "norms are RMSNorm", ""),
        (model.norms_per_layer != 2, "model.norms_per_layer", f"a layer has 2 norms; got {model.norms_per_layer}", ""),
        (bool(model.learned_positions), "model.learned_positions", "positions are rotary", ""),
        (model.parallel_residual, "model.parallel_residual", "the MLP follows attention", ""),
        (model.qk_norm, "model.qk_norm", "queries and keys have no norms", ""),
        (model.attention_softcap, "model.attention_softcap", "attention caps no logits", ""),
        (model.attention_sinks, "model.attention_sinks", "attention has no sinks", ""),
        (model.attention_output_gate, "model.attention_output_gate", "attention has no gate", ""),
        (model.head_gates, "model.head_gates", "attention has no gate", ""),
        (bool(model.value_head_dim), "model.value_head_dim", "values are as wide as keys", ""),
        (model.mlp_bias, "model.mlp_bias", "the MLP has no biases", ""),
        (model.attention_out_bias, "model.attention_out_bias", "the output of attention has no bias", ""),
        *end_checks(model),
        (some, "model.windowed_layers", f"all layers have a window; got {model.windowed_layers}", ""),
    )


def _job_gaps(request: Request) -> tuple[Gap, ...]:
    """What its trainer has not; formats of master weights and moments come with that of gradients."""
    job = request.job
    short, longer = weights_format(job) != "fp32", _accumulates_longer(request)
    master = short and (job.master_dtype == "fp32") != longer
    copies = "fp32 beside gradients in fp32, and none beside others"
    state = job.optimizer == "adamw" and job.state_dtype != ("fp32" if longer or not short else weights_format(job))
    fuses = "a kernel over logits in fp32 is all there is"
    return gaps(
        (job.precision not in _PRECISIONS, "job.precision", f"is bf16 or fp32; got {job.precision}", "bf16"),
        (job.optimizer == "none", "job.optimizer", "is adamw or sgd; got none", "adamw"),
        (master, "job.master_dtype", f"{copies}; got {job.master_dtype}", "fp32, and gradient_dtype fp32"),
        (state, "job.state_dtype", "moments have the format of what they update", "fp32"),
        (job.attention != "flash", "job.attention", "attention is FlashAttention", "flash"),
        (
            job.attention_library not in ("", "flash_2"),
            "job.attention_library",
            f"is FlashAttention-2; got {job.attention_library}",
            "flash_2",
        ),
        (job.dropout, "job.dropout", "its models have none", "no dropout"),
        (job.fuses_loss, "job.fused_cross_entropy", fuses, "leave it out"),
        (job.fp8_activation, "job.fp8_activation", "there is none", "leave it out"),
        (job.fp8_attention, "job.fp8_attention", "there is none", "leave it out"),
    )


def _yours(request: Request) -> tuple[str, ...]:
    job = request.job
    steps = "" if job.train_tokens else f"tokens.train_steps (it tries {_TRIAL_STEPS}), "
    found = [
        "run train.sh where nanotron is checked out: run_train.py is no part of its package, and package 0.4 of PyPI "
        "is older than fields of config.yaml",
        f"{steps}learning rates, weight decay and checkpoints: as config.yaml tries them",
        "data: data_stages of config.yaml, which trains on made-up tokens, and tokenizer (tokenizer_name_or_path)",
        "what does not change the cost: rope_theta, rms_norm_eps, the spread of first weights (init_method)",
    ]
    if job.task == "full":
        found.append("the weights to start from: init_method with path in place of std")
    return tuple(found)
