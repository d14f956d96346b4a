"""torchtitan: options of its trainer for one of its model configurations.

Target: torchtitan 0.3.0, whose ``--section.option`` its later versions are to drop (``torchtitan/config/README.md``).
The tests feed its own parser where it is installed.
"""

from dataclasses import replace
from functools import cache

from costmodels.energy_cost import steps_in_run
from costmodels.plan import ContextKind, ExecutionPlan, PlanBatch, Recompute, Schedule
from costmodels.stages import stage_table
from planner.exporters.exported import (
    REST,
    Exported,
    Gap,
    Target,
    always_overlaps,
    finished,
    gaps,
    on_every_node,
    sharding,
    torchrun,
)
from planner.results import Request
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.model import ModelSpec
from profiles.model_presets import resolve_model

TARGET = Target(name="torchtitan", title="torchtitan 0.3.0", stacks=("fsdp", "fsdp-eager"))
# Model of the catalogue to torchtitan's module and, by precision, its configuration (its config_registry.py files).
_RECIPES: dict[str, tuple[str, dict[str, str]]] = {
    "llama-3.1-8b": ("llama3", {"bf16": "llama3_8b", "mxfp8": "llama3_8b_mxfp8"}),
    "llama-3.1-70b": ("llama3", {"bf16": "llama3_70b"}),
    "llama-3.1-405b": ("llama3", {"fp8": "llama3_405b"}),
    "qwen3-0.6b": ("qwen3", {"bf16": "qwen3_0_6b"}),
    "qwen3-1.7b": ("qwen3", {"bf16": "qwen3_1_7b"}),
    "qwen3-14b": ("qwen3", {"bf16": "qwen3_14b"}),
    "qwen3-32b": ("qwen3", {"bf16": "qwen3_32b"}),
    "qwen3-30b-a3b": ("qwen3", {"bf16": "qwen3_30b_a3b"}),
    "deepseek-v2-lite": ("deepseek_v3", {"bf16": "deepseek_v3_16b"}),
    "deepseek-v3": ("deepseek_v3", {"bf16": "deepseek_v3_671b", "fp8": "deepseek_v3_671b_float8"}),
    "gpt-oss-20b": ("gpt_oss", {"bf16": "gpt_oss_20b"}),
    "gpt-oss-120b": ("gpt_oss", {"bf16": "gpt_oss_120b"}),
}
_CHECKPOINTING = {Recompute.NONE: "none", Recompute.SELECTIVE: "selective"}
_SCHEDULES = {Schedule.GPIPE: "GPipe", Schedule.ZERO_BUBBLE_V: "ZBVZeroBubble"}


def export(plan: ExecutionPlan, request: Request) -> Exported:
    """The launch of torchtitan's trainer that runs a plan.

    Args:
        plan: The plan.
        request: Model, job, the devices that the plan uses, and the stack it was priced for.

    Raises:
        SpecError: If torchtitan has no configuration of the model.
    """
    module, recipes = _recipe(request.model)
    config = recipes.get(request.job.precision, next(iter(recipes.values())))
    options = {**_training(plan, request), **_parallelism(plan, request)}
    command = [*torchrun(request.cluster), ["-m", "torchtitan.train"], ["--module", module, "--config", config]]
    command += [_option(name, value) for name, value in options.items()]
    # A choice between kinds of checkpointing comes behind all options, the user's too.
    command += [[REST], [f"activation-checkpoint:{_CHECKPOINTING.get(plan.recompute, 'full')}"]]
    steps = () if request.job.train_tokens else ("the number of steps: --training.steps",)
    return finished(
        TARGET,
        plan,
        request,
        command=command,
        gaps=(*_gaps(plan, request, recipes), *_job_gaps(request)),
        left_to_you=(
            f"the tokenizer of {request.model.name} in --hf_assets_path, data, learning rate: as {config} has them",
            *steps,
            *on_every_node(request.cluster),
        ),
    )


