"""What NeMo-RL cannot express of a workflow's plan, and what to fix so that another plan can be expressed.

One group of workers trains the policy, computes its log-probabilities and those of its reference, whose weights wait
on the host and take the policy's place for that pass: all of that has one layout on one mesh. Engines that generate are
on the same GPUs, or on others: GPUs of the one node there is, or whole nodes.

Source:
    NVIDIA-NeMo/RL, files of ``nemo_rl`` with the commits they were read at. algorithms/grpo.py @002cdc27: ``setup``
    divides the nodes, ``async_grpo_train`` wants engines apart. models/policy/lm_policy.py @007c9ca8: ``Policy`` checks
    degrees and micro-batches. models/generation/vllm/vllm_generation.py @00ab4ef4: ``VllmGeneration`` checks those of
    engines. models/megatron/setup.py @001de1ba: ``_apply_parallelism_config``, ``_apply_performance_config`` are all
    that Megatron-Core is told; it has no reward models. models/automodel/setup.py @001de1ba: ``setup_distributed``
    makes the mesh of FSDP. distributed/batched_data_dict.py @001888f6: micro-batches are whole. algorithms/dpo.py
    @011caa41: the reference has the micro-batches of training, nothing is packed.
"""

from collections.abc import Iterable, Iterator

from costmodels.plan import ContextKind, ExecutionPlan, Recompute
from planner.dataflow.flow.request import COLOCATED, DISAGGREGATED, HYBRID, FlowRequest
from planner.dataflow.flow.results import FlowPlan
from planner.dataflow.graphs.graph import GENERATE, INFERENCE, TRAIN
from planner.dataflow.rollouts import PARTIAL
from planner.exporters.exported import Gap, gaps
from planner.exporters.flow_target import (
    DEGREES,
    ENDS,
    EXPERT_DEGREES,
    GENERATION,
    REWARD,
    Pins,
    Placed,
    has_experts,
    is_apart,
    layout_gaps,
    length_check,
    library_check,
    mesh_gaps,
    on_gpus,
    on_trainers,
    pin_gaps,
    plain_checks,
    pool_pins,
    together,
)
from planner.question.lora import linear_targets
from planner.rules.base import MEGATRON

ENGINE = "vllm"
PAIRS = ("dpo", "rm")  # whose batches and micro-batches are of pairs
FURTHER = ("micro_batch_size", "recompute", "tensor_parallel_overlap")
_ALIKE_FROM = 4  # tensor-parallel ranks from which on training and log-probabilities must have one micro-batch
_SHARDED = 3  # ZeRO stage that FSDP2 is, as NeMo-Automodel's ``apply_fsdp2_sharding_recursively`` shards layers
_MOST_LAYOUTS = 3  # of one answer on one division of the GPUs, each a search of its own


def in_workers(plan: FlowPlan) -> dict[str, Placed]:
    """Calls that the workers of the policy run, training first."""
    return on_trainers(plan, beside=(REWARD,))


def trained(plan: FlowPlan) -> Placed:
    """The call that trains."""
    return next(item for item in in_workers(plan).values() if item.call.kind == TRAIN)


def packs(request: FlowRequest, plan: FlowPlan) -> bool:
    """Whether sequences of a micro-batch lie end to end: what is generated, and what ranks share, but no pairs."""
    shared = trained(plan).layout.context_parallel > 1
    return request.graph.name not in PAIRS and (GENERATION in on_gpus(plan) or shared)


def placement_gaps(request: FlowRequest, plan: FlowPlan) -> tuple[Gap, ...]:
    """What of meshes, layouts and micro-batches it cannot express."""
    layouts = (*_tied(request, plan), *_training(request, plan), *_engine(plan))
    return (*_meshes(request, plan), *layouts, *_micro_batches(request, plan))


def question_gaps(request: FlowRequest) -> tuple[Gap, ...]:
    """What of the question it cannot express, whatever the plan."""
    return gaps(*_of_roles(request), *_of_generation(request))


