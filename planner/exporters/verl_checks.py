"""What verl cannot express of a workflow's plan, and what to fix so that another plan can be expressed.

verl gives each role one worker on every GPU of one pool, which runs all its calls in one layout; engines that generate
or reward have layouts of their own there. Megatron's process groups are made once per process, by the role that starts
first, so that under it all roles have one layout.

Source:
    verl 0.9.1: ``PPOTrainer._init_resource_pool_mgr`` (trainer/ppo/v1/trainer_base.py) has one ``global_pool``;
    ``mpu.is_initialized`` in workers/engine/megatron/transformer_impl.py; workers/config/rollout.py refuses pipelines;
    ``prepare_micro_batches`` (workers/engine/utils.py) cuts a rank's sequences into whole micro-batches, of which
    ``forward_backward_batch`` of that implementation asks, where stages are virtual, for a multiple of the pipeline's
    degree (``microbatch_group_size_per_vp_stage``) of every pass, those without gradients too.
"""

from collections.abc import Iterable, Iterator

from costmodels.plan import ExecutionPlan
from planner.dataflow.flow.request import COLOCATED, FlowRequest
from planner.dataflow.flow.results import FlowPlan
from planner.dataflow.graphs.graph import GENERATE, INFERENCE, TRAIN
from planner.exporters.exported import Gap, gaps
from planner.exporters.flow_target import (
    DEGREES,
    ENDS,
    EXPERT_DEGREES,
    REWARD,
    Pins,
    Placed,
    chosen_keys,
    has_experts,
    length_check,
    library_check,
    on_gpus,
    pin_gaps,
)
from planner.phrases import gib
from planner.question.lora import linear_targets
from planner.rules.base import MEGATRON

ENGINES = ("vllm", "sglang")
_SHARDED = (2, 3)  # ZeRO stages of FSDP
_MOST_LAYOUTS = 4  # tried in turn, each a search of its own


def in_workers(plan: FlowPlan) -> dict[str, Placed]:
    """Calls that verl's workers run: training and inference, but the rewards, which an engine computes."""
    return {name: item for name, item in on_gpus(plan).items() if item.call.kind != GENERATE and name != REWARD}


def placement_gaps(request: FlowRequest, plan: FlowPlan) -> tuple[Gap, ...]:
    """What of meshes, layouts and micro-batches it cannot express."""
    engines = (*_split_engines(request, plan), *_experts_of_engines(request, plan))
    return (*_meshes(plan), *_layouts(request, plan), *engines, *_micro_batches(plan), *_second_copy(plan))


def question_gaps(request: FlowRequest) -> tuple[Gap, ...]:
    """What of the question it cannot express, whatever the plan."""
    return gaps(*_of_data(request), *_of_roles(request))


def _of_data(request: FlowRequest) -> Iterator[tuple[bool, str, str, str]]:
    graph = request.graph
    trains, generates = graph.call("actor_train"), graph.call("actor_gen")
    for call in graph.calls:
        problem = f"{call.mini_batches} do not share {request.batch} prompts evenly"
        yield request.batch % call.mini_batches > 0, "settings.mini_batches", problem, "a divisor of batch"
    modelled = any(call.name == REWARD and call.kind == INFERENCE for call in graph.calls)
    yield request.options.stream and modelled, "stream", "its reward model scores whole batches", "leave it out"
    ratio = generates.factor / trains.factor
    if ratio > 1:
        yield modelled, "settings.reward", "it drops groups by rewards of functions or services", "reward=external"
        problem = f"it generates whole batches at a time; got {float(ratio):g} of them"
        yield ratio.denominator != 1, "settings.oversampling", problem, "a whole number"


def _of_roles(request: FlowRequest) -> Iterator[tuple[bool, str, str, str]]:
    models, role = request.models, request.graph.role("actor")
    problem = f"it trains in bf16; got {request.precision}"
    yield request.precision != "bf16", "precision", problem, "precision bf16"
    yield len(request.cluster.groups) > 1, "cluster", "its pool has machines of one kind", "machines of one kind"
    other = models.get("ref", models["actor"]) != models["actor"]
    yield other, "models.ref", "the reference is the actor as it was at first", "leave it out"
    yield chosen_keys(request, "actor")
    engines = ("actor", "reward") if any(call.name == REWARD for call in request.graph.calls) else ("actor",)
    yield from (length_check(request, name) for name in engines if name in models)
    for name in ("actor", "critic"):
        if name in models:
            yield library_check(request, name, chosen=request.stack.framework != MEGATRON)
    yield role.task == "qlora", "settings.task", "it trains no adapters on 4-bit weights", "task=lora"
    lora, all_of_them = role.adapters(models["actor"]).lora, _all_linear(request)
    some = lora is not None and set(lora.targets) != set(all_of_them)
    hint = "leave it out" if models["actor"].moe is None else f"lora_targets={','.join(all_of_them)}"
    yield some, "settings.lora_targets", "adapters are written for all linear layers", hint


