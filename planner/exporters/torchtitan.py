"""torchtitan: options of its trainer for one of its model configurations.

Target: torchtitan 0.3.0, whose ``--section.option`` its later versions are to drop (``torchtitan/config/README.md``).
The tests feed its own parser where it is installed.
"""

from itertools import pairwise

import numpy as np

from costmodels.plan import (
    BoolArray,
    ContextKind,
    ExecutionPlan,
    PlanBatch,
    Recompute,
    Schedule,
    chunks_per_stage,
)
from costmodels.stages.table import stage_table
from planner.exporters.exported import (
    REST,
    Check,
    Exported,
    Gap,
    Target,
    always_overlaps,
    chunk_layers,
    finished,
    gaps,
    on_every_node,
    sharding,
    torchrun,
    whole_steps,
)
from planner.exporters.recipes import recipe_of
from planner.question.job_checks import trains_in
from planner.results import Request
from planner.rules.offload import moves_together
from profiles.errors import SpecError
from profiles.model import ModelSpec

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
        gaps=unsupported(plan, request),
        left_to_you=(
            f"the tokenizer of {request.model.name} in --hf_assets_path, data, learning rate: as {config} has them",
            *steps,
            *_attention(request.job.attention_library),
            *on_every_node(request.cluster),
        ),
    )


def unsupported(plan: ExecutionPlan, request: Request) -> tuple[Gap, ...]:
    """What a plan, its job or its model has that the target cannot express.

    Raises:
        SpecError: If torchtitan has no configuration of the model.
    """
    _, recipes = _recipe(request.model)
    return (*gaps(*plan_checks(PlanBatch.from_plans([plan]), request)), *_job_gaps(request, recipes))


def _attention(library: str) -> tuple[str, ...]:
    return (f"attention by {library}: torchtitan calls PyTorch's, which picks its own",) if library else ()


def _option(name: str, value: str | bool | list[str]) -> list[str]:
    """An option as its parser reads it: what is true or false is in its name."""
    if isinstance(value, str):
        return [f"--{name}", value]
    if isinstance(value, list):
        return [f"--{name}", *value]
    section, _, field = name.rpartition(".")
    return [f"--{name}" if value else f"--{section}.no-{field}"]


def _recipe(model: ModelSpec) -> tuple[str, dict[str, str]]:
    """The module and the configurations of a model of that shape.

    Raises:
        SpecError: If there is none.
    """
    recipe = recipe_of(model, _RECIPES)
    if recipe is None:
        problem = f"torchtitan 0.3.0 has no configuration of {model.name}"
        raise SpecError("model", problem, f"one of {', '.join(_RECIPES)}; or --format accelerate")
    return recipe


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
    steps = whole_steps(job)
    if steps is not None:
        found["training.steps"] = str(steps)
    if _in_bf16(request):
        found["training.dtype"] = "bfloat16"
    elif job.state_dtype == "bf16":
        found["optimizer.implementation"] = "fused_opt_states_bf16"
    return found