def _of_roles(request: FlowRequest) -> Iterator[tuple[bool, str, str, str]]:
    graph, models = request.graph, request.models
    role = next(call.role for call in graph.calls if call.kind == TRAIN)
    megatron, task = request.stack.framework == MEGATRON, graph.role(role).task
    yield from plain_checks(request, role, called="policy")
    yield library_check(request, role, chosen=False)
    generates = any(call.kind == GENERATE for call in graph.calls)
    yield task == "qlora", "settings.task", "it trains no adapters on 4-bit weights", "task=full"
    weights = "the engine gets all weights merged, and the plan hands on adapters alone"
    yield task == "lora" and generates, "settings.task", weights, "task=full"
    problem = "adapters are written for FSDP; got Megatron"
    yield task == "lora" and not generates and megatron, "settings.task", problem, "framework hf-fsdp"
    problem = "it trains reward models with FSDP; got Megatron"
    yield graph.name == "rm" and megatron, "framework", problem, "framework hf-fsdp"
    lora = graph.role(role).adapters(models[role]).lora
    all_of_them = linear_targets(stacked=models[role].moe is not None)
    some = lora is not None and set(lora.targets) != set(all_of_them)
    yield some, "settings.lora_targets", "adapters are written for all linear layers", "leave it out"


def _of_generation(request: FlowRequest) -> Iterator[tuple[bool, str, str, str]]:
    graph, options = request.graph, request.options
    names = {call.name for call in graph.calls}
    if GENERATION not in names:
        return
    yield length_check(request, "actor")
    asked = options.engine or ENGINE
    yield asked != ENGINE, "engine", f"exports are written for {ENGINE}; got {asked}", f"engine {ENGINE}"
    modelled = any(call.name == REWARD and call.kind == INFERENCE for call in graph.calls)
    problem = "a reward model has GPUs of its own, beside the plan's (env.reward_model.resources)"
    yield modelled, "settings.reward", problem, "reward=external"
    problem = "the trainer always computes log-probabilities before it trains"
    yield "actor_inf" not in names, "settings.old_logprobs", problem, "old_logprobs=true"
    yield options.stream, "stream", "log-probabilities are of whole batches", "leave it out"
    problem = "interrupted responses end in the iteration in which they began"
    yield options.rollout == PARTIAL, "rollout", problem, "rollout in_flight"
    more = graph.call(GENERATION).factor > graph.call("actor_train").factor
    problem = "groups are dropped where generation does not run ahead"
    yield more and request.staleness > 0, "mode", problem, "mode disaggregated, or oversampling 1"


def _meshes(request: FlowRequest, plan: FlowPlan) -> Iterator[Gap]:
    lead, total = trained(plan), plan.num_gpus
    apart, each = is_apart(plan), request.cluster.groups[0].node.devices_per_node
    yield from mesh_gaps(in_workers(plan), lead, "what the policy's workers run is")
    if not apart:
        if lead.gpus != (0, total):
            problem = f"all {total} GPUs train where none is for engines alone; got {lead.gpus[0]}-{lead.gpus[1] - 1}"
            yield Gap(field=f"plan.{lead.call.name}.gpus", problem=problem, hint="mode colocated")
        return
    engine = on_gpus(plan)[GENERATION].gpus
    if sorted((engine, lead.gpus)) != [(0, cut := min(engine[1], lead.gpus[1])), (cut, total)]:
        problem = f"engines have all GPUs that do not train; got {engine[0]}-{engine[1] - 1}"
        yield Gap(field=f"plan.{GENERATION}.gpus", problem=problem, hint="mode colocated or disaggregated")
    elif total > each and cut % each:
        problem = f"engines have whole nodes of several; got GPUs {engine[0]}-{engine[1] - 1}"
        yield Gap(
            field=f"plan.{GENERATION}.gpus", problem=problem, hint=f"pin {GENERATION}.gpus={max(cut // each, 1) * each}"
        )


def _tied(request: FlowRequest, plan: FlowPlan) -> Iterator[Gap]:
    workers, lead = in_workers(plan), trained(plan)
    sharded = request.stack.framework != MEGATRON
    why = "FSDP shards all weights, and splits no further" if sharded else f"there is one layout, {lead.call.name}'s"
    yield from pin_gaps(workers, tied(request, plan, lead.layout), why)