def _all_linear(request: FlowRequest) -> tuple[str, ...]:
    """Layers that verl's adapters have by default: under FSDP experts are no modules that PEFT would find."""
    stacked = request.models["actor"].moe is not None and request.stack.framework != MEGATRON
    return linear_targets(stacked=stacked)


def _meshes(plan: FlowPlan) -> Iterator[Gap]:
    for name, item in on_gpus(plan).items():
        first, count = item.call.first_gpu, item.call.num_gpus
        if (first, count) != (0, plan.num_gpus):
            problem = f"every call runs on all {plan.num_gpus} GPUs; got {first}-{first + count - 1}"
            yield Gap(field=f"plan.{name}.gpus", problem=problem, hint="mode colocated")


def _layouts(request: FlowRequest, plan: FlowPlan) -> Iterator[Gap]:
    workers = in_workers(plan)
    lead = workers["actor_train"].layout
    yield from pin_gaps(workers, tied(request, plan, lead), _why_tied(request))
    if request.stack.framework == MEGATRON and lead.zero_stage > 1:
        problem = f"its Megatron shards optimizer states alone; got ZeRO {lead.zero_stage}"
        yield Gap(field="plan.actor_train.zero_stage", problem=problem, hint="pin actor_train.zero_stage=1")


def _why_tied(request: FlowRequest) -> str:
    if request.stack.framework == MEGATRON:
        return "under Megatron all roles have the layout of actor_train"
    return "under FSDP all roles are sharded alike, and split no further"


def _split_engines(request: FlowRequest, plan: FlowPlan) -> Iterator[Gap]:
    """Engines verl does not start, and what those it starts do not split."""
    calls = on_gpus(plan)
    engine = calls["actor_gen"].call.engine
    if engine not in ENGINES:
        problem = f"it generates with {' or '.join(ENGINES)}; got {engine}"
        yield Gap(field="plan.actor_gen.engine", problem=problem, hint="engine vllm")
    for name in ("actor_gen", REWARD):
        for column in DEGREES[1:]:
            degree = getattr(calls[name].layout, column) if name in calls else 1
            if degree > 1:
                problem = f"its engines have tensor-parallel ranks alone; got {degree}"
                yield Gap(field=f"plan.{name}.{column}", problem=problem, hint=f"pin {name}.{column}=1")
    whole = REWARD in calls and request.stack.framework != MEGATRON and calls[REWARD].layout.zero_stage > 0
    if whole:
        problem = "a reward model is whole on every replica of its engine"
        yield Gap(field=f"plan.{REWARD}.zero_stage", problem=problem, hint=f"pin {REWARD}.zero_stage=0")


def _experts_of_engines(request: FlowRequest, plan: FlowPlan) -> Iterator[Gap]:
    """Experts over several groups of an engine: ``launch_server`` of its vLLM takes all GPUs of a node for them."""
    calls, node = on_gpus(plan), request.cluster.groups[0].node.devices_per_node
    generation = calls["actor_gen"]
    replica = generation.attention_groups * generation.layout.tensor_parallel
    if generation.attention_groups > 1 and generation.call.engine == "vllm" and replica % node:
        problem = f"experts over several groups of vLLM take whole nodes; got {replica} GPUs"
        yield Gap(field="plan.actor_gen.expert_parallel", problem=problem, hint="pin actor_gen.ep=1")
    if REWARD in calls and calls[REWARD].layout.expert_parallel > 1:
        problem = f"experts of a reward model are split as its layers; got {calls[REWARD].layout.expert_parallel}"
        yield Gap(field=f"plan.{REWARD}.expert_parallel", problem=problem, hint=f"pin {REWARD}.ep=1")


def _micro_batches(plan: FlowPlan) -> Iterator[Gap]:
    """Inference that ends on a smaller micro-batch, and two sizes where there is one option."""
    wanted = micro_batch_pins(plan)
    for name, item in in_workers(plan).items():
        size = wanted.get(name, {}).get("micro_batch_size", item.layout.micro_batch_size)
        if size != item.layout.micro_batch_size:
            groups = _at_once(plan)
            together = f", a multiple of {groups} in number" if groups > 1 else ""
            problem = f"a rank's micro-batches are of one size{together}; got {item.layout.micro_batch_size}"
            yield Gap(field=f"plan.{name}.micro_batch_size", problem=problem, hint=f"pin {name}.micro_batch={size}")


