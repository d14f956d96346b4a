"""What OpenRLHF cannot express of a workflow's plan, and what to fix so that another plan can be expressed.

One DeepSpeed strategy holds for all models: one ZeRO stage, one tensor-parallel and one ring-attention degree; frozen
models are whole, or sharded as training is under ZeRO-3. With ``train.colocate_all`` all share all GPUs, engines too
unless generation runs ahead; with ``train.colocate_actor_ref`` the actor shares its GPUs with the reference alone.

Source:
    openrlhf 0.11.2: the arguments and checks of cli/train_ppo_ray.py, which places actors and engines; ``get_ds_eval_
    config`` and ``accumulated_gradient`` of utils/deepspeed/deepspeed.py; ``offload_deepspeed_states`` of
    utils/deepspeed/deepspeed_utils.py, which leaves 16-bit weights where they are; ``create_vllm_engines`` of
    trainer/ray/vllm_engine.py; ``split_rollout_samples`` and ``make_experience`` of trainer/ppo_utils/
    experience_maker.py; trainer/ppo_trainer_async.py, where new weights wait for a batch or interrupt it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from costmodels.plan import ContextKind, ExecutionPlan, Recompute
from planner.dataflow.flow.request import ASYNC, COLOCATED, DISAGGREGATED, HYBRID, FlowRequest
from planner.dataflow.flow.results import FlowPlan
from planner.dataflow.graphs.graph import TRAIN
from planner.dataflow.holdings import ALL_OUT, FETCHED, HOLDING_NAMES, RESIDENT
from planner.dataflow.rollouts import WHOLE
from planner.exporters.exported import Gap, gaps
from planner.exporters.flow_target import (
    DEGREES,
    GENERATION,
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
from planner.phrases import gib
from profiles.parameters import total_parameters

ENGINE = "vllm"
FURTHER, EASED = ("micro_batch_size", "recompute"), ("active_bytes",)
_SHARDED = 3  # ZeRO stage whose frozen models are sharded, too, and may be offloaded
_WEIGHT_BYTES = 2  # of bf16
_MOST_LAYOUTS = 3  # of one answer on one division of the GPUs, each a search of its own
_WIDER = (2, 4, 8)  # tensor-parallel degrees tried besides


def scoring(plan: FlowPlan) -> dict[str, Placed]:
    """Calls of trainers that train nothing."""
    return {name: item for name, item in on_trainers(plan).items() if item.call.kind != TRAIN}


def placement_gaps(request: FlowRequest, plan: FlowPlan) -> tuple[Gap, ...]:
    """What of meshes, layouts, micro-batches and places of weights it cannot express."""
    layouts = (*_tied(plan), *_training(plan), *_engine(plan))
    return (*_meshes(request, plan), *layouts, *_micro_batches(plan), *_kept(request, plan))


def question_gaps(request: FlowRequest) -> tuple[Gap, ...]:
    """What of the question it cannot express, whatever the plan."""
    return gaps(*plain_checks(request, "actor", called="actor"), *_of(request))


def _of(request: FlowRequest) -> Iterator[tuple[bool, str, str, str]]:
    graph, options = request.graph, request.options
    yield library_check(request, "actor", chosen=True)
    yield length_check(request, "actor")
    asked = options.engine or ENGINE
    yield asked != ENGINE, "engine", f"it generates with {ENGINE}; got {asked}", f"engine {ENGINE}"
    problem = "its reference has weights of its own, and the plan's is the policy without adapters"
    yield graph.role("actor").task != "full", "settings.task", problem, "task=full"
    problem = "it always computes log-probabilities before it trains"
    missing = all(call.name != "actor_inf" for call in graph.calls)
    yield missing, "settings.old_logprobs", problem, "old_logprobs=true"
    yield options.stream, "stream", "log-probabilities are of whole batches", "leave it out"
    problem = "a batch of responses ends before the next begins"
    yield options.rollout != WHOLE, "rollout", problem, "rollout whole"
    alone = graph.name in ("grpo", "rloo", "dapo") and graph.call("actor_train").factor == 1
    yield alone, "settings.group_size", "advantages are told from several responses; got 1", "group_size=2"


def _meshes(request: FlowRequest, plan: FlowPlan) -> Iterator[Gap]:
    calls, total = on_gpus(plan), plan.num_gpus
    lead, engine = calls["actor_train"].gpus, calls[GENERATION].gpus
    yield from mesh_gaps(on_trainers(plan), calls["actor_train"], "all models are")
    alone = all(item.call.role in ("actor", "ref") for item in on_trainers(plan).values())
    if not is_apart(plan):
        if lead != (0, total):
            problem = f"all calls are on all {total} GPUs; got {lead[0]}-{lead[1] - 1}"
            yield Gap(field="plan.actor_train.gpus", problem=problem, hint="mode colocated")
    elif sorted((engine, lead)) != [(0, cut := min(engine[1], lead[1])), (cut, total)]:
        problem = f"engines have all GPUs that do not train; got {engine[0]}-{engine[1] - 1}"
        yield Gap(field=f"plan.{GENERATION}.gpus", problem=problem, hint="mode colocated")
    elif not (alone or request.staleness):
        problem = "critic and reward model share GPUs with the actor where engines do, too, or run ahead"
        yield Gap(field=f"plan.{GENERATION}.gpus", problem=problem, hint="mode colocated or async")


def _tied(plan: FlowPlan) -> Iterator[Gap]:
    workers = on_trainers(plan)
    yield from pin_gaps(workers, tied(plan, workers["actor_train"].layout), "one strategy holds for all models")


def _training(plan: FlowPlan) -> Iterator[Gap]:
    lead = on_trainers(plan)["actor_train"].layout
    for name, item in on_trainers(plan).items():
        layout = item.layout
        ring = layout.context_parallel == 1 or layout.context_kind == ContextKind.RING
        unlike = item.call.kind == TRAIN and layout.recompute != lead.recompute
        some = layout.recompute not in (Recompute.NONE, Recompute.FULL)
        out = item.call.kind == TRAIN and layout.offload_optimizer != lead.offload_optimizer
        hint = f"pin {name}.recompute=full"
        checks = (
            (layout.pipeline_parallel > 1, "pipeline_parallel", "models have no stages", f"pin {name}.pp=1"),
            (layout.expert_parallel > 1, "expert_parallel", "experts are not spread", f"pin {name}.ep=1"),
            (not ring, "context_kind", "attention over several GPUs is a ring", f"pin {name}.cp=1"),
            (layout.zero_shard_degree > 0, "zero_shard_degree", "shards span all data-parallel ranks", ""),
            (some or unlike, "recompute", "all trained models recompute all layers, or none", hint),
            (out, "offload_optimizer", "all optimizers are on the host, or none", ""),
            (layout.offload_parameters, "offload_parameters", "weights stay where they are trained", ""),
            (layout.offload_activations, "offload_activations", "activations stay on the GPU", ""),
        )
        yield from layout_gaps(name, layout, checks)


def _engine(plan: FlowPlan) -> Iterator[Gap]:
    item = on_gpus(plan)[GENERATION]
    if item.call.engine != ENGINE:
        problem = f"it generates with {ENGINE}; got {item.call.engine}"
        yield Gap(field=f"plan.{GENERATION}.engine", problem=problem, hint=f"engine {ENGINE}")
    for column in (*DEGREES[1:], "expert_parallel"):
        degree = getattr(item.layout, column)
        if degree > 1:
            problem = f"its engines have tensor-parallel ranks alone; got {degree}"
            yield Gap(field=f"plan.{GENERATION}.{column}", problem=problem, hint=f"pin {GENERATION}.{column}=1")


def _micro_batches(plan: FlowPlan) -> Iterator[Gap]:
    why = "what trains has one micro-batch, and what scores another"
    yield from pin_gaps(on_trainers(plan), _micro_batch_pins(plan), why)


def _micro_batch_pins(plan: FlowPlan) -> Pins:
    """Micro-batches that differ: all take the smallest of those that train, and of those that score."""
    scored = scoring(plan)
    trains = {name: item for name, item in on_trainers(plan).items() if name not in scored}
    found: Pins = {}
    for calls in (trains, scored):
        least = min((item.layout.micro_batch_size for item in calls.values()), default=1)
        unlike = [name for name, item in calls.items() if item.layout.micro_batch_size != least]
        found |= {name: {"micro_batch_size": least} for name in unlike}
    return found


def sleeps(plan: FlowPlan) -> bool:
    """Whether gradients and optimizer states of all that is trained are on the host between its runs."""
    workers = on_trainers(plan).values()
    return any(item.call.kind == TRAIN and item.call.holding != HOLDING_NAMES[RESIDENT] for item in workers)


def offloads(item: Placed) -> bool:
    """Whether weights of a frozen role are on the host between its runs, as those of sharded ones may be."""
    return item.call.holding == HOLDING_NAMES[FETCHED] and item.layout.zero_stage == _SHARDED


def kept(plan: FlowPlan) -> tuple[str, ...]:
    """Calls whose 16-bit weights stay on the GPUs, where the plan has them on the host."""
    away = (HOLDING_NAMES[FETCHED], HOLDING_NAMES[ALL_OUT])
    return tuple(name for name, item in on_trainers(plan).items() if item.call.holding in away and not offloads(item))


def _between(request: FlowRequest, plan: FlowPlan) -> dict[str, float]:
    """Bytes on every GPU that OpenRLHF leaves there of each role between its calls, which share its weights."""
    found: dict[str, float] = {}
    for name, item in on_trainers(plan).items():
        layout, call = item.layout, item.call
        ranks = layout.data_parallel * layout.context_parallel if layout.zero_stage == _SHARDED else 1
        weights = total_parameters(request.models[call.role]) * _WEIGHT_BYTES / layout.tensor_parallel / ranks
        asleep = call.kind == TRAIN and sleeps(plan)
        left = weights if asleep or name in kept(plan) else call.static_bytes
        found[call.role] = max(left, found.get(call.role, 0.0))
    return found


def _kept(request: FlowRequest, plan: FlowPlan) -> Iterator[Gap]:
    """Whether what is left there leaves no room. What a call takes has its own role's weights, but an engine's own."""
    stays, calls = _between(request, plan), on_gpus(plan)
    for group in plan.memory:
        # An engine, whose weights are its own, is a role by itself.
        roles = {
            owner.call: "" if owner.call == GENERATION else calls[owner.call].call.role
            for owner in group.owners
            if owner.call in calls
        }
        here = [owner for owner in group.owners if owner.call in roles]
        for owner in here:
            own = sum(each.static_bytes for each in here if roles[each.call] == roles[owner.call])
            others = sum(stays.get(role, 0.0) for role in set(roles.values()) - {roles[owner.call]})
            needed = own + owner.active_bytes + others
            if needed > group.usable_bytes:
                problem = f"16-bit weights stay on the GPUs, and beside them it needs {gib(needed)}"
                sharded = calls["actor_train"].layout.zero_stage == _SHARDED
                smaller = f"pin {owner.call}.micro_batch, to a smaller one" if roles[owner.call] else "more GPUs"
                yield Gap(
                    field=f"plan.{owner.call}.active_bytes",
                    problem=f"{problem} of {gib(group.usable_bytes)}",
                    hint=smaller if sharded else "pin actor_train.zero=3",
                )


def tied(plan: FlowPlan, lead: ExecutionPlan) -> Pins:
    """What DeepSpeed's calls must have where one of them has the layout ``lead``."""
    workers = on_trainers(plan)
    stage = lead.zero_stage or workers["actor_train"].layout.zero_stage
    found: Pins = {}
    for name, item in workers.items():
        found[name] = {column: getattr(lead, column) for column in DEGREES}
        if item.layout.data_parallel * item.layout.context_parallel > 1:
            found[name]["zero_stage"] = stage if item.call.kind == TRAIN or stage == _SHARDED else 0
    return found


