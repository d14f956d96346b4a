"""Megatron-LM: arguments of its ``pretrain_gpt.py``, or ``pretrain_hybrid.py`` (``megatron_model``).

Target: Megatron-LM of megatron-core 0.19, whose parser (``megatron/training/arguments.py``) the tests feed where it is
installed. The model's shape is in ``megatron_model``.
"""

from costmodels.gradient_formats import gradient_format
from costmodels.plan import AxisOrder, ExecutionPlan, PlanBatch
from planner.exporters.exported import (
    Check,
    Exported,
    Gap,
    Target,
    chunk_layers,
    finished,
    gaps,
    on_every_node,
    torchrun,
    whole_steps,
)
from planner.exporters.megatron_model import (
    CONTEXT_NAMES,
    hybrid_pattern,
    model_gaps,
    recomputation,
    run_options,
    shape_options,
)
from planner.question.layouts import needs_layout
from planner.results import Request
from planner.rules.formats import weights_format
from profiles.model import ModelSpec

# What a stack does besides the plan; those with ``StackSpec.switched_on_by`` say so themselves.
_OF_STACK: dict[str, list[list[str]]] = {
    "megatron-core": [],
    "megatron-core-ep-overlap": [],
    "megatron-core-hybrid-ep": [],
    "megatron-core-hybrid-ep-overlap": [],
    "megatron-core-token-drop": [["--moe-expert-capacity-factor", "1.0"], ["--moe-pad-expert-input-to-capacity"]],
    "megatron-core-full-graphs": [
        ["--cuda-graph-impl", "full_iteration"],
        ["--no-check-for-nan-in-loss-and-grad"],
    ],
}
TARGET = Target(name="megatron-lm", title="Megatron-LM (megatron-core 0.19)", stacks=tuple(_OF_STACK))
# Families whose router adds e_score_correction_bias to sigmoid scores, in fp32: DeepseekV3TopkRouter and
# Glm4MoeTopkRouter of transformers 5, which the others' code is too.
_CORRECTED = ("deepseek_v3", "deepseek_v32", "glm_moe_dsa", "kimi_k2", "glm4_moe")
_SCRIPT, _OF_HALVES = "pretrain_gpt.py", "pretrain_hybrid.py"
# Families whose gated activation is not that of --swiglu, SiLU, and what to do.
_ACTIVATIONS = {
    "gemma": f"the activation: --swiglu is SiLU's, and Gemma's GeGLU is no argument of {_SCRIPT}",
    "gpt_oss": "the activation: --quick-geglu --glu-linear-offset 1.0 --activation-func-clamp-value 7.0, not --swiglu",
}
_DISPATCHER = "--moe-token-dispatcher-type"  # among the options of the model
_SHARDING = {2: "optim_grads", 3: "optim_grads_params"}
_PRECISION: dict[str, list[list[str]]] = {
    "fp32": [],
    "fp16": [["--fp16"]],
    "bf16": [["--bf16"]],
    "fp8": [["--bf16"], ["--fp8-format", "hybrid"], ["--fp8-recipe", "delayed"]],
    "mxfp8": [["--bf16"], ["--fp8-format", "e4m3"], ["--fp8-recipe", "mxfp8"]],
    "nvfp4": [["--bf16"], ["--fp4-format", "e2m1"], ["--fp4-recipe", "nvfp4"]],
    "mxfp4": [["--bf16"], ["--fp4-format", "e2m1"], ["--fp4-recipe", "mxfp4"]],  # of ROCm/Megatron-LM alone
}


def export(plan: ExecutionPlan, request: Request) -> Exported:
    """The launch of ``pretrain_gpt.py`` or ``pretrain_hybrid.py`` that runs a plan.

    Args:
        plan: The plan.
        request: Model, job, the devices that the plan uses, and the stack it was priced for.
    """
    options = [*shape_options(request.model), *_router_scores(request.model), *megatron_options(plan, request)]
    script = [*torchrun(request.cluster), [_script(request.model)]]
    mock = ["--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", str(request.model.vocab_size)]
    mock += ["--lr", "1e-4", *([] if request.job.train_tokens else ["--train-iters", "20"])]
    return finished(
        TARGET,
        plan,
        request,
        command=[*script, *options],
        environment=queues(plan, request),
        gaps=unsupported(plan, request),
        left_to_you=(*_yours(request), *copied_weights(plan, request), *on_every_node(request.cluster)),
        defaults=mock,
    )