def _training(request: FlowRequest, plan: FlowPlan) -> Iterator[Gap]:
    """What of a training layout it has no setting for."""
    item = trained(plan)
    name, layout = item.call.name, item.layout
    megatron = request.stack.framework == MEGATRON
    out = layout.offload_optimizer or layout.offload_parameters or layout.offload_activations
    ring = layout.context_parallel == 1 or layout.context_kind == ContextKind.RING
    whole = megatron or layout.recompute in (Recompute.NONE, Recompute.FULL)
    partly = layout.recompute == Recompute.BLOCK or not whole
    pairs = request.graph.name in PAIRS and layout.context_parallel > 1
    zero = megatron and layout.zero_stage > 1
    checks = (
        (layout.virtual_stages > 1, "virtual_stages", "it interleaves no stages", f"pin {name}.vpp=1"),
        (zero, "zero_stage", "Megatron shards optimizer states alone", f"pin {name}.zero=1"),
        (layout.zero_shard_degree > 0, "zero_shard_degree", "shards span all data-parallel ranks", ""),
        (partly, "recompute", "layers are recomputed all, or none", f"pin {name}.recompute=full"),
        (not ring, "context_kind", "context-parallel ranks pass keys and values on in a ring", f"pin {name}.cp=1"),
        (pairs, "context_parallel", "ranks share packed sequences, and pairs are not packed", f"pin {name}.cp=1"),
        (
            layout.tensor_parallel_overlap,
            "tensor_parallel_overlap",
            "tensor-parallel traffic does not run under products",
            f"pin {name}.tensor_parallel_overlap=0",
        ),
        (out, "offload_optimizer", "nothing is on the host while it trains", ""),
    )
    yield from layout_gaps(name, layout, checks)


def _engine(plan: FlowPlan) -> Iterator[Gap]:
    generation = on_gpus(plan).get(GENERATION)
    if generation is None:
        return
    layout, engine = generation.layout, generation.call.engine
    where = f"plan.{GENERATION}"
    if engine != ENGINE:
        problem = f"exports are written for {ENGINE}; got {engine}"
        yield Gap(field=f"{where}.engine", problem=problem, hint=f"engine {ENGINE}")
    if layout.context_parallel > 1:
        problem = f"its engines share no sequences; got {layout.context_parallel}"
        yield Gap(field=f"{where}.context_parallel", problem=problem, hint=f"pin {GENERATION}.cp=1")
    tensor, experts = layout.tensor_parallel, layout.expert_parallel
    if experts > 1 and experts % tensor:
        problem = f"must be a multiple of the {tensor} tensor-parallel ranks; got {experts}"
        yield Gap(field=f"{where}.expert_parallel", problem=problem, hint=f"pin {GENERATION}.ep=1")


def needs_async_engine(request: FlowRequest, plan: FlowPlan) -> bool:
    """Whether vLLM must run asynchronously: where generation runs ahead, or its replicas are pipelines."""
    generation = on_gpus(plan)[GENERATION]
    return request.staleness > 0 or generation.layout.pipeline_parallel > 1


def _micro_batches(request: FlowRequest, plan: FlowPlan) -> Iterator[Gap]:
    yield from pin_gaps(in_workers(plan), _micro_batch_pins(request, plan), _why_alike(request))
    generation = on_gpus(plan).get(GENERATION)
    if generation is not None and generation.attention_groups > 1 and needs_async_engine(request, plan):
        problem = "asynchronous engines have experts on their own tensor-parallel ranks alone"
        field = f"plan.{GENERATION}.expert_parallel"
        words = f"{problem}; got {generation.layout.expert_parallel} ranks"
        yield Gap(field=field, problem=words, hint=f"pin {GENERATION}.ep=1")


def _why_alike(request: FlowRequest) -> str:
    if request.graph.name in PAIRS:
        return "micro-batches are of whole pairs, those of the reference as those of training"
    return f"log-probabilities have one micro-batch, from {_ALIKE_FROM} tensor-parallel ranks on training's"