def _parallelism(plan: ExecutionPlan, request: Request) -> dict[str, str | bool | list[str]]:
    """Degrees, and how stages are cut."""
    replicas, shard = sharding(plan)
    # An option of many values takes all words that follow, so that another has to come behind it.
    found = _stages(plan, request) if plan.pipeline_parallel > 1 else {}
    found |= {
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
    return {f"parallelism.{name}": value for name, value in found.items()}


def _stages(plan: ExecutionPlan, request: Request) -> dict[str, str | bool | list[str]]:
    """How layers are cut into chunks: by their number where torchtitan's rule then cuts as the plan does, else by name.

    Its rule gives what is left over to the first chunks, and derives their number from their length.
    """
    layers, sizes = request.model.num_layers, chunk_layers(plan, request.model)
    each, count = -(-layers // len(sizes)), len(sizes)
    if -(-layers // each) == count and sizes == [layers // count + (at < layers % count) for at in range(count)]:
        less = {f"pipeline_parallel_{end}_stage_less_layers": "0" for end in ("first", "last")}
        return {"pipeline_parallel_layers_per_stage": str(each), **less}
    ends = [0, *np.cumsum(sizes).tolist()]
    parts = [[f"layers.{at}" for at in range(begin, end)] for begin, end in pairwise(ends)]
    parts[0].insert(0, "tok_embeddings")
    parts[-1] += ["norm", "lm_head"]
    return {"module_fqns_per_model_part": [",".join(part) for part in parts]}


def plan_checks(plans: PlanBatch, request: Request) -> tuple[Check, ...]:
    """What it has not, of plans."""
    c, t = plans.context_parallel, plans.tensor_parallel
    ring = (c > 1) & (plans.context_kind != int(ContextKind.ALL_GATHER))
    half = ~moves_together(plans)
    eager = plans.tensor_parallel_overlap & (t > 1) & (request.stack.name != "fsdp")
    etp = (plans.expert_parallel > 1) & (plans.expert_tensor_parallel > 1)
    block = plans.recompute == int(Recompute.BLOCK)
    return (
        (etp, "plan.expert_tensor_parallel", "0.3.0 splits no expert's matrices", "etp 1"),
        (ring, "plan.context_kind", "0.3.0 gathers keys and values", "context_kind all_gather"),
        (_empty(plans, request), "plan.virtual_stages", "every chunk of a pipeline has a layer", "vpp 1"),
        (block, "plan.recompute", "all layers are recomputed or none", "full or none"),
        (plans.offload_activations, "plan.offload_activations", "checkpoints stay on the device", "off"),
        (half, "plan.offload_parameters", "weights and optimizer are on the host, or neither", "both on, or both off"),
        (eager, "plan.tensor_parallel_overlap", "needs torch.compile", "framework fsdp"),
        (~always_overlaps(plans), "plan.overlap_grad_reduce", "FSDP2's transfers overlap", "overlap on"),
    )


def _empty(plans: PlanBatch, request: Request) -> BoolArray:
    """(N,) whether some chunk of a pipeline has no layer: where a stage has fewer layers than chunks."""
    table = stage_table(plans, request.model)
    fewest = np.where(table.count > 0, table.layers, request.model.num_layers).min(axis=1)
    found: BoolArray = (plans.pipeline_parallel > 1) & (fewest < chunks_per_stage(plans.schedule, plans.virtual_stages))
    return found


def _in_bf16(request: Request) -> bool:
    """Whether weights, gradients and states all are in bf16, as ``training.dtype`` has it."""
    job = request.job
    return {job.precision, job.gradient_dtype, job.state_dtype} == {"bf16"} and job.master_dtype == "none"


def _job_gaps(request: Request, recipes: dict[str, str]) -> tuple[Gap, ...]:
    job, halved = request.job, _in_bf16(request)
    named = (*recipes, *(("fp32",) if "bf16" in recipes else ()))
    precisions = [name for name in named if trains_in(name, request.cluster.device)]
    unknown = job.precision not in precisions
    other = job.gradient_dtype not in ("", "fp32")
    longer = f"is fp32, or none with all else in bf16; got {job.master_dtype}"
    return gaps(
        (unknown, "job.precision", f"no configuration of {request.model.name} has it", " or ".join(precisions)),
        (job.task != "pretrain", "job.task", "its configurations pre-train", "task pretrain, or --format accelerate"),
        (job.optimizer != "adamw", "job.optimizer", f"its configurations have AdamW; got {job.optimizer}", "adamw"),
        (job.optimizer_in_backward, "job.optimizer_in_backward", "0.3.0 has none", "leave it out"),
        (job.paged_optimizer, "job.paged_optimizer", "states do not page", "leave it out"),
        (other and not halved, "job.gradient_dtype", f"is fp32; got {job.gradient_dtype}", "fp32"),
        (job.master_dtype != "fp32" and not halved, "job.master_dtype", longer, "fp32"),
        (job.state_dtype not in ("fp32", "bf16"), "job.state_dtype", f"is not {job.state_dtype}", "fp32 or bf16"),
        (job.dropout, "job.dropout", "its models have none", "no dropout"),
        (job.attention != "flash", "job.attention", "attention is fused", "flash"),
    )