def _option(name: str, value: str | bool) -> list[str]:
    """An option as its parser reads it: what is true or false is in its name."""
    if isinstance(value, str):
        return [f"--{name}", value]
    section, _, field = name.rpartition(".")
    return [f"--{name}" if value else f"--{section}.no-{field}"]


def _recipe(model: ModelSpec) -> tuple[str, dict[str, str]]:
    """The module and the configurations of a model of that shape.

    Raises:
        SpecError: If there is none.
    """
    recipe = _recipes().get(_shape(model))
    if recipe is None:
        problem = f"torchtitan 0.3.0 has no configuration of {model.name}"
        raise SpecError("model", problem, f"one of {', '.join(_RECIPES)}; or --format accelerate")
    return recipe


@cache
def _recipes() -> dict[ModelSpec, tuple[str, dict[str, str]]]:
    catalog = default_catalog()
    return {_shape(resolve_model(name, catalog, allow_paths=False).spec): each for name, each in _RECIPES.items()}


def _shape(model: ModelSpec) -> ModelSpec:
    return replace(model, name="", max_sequence_length=0, published_parameters=None, source="")


def _training(plan: ExecutionPlan, request: Request) -> dict[str, str | bool]:
    """Batch, formats, compilation; with pipeline stages a rank takes all its micro-batches in one go."""
    job, piped = request.job, plan.pipeline_parallel > 1
    compiles = request.stack.name == "fsdp"
    overlap = plan.tensor_parallel_overlap and plan.tensor_parallel > 1 and compiles
    found: dict[str, str | bool] = {
        "training.local_batch_size": str(plan.micro_batch_size * (plan.num_microbatches if piped else 1)),
        "training.global_batch_size": str(job.global_batch_size),
        "training.seq_len": str(job.sequence_length),
        "training.mixed_precision_param": "float32" if job.precision == "fp32" else "bfloat16",
        "training.enable_cpu_offload": plan.offload_optimizer,
        "training.disable_cuda_graphs": True,  # as priced; and it has none of pipeline stages
        "compile.enable": compiles,
        "compile.components": "model,loss",
        "compile.enable_async_tensor_parallel": overlap,
    }
    steps = steps_in_run(job)
    if steps is not None:
        found["training.steps"] = str(max(round(steps), 1))
    if job.state_dtype == "bf16":
        found["optimizer.implementation"] = "fused_opt_states_bf16"
    return found