def _second_copy(plan: FlowPlan) -> Iterator[Gap]:
    """Weights that generation shares with training in the plan, where an engine has a copy, and it does not fit."""
    generation = on_gpus(plan)["actor_gen"].call
    for group in plan.memory:
        held = {owner.call: owner.static_bytes for owner in group.owners}
        others = sum(held.values()) - held.get(generation.name, 0.0)
        needed = others + generation.static_bytes + generation.active_bytes
        if needed > group.usable_bytes:
            problem = (
                f"its engine has weights of its own, and with them needs {gib(needed)} of {gib(group.usable_bytes)}"
            )
            yield Gap(
                field="plan.actor_gen.tensor_parallel", problem=problem, hint="pin actor_gen.tp, to another degree"
            )


def tied(request: FlowRequest, plan: FlowPlan, lead: ExecutionPlan) -> Pins:
    """What calls of verl's workers must have where one of them has the layout ``lead``."""
    if request.stack.framework == MEGATRON:
        wanted = {column: getattr(lead, column) for column in (*DEGREES, *EXPERT_DEGREES, *ENDS, "virtual_stages")}
    else:
        wanted = dict.fromkeys((*DEGREES, *EXPERT_DEGREES), 1)
        wanted["zero_stage"] = lead.zero_stage if lead.zero_stage in _SHARDED else _SHARDED[-1]
    return {
        name: {key: value for key, value in wanted.items() if _has(request, item, key)}
        for name, item in in_workers(plan).items()
    }


def _has(request: FlowRequest, item: Placed, column: str) -> bool:
    """Whether a column of its layout can be fixed for a call."""
    if column in EXPERT_DEGREES:
        return has_experts(request, item)
    return column != "virtual_stages" or item.call.kind == TRAIN


def bases(request: FlowRequest, plan: FlowPlan) -> list[tuple[str, Pins]]:
    """All calls on all GPUs."""
    return [(COLOCATED, engine_pins(request, plan))]


def other_pins(request: FlowRequest, plans: Iterable[FlowPlan], mode: str, base: Pins) -> list[Pins]:
    """Sets of pins that make a plan one that can be expressed, likely ones first.

    Args:
        request: The question.
        plans: Answers to it that cannot; their layouts are those to choose from.
        mode: The one mode there is.
        base: Pins of the first plan's engines; those of every plan's take their place.
    """
    del mode, base
    found: list[Pins] = []
    for plan in plans:
        for item in sorted(in_workers(plan).values(), key=lambda item: -item.call.time_s):
            pins = tied(request, plan, item.layout) | engine_pins(request, plan)
            if pins not in found:
                found.append(pins)
    return found[:_MOST_LAYOUTS]


def engine_pins(request: FlowRequest, plan: FlowPlan) -> Pins:
    """What engines that generate and reward must not split."""
    calls = on_gpus(plan)
    pins: Pins = {"actor_gen": {"pipeline_parallel": 1}}
    if any(gap.field == "plan.actor_gen.expert_parallel" for gap in _experts_of_engines(request, plan)):
        pins["actor_gen"]["expert_parallel"] = 1
    if REWARD in calls:
        pins[REWARD] = {"pipeline_parallel": 1, "context_parallel": 1}
        if has_experts(request, calls[REWARD]):
            pins[REWARD]["expert_parallel"] = 1
        if request.stack.framework != MEGATRON:
            pins[REWARD]["zero_stage"] = 0
    return pins


def _at_once(plan: FlowPlan) -> int:
    """Micro-batches that go through virtual stages together; all roles have those of the actor."""
    lead = in_workers(plan)["actor_train"].layout
    return lead.pipeline_parallel if lead.virtual_stages > 1 else 1


def micro_batch_pins(plan: FlowPlan) -> Pins:
    """Micro-batches that divide, where they do not; a policy that is its own reference has one for both passes."""
    calls = in_workers(plan)
    sizes = {name: item.whole_micro_batch(_at_once(plan)) for name, item in calls.items()}
    if "ref_inf" in calls and calls["ref_inf"].call.role == "actor":
        scoring = "actor_inf" if "actor_inf" in calls else "actor_train"
        sizes["ref_inf"] = sizes[scoring] = min(sizes[scoring], sizes["ref_inf"])
    unlike = {name: size for name, size in sizes.items() if size != calls[name].layout.micro_batch_size}
    return {name: {"micro_batch_size": size} for name, size in unlike.items()}


def further_pins(request: FlowRequest, plan: FlowPlan) -> list[Pins]:
    """Those micro-batches, where there are any."""
    del request
    pins = micro_batch_pins(plan)
    return [pins] if pins else []