def _micro_batch_pins(request: FlowRequest, plan: FlowPlan) -> Pins:
    """Micro-batches that differ from those they must have."""
    workers, lead = in_workers(plan), trained(plan)
    size = lead.layout.micro_batch_size
    wanted: dict[str, int] = {}
    scoring = [name for name, item in workers.items() if item.call.kind != TRAIN]
    if request.graph.name in PAIRS:
        even = max(size // 2 * 2, 2)
        wanted = dict.fromkeys((lead.call.name, *scoring), even)
    elif scoring:
        alike = lead.layout.tensor_parallel >= _ALIKE_FROM
        least = min(workers[name].layout.micro_batch_size for name in scoring)
        wanted = dict.fromkeys(scoring, size if alike else least)
    return {
        name: {"micro_batch_size": value}
        for name, value in wanted.items()
        if workers[name].layout.micro_batch_size != value
    }


def tied(request: FlowRequest, plan: FlowPlan, lead: ExecutionPlan) -> Pins:
    """What calls of the policy's workers must have where one of them has the layout ``lead``."""
    if request.stack.framework == MEGATRON:
        wanted = {column: getattr(lead, column) for column in (*DEGREES, *EXPERT_DEGREES, *ENDS)}
    else:
        wanted = dict.fromkeys((*DEGREES, *EXPERT_DEGREES), 1) | {"zero_stage": _SHARDED}
    return {
        name: {column: value for column, value in wanted.items() if _has(request, item, column)}
        for name, item in in_workers(plan).items()
    }


def _has(request: FlowRequest, item: Placed, column: str) -> bool:
    """Whether a column of its layout can be fixed for a call: one that no ranks share has nothing to shard."""
    ranks = item.layout.data_parallel * item.layout.context_parallel
    if column == "zero_stage" and ranks == 1:
        return False
    return column not in EXPERT_DEGREES or has_experts(request, item)


def bases(request: FlowRequest, plan: FlowPlan) -> list[tuple[str, Pins]]:
    """Modes with what trainer and engine must have; where calls may be anywhere, apart and together."""
    item = trained(plan)
    megatron = request.stack.framework == MEGATRON
    if GENERATION not in on_gpus(plan):
        alone = {"virtual_stages": 1, "tensor_parallel_overlap": 0}
        sharded: list[Pins] = [{item.call.name: alone | {"zero_stage": stage}} for stage in (1, 0)]
        return [(COLOCATED, pins) for pins in (sharded if megatron else [tied(request, plan, item.layout)])]
    pins: Pins = {item.call.name: {"virtual_stages": 1}} if megatron else tied(request, plan, item.layout)
    pins[GENERATION] = {"engine": ENGINE, "context_parallel": 1}
    if request.staleness and on_gpus(plan)[GENERATION].attention_groups > 1:
        pins[GENERATION]["expert_parallel"] = 1
    modes = (COLOCATED, DISAGGREGATED) if request.mode == HYBRID else (request.mode,)
    return [(mode, pins) for mode in modes if mode == COLOCATED or plan.num_gpus > 1]


def other_pins(request: FlowRequest, plans: Iterable[FlowPlan], mode: str, base: Pins) -> list[Pins]:
    """Sets of pins that make a plan one that can be expressed, likely ones first."""
    found: list[Pins] = []
    for plan in plans:
        for meshes in pool_pins(request, plan, mode, lead=trained(plan), names=[*in_workers(plan)]):
            ways: list[Pins] = []
            for item in sorted(in_workers(plan).values(), key=lambda item: -item.call.time_s):
                layout = tied(request, plan, item.layout)
                way = together(base, meshes, layout)
                if way not in (*ways, *found):
                    ways.append(way)
            found += ways[:_MOST_LAYOUTS]
    return found


def further_pins(request: FlowRequest, plan: FlowPlan) -> list[Pins]:
    """Micro-batches as they must be, with the ways to recompute that there are where a plan has another."""
    sizes, item = _micro_batch_pins(request, plan), trained(plan)
    if not any(gap.field.endswith(".recompute") for gap in _training(request, plan)):
        return [sizes] if sizes else []
    ways = (Recompute.FULL, Recompute.SELECTIVE, Recompute.NONE)
    kept = [way for way in ways if way != Recompute.SELECTIVE or request.stack.framework == MEGATRON]
    return [together(sizes, {item.call.name: {"recompute": int(way)}}) for way in kept]