def _parallelism(plan: ExecutionPlan, request: Request) -> dict[str, str | bool]:
    """Degrees, and how stages are cut."""
    replicas, shard = sharding(plan)
    found: dict[str, str | bool] = {
        "data_parallel_replicate_degree": str(replicas),
        "data_parallel_shard_degree": str(shard),
        "fsdp_reshard_after_forward": "never" if plan.zero_stage == 2 else "always",
        "tensor_parallel_degree": str(plan.tensor_parallel),
        "enable_sequence_parallel": plan.sequence_parallel or plan.tensor_parallel == 1,
        "context_parallel_degree": str(plan.context_parallel),
        "expert_parallel_degree": str(plan.expert_parallel),
        "pipeline_parallel_degree": str(plan.pipeline_parallel),
    }
    if plan.pipeline_parallel > 1:
        looped = "Interleaved1F1B" if plan.virtual_stages > 1 else "1F1B"
        found["pipeline_parallel_schedule"] = _SCHEDULES.get(plan.schedule, looped)
        found["pipeline_parallel_microbatch_size"] = str(plan.micro_batch_size)
        found["pipeline_parallel_layers_per_stage"] = str(-(-request.model.num_layers // _chunks(plan)))
        found["pipeline_parallel_first_stage_less_layers"] = "0"
        found["pipeline_parallel_last_stage_less_layers"] = "0"
    return {f"parallelism.{name}": value for name, value in found.items()}


def _chunks(plan: ExecutionPlan) -> int:
    return plan.pipeline_parallel * plan.schedule.chunks(plan.virtual_stages)


def _splits_alike(plan: ExecutionPlan, request: Request) -> bool:
    """Whether torchtitan gives every rank as many layers as the plan: the first chunks take the remainder."""
    layers, chunks, p = request.model.num_layers, _chunks(plan), plan.pipeline_parallel
    if -(-layers // -(-layers // chunks)) != chunks:  # it derives the number of chunks from their length
        return False
    sizes = [layers // chunks + (index < layers % chunks) for index in range(chunks)]
    folded = plan.schedule is Schedule.ZERO_BUBBLE_V
    owner = [min(index, chunks - 1 - index) if folded else index % p for index in range(chunks)]
    ranks = [sum(size for size, rank in zip(sizes, owner, strict=True) if rank == stage) for stage in range(p)]
    priced = stage_table(PlanBatch.from_plans([plan]), request.model, full=True).layers[0]
    return ranks == [int(count) for count in priced]


def _gaps(plan: ExecutionPlan, request: Request, recipes: dict[str, str]) -> tuple[Gap, ...]:
    c, t = plan.context_parallel, plan.tensor_parallel
    uneven = plan.pipeline_parallel > 1 and not _splits_alike(plan, request)
    chunks = f"its rule splits {request.model.num_layers} layers over {_chunks(plan)} chunks otherwise"
    precisions = (*recipes, *(("fp32",) if "bf16" in recipes else ()))
    ring = c > 1 and plan.context_kind != ContextKind.ALL_GATHER
    half = plan.offload_optimizer != plan.offload_parameters
    eager = plan.tensor_parallel_overlap and t > 1 and request.stack.name != "fsdp"
    etp = plan.expert_parallel > 1 and plan.expert_tensor_parallel > 1
    there = request.job.precision in precisions
    return gaps(
        (not there, "job.precision", f"no configuration of {request.model.name} has it", " or ".join(precisions)),
        (etp, "plan.expert_tensor_parallel", "0.3.0 splits no expert's matrices", "etp 1"),
        (bool(plan.zero_shard_degree % c), "plan.zero_shard_degree", f"shards span whole groups of cp {c}", "hsdp 0"),
        (ring, "plan.context_kind", "0.3.0 gathers keys and values", "context_kind all_gather"),
        (uneven, "plan.pipeline_parallel", chunks, "pp x vpp that divides the layers"),
        (plan.recompute == Recompute.BLOCK, "plan.recompute", "all layers are recomputed or none", "full or none"),
        (plan.offload_activations, "plan.offload_activations", "checkpoints stay on the device", "off"),
        (half, "plan.offload_parameters", "weights and optimizer are on the host, or neither", "both on, or both off"),
        (eager, "plan.tensor_parallel_overlap", "needs torch.compile", "framework fsdp"),
        (not always_overlaps(plan), "plan.overlap_grad_reduce", "FSDP2's transfers overlap", "overlap on"),
    )


def _job_gaps(request: Request) -> tuple[Gap, ...]:
    job = request.job
    return gaps(
        (job.task != "pretrain", "job.task", "its configurations pre-train", "task pretrain, or --format accelerate"),
        (job.optimizer != "adamw", "job.optimizer", f"its configurations have AdamW; got {job.optimizer}", "adamw"),
        (job.optimizer_in_backward, "job.optimizer_in_backward", "0.3.0 has none", "leave it out"),
        (job.paged_optimizer, "job.paged_optimizer", "states do not page", "leave it out"),
        (job.gradient_dtype not in ("", "fp32"), "job.gradient_dtype", f"is fp32; got {job.gradient_dtype}", "fp32"),
        (job.master_dtype != "fp32", "job.master_dtype", f"is fp32; got {job.master_dtype}", "fp32"),
        (job.state_dtype not in ("fp32", "bf16"), "job.state_dtype", f"is not {job.state_dtype}", "fp32 or bf16"),
        (job.dropout, "job.dropout", "its models have none", "no dropout"),
        (job.attention != "flash", "job.attention", "attention is fused", "flash"),
    )