def bases(request: FlowRequest, plan: FlowPlan) -> list[tuple[str, Pins]]:
    """Modes with what engines must have; sharded, and as it comes."""
    calls = on_gpus(plan)
    engine: dict[str, object] = {"engine": ENGINE, "pipeline_parallel": 1, "context_parallel": 1}
    engine |= {"expert_parallel": 1} if has_experts(request, calls[GENERATION]) else {}
    models = [name for name, item in on_trainers(plan).items() if has_experts(request, item)]
    pins: Pins = {GENERATION: engine} | {name: {"expert_parallel": 1} for name in models}
    sharded = together(pins, {name: {"zero_stage": _SHARDED} for name in on_trainers(plan)})
    alone = all(item.call.role in ("actor", "ref") for item in on_trainers(plan).values())
    modes = (COLOCATED, DISAGGREGATED) if request.mode == HYBRID else (request.mode,)
    kept_modes = [mode for mode in modes if mode == COLOCATED or (plan.num_gpus > 1 and (alone or mode == ASYNC))]
    return [(mode, each) for mode in kept_modes for each in (pins, sharded)]


def other_pins(request: FlowRequest, plans: Iterable[FlowPlan], mode: str, base: Pins) -> list[Pins]:
    """Sets of pins that make a plan one that can be expressed, likely ones first.

    Layouts are those of the plans' calls, and of the first with its first division of the GPUs more tensor-parallel
    ones: weights that nothing takes away want ranks to share them.
    """
    found: list[Pins] = []
    for plan in plans:
        first = not found
        workers = on_trainers(plan)
        layouts = [item.layout for item in sorted(workers.values(), key=lambda item: -item.call.time_s)][:_MOST_LAYOUTS]
        wider = [replace(workers["actor_train"].layout, tensor_parallel=degree) for degree in _WIDER]
        pools = pool_pins(request, plan, mode, lead=workers["actor_train"], names=[*workers])
        for number, meshes in enumerate(pools):
            for layout in [*layouts, *wider] if first and not number else layouts:
                way = together(tied(plan, layout), base, meshes)
                found += [way] if way not in found else []
    return found


def further_pins(request: FlowRequest, plan: FlowPlan) -> list[Pins]:
    """Micro-batches alike, and trained models that recompute alike, or everything where there is no room."""
    sizes = _micro_batch_pins(plan)
    trains = [name for name, item in on_trainers(plan).items() if item.call.kind == TRAIN]
    unlike = any(gap.field.endswith(".recompute") for gap in _training(plan))
    ways = (Recompute.FULL, Recompute.NONE) if unlike else (Recompute.FULL,)
    recomputed = [together(sizes, {name: {"recompute": int(way)} for name in trains}) for way in ways]
    whole = on_trainers(plan)["actor_train"].layout.recompute == Recompute.FULL
    crowded = any(_kept(request, plan)) and not whole
    return recomputed if unlike or crowded else [sizes] if sizes else []