def megatron_options(plan: ExecutionPlan, request: Request) -> list[list[str]]:
    """Plan, job and stack as options of ``pretrain_gpt.py``, each with its values; the model's shape is not in them.

    Of a model whose layers are a mixer or an MLP alone, which layer is which is: stages are part of that.

    Args:
        plan: The plan.
        request: As for ``export``.
    """
    return [
        *run_options(plan, request),
        *_parallel(plan, request),
        *_batch(plan, request),
        *_sharding(plan),
        *_formats(plan, request),
        *_recompute(plan, request),
        *_of_stack(plan, request),
    ]


def _parallel(plan: ExecutionPlan, request: Request) -> list[list[str]]:
    """Degrees; the data-parallel one is what is left of the processes."""
    options = [
        ["--tensor-model-parallel-size", str(plan.tensor_parallel)],
        ["--pipeline-model-parallel-size", str(plan.pipeline_parallel)],
        ["--context-parallel-size", str(plan.context_parallel)],
    ]
    if plan.context_parallel > 1:
        options.append(["--cp-comm-type", CONTEXT_NAMES[plan.context_kind]])
    if request.model.moe is not None:
        options.append(["--expert-model-parallel-size", str(plan.expert_parallel)])
        options.append(["--expert-tensor-parallel-size", str(plan.expert_tensor_parallel)])
    if plan.sequence_parallel:
        options.append(["--sequence-parallel"])
    if plan.tensor_parallel_overlap:
        options.append(["--tp-comm-overlap"])
    if plan.axis_order == AxisOrder.TP_CP_PP_DP:
        options.append(["--use-tp-pp-dp-mapping"])
    return options + _stages(plan, request)


def _stages(plan: ExecutionPlan, request: Request) -> list[list[str]]:
    if request.model.layer_pattern:
        return [["--hybrid-layer-pattern", hybrid_pattern(request.model, chunk_layers(plan, request.model))]]
    if needs_layout(plan, request):
        return [["--pipeline-model-parallel-layout", _layout(plan, request)]]
    options = []
    for end, layers in (("first", plan.first_stage_layers), ("last", plan.last_stage_layers)):
        if layers and plan.pipeline_parallel > 1:
            options.append([f"--decoder-{end}-pipeline-num-layers", str(layers)])
    if plan.virtual_stages > 1:
        options.append(["--num-virtual-stages-per-pipeline-rank", str(plan.virtual_stages)])
    return options


def _layout(plan: ExecutionPlan, request: Request) -> str:
    """Layers of every chunk, those of all ranks' first chunks first."""
    chunks = chunk_layers(plan, request.model)
    return "E" + "|".join(f"t*{count}" if count > 1 else "t" * count for count in chunks) + "L"


def _batch(plan: ExecutionPlan, request: Request) -> list[list[str]]:
    job = request.job
    options = [
        ["--micro-batch-size", str(plan.micro_batch_size)],
        ["--global-batch-size", str(job.global_batch_size)],
    ]
    steps = whole_steps(job)
    if steps is not None:
        options.append(["--train-samples", str(steps * job.global_batch_size)])
    return options


def _sharding(plan: ExecutionPlan) -> list[list[str]]:
    """ZeRO 1 is the distributed optimizer, 2 and 3 are Megatron-FSDP."""
    options = []
    if plan.zero_stage:
        options.append(["--use-distributed-optimizer"])
    if plan.zero_stage in _SHARDING:
        options.append(["--use-megatron-fsdp", "--data-parallel-sharding-strategy", _SHARDING[plan.zero_stage]])
        options.append(["--ckpt-format", "fsdp_dtensor"])
    if plan.zero_stage == 3:
        # Weights are laid out in shards from the start; else every device first holds all of them.
        options.append(["--init-model-with-meta-device"])
    if plan.zero_shard_degree:
        replicas = plan.data_parallel * plan.context_parallel // plan.zero_shard_degree
        options.append(["--num-distributed-optimizer-instances", str(replicas)])
    if plan.overlap_grad_reduce:
        options.append(["--overlap-grad-reduce"])
        if plan.zero_stage and plan.overlap_param_gather:
            options.append(["--overlap-param-gather"])
    return options


def _formats(plan: ExecutionPlan, request: Request) -> list[list[str]]:
    """Number formats of products, gradients and states; the optimizer and where its states are."""
    job, sharded = request.job, plan.zero_stage in _SHARDING
    options = [*_PRECISION.get(job.precision, []), *_narrow_weights(plan, request)]
    options.append(["--optimizer", "sgd" if job.optimizer == "sgd" else "adam"])
    gradients = gradient_format(request.job, request.stack)
    if sharded:
        options.append(["--megatron-fsdp-main-grads-dtype", gradients])
    elif weights_format(request.job) == "bf16" and gradients == "bf16":
        options.append(["--grad-reduce-in-bf16"])
    elif weights_format(request.job) == "fp16" and gradients == "fp32":
        options.append(["--accumulate-allreduce-grads-in-fp32"])
    if sharded and job.master_dtype in ("bf16", "fp16"):
        options.append(["--megatron-fsdp-main-params-dtype", job.master_dtype])
    if _precision_aware(plan, request):
        options.append(["--use-precision-aware-optimizer"])
        if not sharded and job.master_dtype == "fp16":
            options.append(["--main-params-dtype", "fp16"])
        options.append(["--exp-avg-dtype", job.state_dtype, "--exp-avg-sq-dtype", job.state_dtype])
    if plan.offload_optimizer:
        options.append(["--optimizer-cpu-offload", "--optimizer-offload-fraction", "1.0"])
    if job.fuses_loss:
        options.append(["--cross-entropy-loss-fusion", "--cross-entropy-fusion-impl", "native"])
    return options


def _live_in_eight_bits(plan: ExecutionPlan, request: Request) -> bool:
    """Whether layers' weights are priced in 8 bits, with none in 16 besides (``costmodels.memory.narrow_weights``)."""
    eight = request.stack.narrow_weights == "live" and request.job.numerics.gemm_format == "fp8"
    return eight and plan.zero_stage < 3


def _narrow_weights(plan: ExecutionPlan, request: Request) -> list[list[str]]:
    """What keeps weights in 8 bits, where ``validate_args`` lets it: with sharded states, on the host by one recipe.

    Of MXFP8 they are gathered in 16 bits through the buffer of gradients, which ``OptimizerConfig`` asks for;
    Megatron-FSDP has no such buffer.
    """
    mxfp8 = request.job.precision == "mxfp8"
    if not _live_in_eight_bits(plan, request) or not plan.zero_stage or (plan.offload_optimizer and mxfp8):
        return []
    shared = mxfp8 and plan.zero_stage not in _SHARDING
    return [["--fp8-param-gather"], *([["--reuse-grad-buf-for-mxfp8-param-ag"]] if shared else [])]


def copied_weights(plan: ExecutionPlan, request: Request) -> tuple[str, ...]:
    """What to know of weights in 8 bits that are priced alone, and that Megatron-Core does not keep so."""
    if not _live_in_eight_bits(plan, request) or _narrow_weights(plan, request):
        return ()
    needs = "states of the optimizer on the device" if plan.zero_stage else "the distributed optimizer (ZeRO 1)"
    return (
        f"memory is planned for weights that live in 8 bits, which takes {needs}; here Transformer Engine keeps copies "
        "of them beside the 16-bit ones",
    )


def _recompute(plan: ExecutionPlan, request: Request) -> list[list[str]]:
    """Recomputation, and activations on the host.

    The last layer's activations, which its backward pass takes at once, stay: of any plan that offloads, layers in use
    are on the device (``costmodels.memory.stage_activations``), and Megatron-LM wants one of them named.
    """
    if plan.offload_activations:
        return [["--cpu-offloading-num-layers", str(request.model.num_layers - 1)]]
    options = [
        [f"--recompute-{name.replace('_', '-')}", *(value if isinstance(value, tuple) else [str(value)])]
        for name, value in recomputation(plan).items()
    ]
    granularity, rest = options[:1], [word for option in options[1:] for word in option]
    return [*granularity, rest] if options else []


def _of_stack(plan: ExecutionPlan, request: Request) -> list[list[str]]:
    stack = request.stack
    if stack.fixed_capacity and request.model.moe is None:
        return []
    options = list(_OF_STACK[stack.name])
    for word in stack.switched_on_by.split() if plan.expert_parallel > 1 else ():
        if word.startswith("--"):
            options.append([word])
        else:
            options[-1].append(word)
    return [option for option in options if option[0] != _DISPATCHER]


def queues(plan: ExecutionPlan, request: Request) -> dict[str, str]:
    """The variable that says how many queues lead to a device, where Megatron-Core asks for a number.

    One queue to the device keeps transfers in the order of kernels, which older devices need; FSDP needs several.
    So does an exchange of tokens under another micro-batch's work, of which ``validate_args`` only warns.
    """
    if plan.zero_stage in _SHARDING:
        return {"CUDA_DEVICE_MAX_CONNECTIONS": "8"}
    ordered = plan.tensor_parallel > 1 or plan.context_parallel > 1
    ordered &= plan.expert_parallel == 1 or request.stack.expert_parallel_overlap == 0
    newer = request.cluster.device.architecture.startswith("blackwell")
    return {"CUDA_DEVICE_MAX_CONNECTIONS": "1"} if ordered and not newer else {}


def _precision_aware(plan: ExecutionPlan, request: Request) -> bool:
    job = request.job
    halved = job.master_dtype == "fp16" and plan.zero_stage not in _SHARDING
    return plan.offload_optimizer or halved or job.state_dtype != "fp32"


def unsupported(plan: ExecutionPlan, request: Request) -> tuple[Gap, ...]:
    """What a plan, its job or its model has that the target cannot express."""
    checks = plan_checks(PlanBatch.from_plans([plan]), request)
    trained = job_gaps(request, f"{_script(request.model)} trains all weights")
    return (*model_gaps(request), *gaps(*checks), *trained, *_eight_bits(request))


def _script(model: ModelSpec) -> str:
    return _OF_HALVES if model.layer_pattern else _SCRIPT


def plan_checks(plans: PlanBatch, request: Request) -> tuple[Check, ...]:
    """What it has not, of plans."""
    unlike = plans.overlap_param_gather & ~plans.overlap_grad_reduce & (plans.zero_stage > 0)
    lone = plans.offload_activations & (request.model.num_layers == 1)
    return (
        (lone, "plan.offload_activations", "a single layer's activations stay on the device", "off"),
        (unlike, "plan.overlap_param_gather", "needs overlap_grad_reduce", "both on, or both off"),
    )


def job_gaps(request: Request, adapters: str) -> tuple[Gap, ...]:
    """What exports for Megatron-Core have not, of jobs.

    Args:
        request: Its job.
        adapters: Why none are trained.
    """
    job = request.job
    return gaps(
        (job.trains_adapters_only, "job.task", adapters, "task full, or format accelerate with framework hf-trainer"),
        (job.precision not in _PRECISION, "job.precision", f"there is no option for {job.precision}", "fp32 or bf16"),
        (job.optimizer not in ("adamw", "sgd"), "job.optimizer", f"there is no {job.optimizer}", "adamw or sgd"),
        (job.linear_cross_entropy, "job.linear_cross_entropy", "the output layer runs apart", "fused_cross_entropy"),
    )


def _eight_bits(request: Request) -> tuple[Gap, ...]:
    job, unsaid = request.job, f"is no argument of {_SCRIPT}"
    return gaps(
        (job.fp8_activation, "job.fp8_activation", unsaid, "leave it out"),
        (job.fp8_attention, "job.fp8_attention", unsaid, "leave it out"),
    )


def _corrected(model: ModelSpec) -> bool:
    """Whether a router chooses by sigmoid scores that a bias of every expert corrects."""
    return model.moe is not None and model.moe.router_bias and model.family in _CORRECTED


def _router_scores(model: ModelSpec) -> list[list[str]]:
    if not _corrected(model):
        return []
    scores = ["--moe-router-score-function", "sigmoid", "--moe-router-enable-expert-bias"]
    return [scores, ["--moe-router-dtype", "fp32"]]


def _unsaid(model: ModelSpec) -> list[str]:
    """Options that change what is trained, whose values no catalogue has."""
    options = ["--norm-epsilon"]
    if not (model.learned_positions or model.layer_pattern):
        options += ["--rotary-base", "--rotary-percent"]
        yarn = ["--rotary-scaling-factor", "--mscale", "--mscale-all-dim"]
        options += ["--use-rope-scaling"] if model.latent_attention is None else yarn
    if model.moe is not None:
        options += [] if _corrected(model) else ["--moe-router-score-function", "--moe-router-pre-softmax"]
        options += ["--moe-router-topk-scaling-factor", "--moe-router-load-balancing-type", "--moe-aux-loss-coeff"]
    return options


def _yours(request: Request) -> tuple[str, ...]:
    steps = "" if request.job.train_tokens else "the length of the run, "
    words = f"data, tokenizer ({request.model.vocab_size} words), {steps}learning rate and checkpoints are arguments of"
    found = [f"{words} train.sh; without any it tries the plan on mock data"]
    unsaid = ", ".join(_unsaid(request.model))
    found.append(f"what changes the model and not its cost: set {unsaid} as the model's config.json has them")
    found += [told for family, told in _ACTIVATIONS.items() if request.model.family.startswith(family)]
    if request.job.precision == "mxfp4":
        found.append(f"ROCm/Megatron-LM (rocm_dev), whose {_SCRIPT} alone has the recipe mxfp4")
    if request.job.task == "full":
        found.append("the weights to start from: --load DIR --finetune")
    return tuple(found)
