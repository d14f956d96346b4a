"""verl: Hydra overrides of its ``verl.trainer.main_ppo``, from the plan of a workflow.

Target: verl 0.9 (as of 0.9.1: ``verl/trainer/config``), whose configuration and checks the tests feed where it is
installed. What it cannot express is in ``verl_checks``.
"""

import math
from typing import Any

from costmodels.plan import ContextKind, ExecutionPlan, Recompute
from planner.dataflow.flow.request import FlowRequest
from planner.dataflow.flow.results import FlowPlan
from planner.dataflow.graphs.graph import EXTERNAL
from planner.dataflow.holdings import ALL_OUT, FETCHED, HOLDING_NAMES, STATES_OUT
from planner.exporters.exported import Target
from planner.exporters.flow_target import (
    IN_LOSS,
    REWARD,
    SGLANG,
    FlowTarget,
    Placed,
    attention_of,
    checkpoint,
    checkpoints_left,
    kept_beside,
    longest_response,
    longest_sequence,
    memory_share,
    node_counts,
    on_gpus,
    prefill_tokens,
    ray_left,
    responses,
)
from planner.exporters.megatron_model import CONTEXT_NAMES, recomputation
from planner.exporters.verl_checks import bases, further_pins, in_workers, other_pins, placement_gaps, question_gaps
from planner.rules.base import MEGATRON
from profiles.engines import find_engine
from profiles.model import ModelSpec

TARGET = Target(name="verl", title="verl 0.9", stacks=("megatron-core", "hf-fsdp"))
# Workflow to ``algorithm.adv_estimator`` (AdvantageEstimator of verl/trainer/ppo/core_algos.py).
_ADVANTAGES = {"ppo": "gae", "grpo": "grpo", "dapo": "grpo", "rloo": "rloo", "reinforce++": "reinforce_plus_plus"}
WORKFLOWS = tuple(_ADVANTAGES)
_ROLES = "actor_rollout_ref"
_ACTOR, _REF, _ROLLOUT = f"{_ROLES}.actor", f"{_ROLES}.ref", f"{_ROLES}.rollout"

Options = list[list[str]]


def _command(request: FlowRequest, plan: FlowPlan) -> Options:
    return [
        ["python3", "-m", "verl.trainer.main_ppo"],
        *_algorithm(request),
        *_data(request),
        *_actor(request, plan),
        *_rollout(request, plan),
        *_reference(request, plan),
        *_critic(request, plan),
        *_reward(request, plan),
        *_machines(request, plan),
    ]


def _algorithm(request: FlowRequest) -> Options:
    graph = request.graph
    names = {call.name for call in graph.calls}
    in_loss = graph.name in IN_LOSS
    options = _set(
        "algorithm", adv_estimator=_ADVANTAGES[graph.name], use_kl_in_reward="ref_inf" in names and not in_loss
    )
    options += _set("algorithm.rollout_correction", bypass_mode="actor_inf" not in names)
    sampled = graph.call("actor_gen").factor / graph.call("actor_train").factor
    if sampled > 1:
        options += _set("algorithm.filter_groups", enable=True, max_inflight_gen_batches=math.ceil(sampled))
    return options + _set(_ACTOR, use_kl_loss="ref_inf" in names and in_loss)


def _data(request: FlowRequest) -> Options:
    return _set(
        "data",
        train_batch_size=request.batch,
        max_prompt_length=request.prompt_tokens,
        max_response_length=longest_response(request),
    )


def _actor(request: FlowRequest, plan: FlowPlan) -> Options:
    calls = in_workers(plan)
    train = calls["actor_train"]
    options = [["model_engine=megatron"]] if _is_megatron(request) else _set(_ACTOR, strategy="fsdp")
    options += _model(f"{_ROLES}.model", request.models["actor"])
    options += _set(f"{_ROLES}.model", use_fused_kernels=True) if request.options.linear_loss else []
    options += _attention(request, "actor", _ROLES) + _adapters(request)
    options += _set(
        _ACTOR,
        ppo_mini_batch_size=request.batch // train.call.mini_batches,
        use_dynamic_bsz=False,
        ppo_micro_batch_size_per_gpu=train.layout.micro_batch_size,
    )
    # The pass before training takes the same ranks; verl asks for its micro-batch even where there is none.
    scoring = calls.get("actor_inf", train)
    options += _set(_ROLLOUT, log_prob_micro_batch_size_per_gpu=scoring.layout.micro_batch_size)
    return options + _trained(request, train, f"{_ROLES}.model", _ACTOR, train.layout)


def _attention(request: FlowRequest, role: str, where: str) -> Options:
    """The library named, which goes into the configuration of transformers' model."""
    found = attention_of(request, role)
    return _set(f"+{where}.model.override_config", attn_implementation=found) if found else []


def _adapters(request: FlowRequest) -> Options:
    """Adapters on all linear layers, which are the default targets of both back ends; engines load the base first."""
    lora = request.graph.role("actor").adapters(request.models["actor"]).lora
    if lora is None:
        return []
    where, name = (f"{_ROLES}.model.lora", "rank") if _is_megatron(request) else (f"{_ROLES}.model", "lora_rank")
    return _set(where, **{name: lora.rank}) + _set(_ROLLOUT, load_format="safetensors")


def _trained(request: FlowRequest, train: Placed, model: str, role: str, lead: ExecutionPlan) -> Options:
    """Layout, recomputation and what leaves the GPUs of a role that is trained."""
    layout, engine = train.layout, _engine(request, role)
    options = _layout(request, train, engine, lead)
    out = train.call.holding in (HOLDING_NAMES[STATES_OUT], HOLDING_NAMES[ALL_OUT])
    # Buffers of gradients leave with the weights under Megatron; FSDP frees gradients after each step.
    weights = out if _is_megatron(request) else train.call.holding == HOLDING_NAMES[ALL_OUT]
    options += _set(engine, param_offload=weights, optimizer_offload=out)
    if not _is_megatron(request):
        return options + _set(model, enable_gradient_checkpointing=layout.recompute == Recompute.FULL)
    options += _set(engine, use_distributed_optimizer=layout.zero_stage > 0)
    named = {
        f"recompute_{name}": f"[{','.join(value)}]" if isinstance(value, tuple) else value
        for name, value in recomputation(layout).items()
    }
    return options + _set(f"{engine}.override_transformer_config", **named)


def _layout(request: FlowRequest, item: Placed, engine: str, lead: ExecutionPlan) -> Options:
    """Degrees of a role; the data-parallel one is what is left of the GPUs. ``lead`` is the layout of the actor."""
    layout = item.layout
    if not _is_megatron(request):
        size = layout.zero_shard_degree or -1
        return _set(engine, fsdp_size=size, reshard_after_forward=layout.zero_stage != 2)
    options = _set(
        engine,
        tensor_model_parallel_size=layout.tensor_parallel,
        pipeline_model_parallel_size=layout.pipeline_parallel,
        context_parallel_size=layout.context_parallel,
        sequence_parallel=layout.sequence_parallel,
    )
    if lead.virtual_stages > 1:
        options += _set(engine, virtual_pipeline_model_parallel_size=lead.virtual_stages)
    if request.models[item.call.role].moe is not None:
        experts = {"expert_model": layout.expert_parallel, "expert_tensor": layout.expert_tensor_parallel}
        options += _set(engine, **{f"{name}_parallel_size": degree for name, degree in experts.items()})
    ends = {"first": layout.first_stage_layers, "last": layout.last_stage_layers}
    named: dict[str, Any] = {f"num_layers_in_{end}_pipeline_stage": layers for end, layers in ends.items() if layers}
    if layout.context_parallel > 1 and layout.context_kind != ContextKind.RING:
        named["cp_comm_type"] = CONTEXT_NAMES[layout.context_kind]
    return options + _set(f"+{engine}.override_transformer_config", **named)


def _rollout(request: FlowRequest, plan: FlowPlan) -> Options:
    generation = on_gpus(plan)["actor_gen"]
    layout, groups = generation.layout, generation.attention_groups
    engine = find_engine(generation.call.engine)
    # vLLM counts the sequences of a group, SGLang those of all that share experts.
    running = generation.call.concurrent * (groups if engine.name == SGLANG else 1)
    options = _set(
        _ROLLOUT,
        name=engine.name,
        n=responses(request),
        tensor_model_parallel_size=layout.tensor_parallel,
        data_parallel_size=groups,
        expert_parallel_size=layout.expert_parallel,
        gpu_memory_utilization=memory_share(request, generation, beside_bytes=kept_beside(plan, generation)),
        max_model_len=longest_sequence(request),
        max_num_seqs=running,
        max_num_batched_tokens=prefill_tokens(generation, running),
        enforce_eager=request.options.eager,
        free_cache_engine=True,
    )
    if groups > 1 and engine.name == SGLANG:
        options += _set(f"+{_ROLLOUT}.engine_kwargs.sglang", enable_dp_attention=True)
    return options


def _reference(request: FlowRequest, plan: FlowPlan) -> Options:
    """The frozen reference; a policy with adapters is its own."""
    reference = in_workers(plan).get("ref_inf")
    if reference is None or reference.call.role == "actor":
        return []
    engine = _engine(request, _REF)
    options = _set(_REF, log_prob_micro_batch_size_per_gpu=reference.layout.micro_batch_size)
    options += _layout(request, reference, engine, in_workers(plan)["actor_train"].layout)
    options += _set(engine, param_offload=reference.call.holding == HOLDING_NAMES[FETCHED])
    return options if _is_megatron(request) else options + _set(engine, model_dtype="bfloat16")


def _critic(request: FlowRequest, plan: FlowPlan) -> Options:
    """The critic; its workers take micro-batches by number only where its engine is told so."""
    calls = in_workers(plan)
    train = calls.get("critic_train")
    if train is None:
        return []
    engine, size = _engine(request, "critic"), train.layout.micro_batch_size
    options = _model("critic.model", request.models["critic"]) + _attention(request, "critic", "critic")
    options += _set(
        "critic",
        ppo_mini_batch_size=request.batch // train.call.mini_batches,
        ppo_micro_batch_size_per_gpu=size,
    )
    options += _set(
        f"+{engine}",
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=size,
        infer_micro_batch_size_per_gpu=calls.get("critic_inf", train).layout.micro_batch_size,
    )
    return options + _trained(request, train, "critic.model", "critic", calls["actor_train"].layout)


def _reward(request: FlowRequest, plan: FlowPlan) -> Options:
    """A reward model, which an engine runs on the same GPUs."""
    item = on_gpus(plan).get(REWARD)
    if item is None:
        return []
    where, engine = "reward.reward_model", on_gpus(plan)["actor_gen"].call.engine
    options = _set(where, enable=True) + _model(where, request.models[item.call.role], key="model_path")
    return options + _set(
        f"{where}.rollout",
        name=engine,
        tensor_model_parallel_size=item.layout.tensor_parallel,
        gpu_memory_utilization=memory_share(request, item, engine=engine, beside_bytes=kept_beside(plan, item)),
        max_model_len=longest_sequence(request),
        free_cache_engine=item.call.holding == HOLDING_NAMES[FETCHED],
    )


def _machines(request: FlowRequest, plan: FlowPlan) -> Options:
    nodes, each = node_counts(request, plan.num_gpus)
    return _set("trainer", nnodes=nodes, n_gpus_per_node=each)


def _yours(request: FlowRequest, plan: FlowPlan) -> tuple[str, ...]:
    found = [
        "data.train_files and data.val_files, as arguments of train.sh, and so learning rates, clipping and the rest"
    ]
    if any(call.kind == EXTERNAL for call in request.graph.calls):
        found.append("rewards: reward.custom_reward_function.path, where verl does not know the data set")
    roles = {"actor": f"{_ROLES}.model.path", "critic": "critic.model.path", "reward": "reward.reward_model.model_path"}
    used = {item.call.role for item in on_gpus(plan).values()}
    found += checkpoints_left(request, {role: option for role, option in roles.items() if role in used})
    if REWARD in on_gpus(plan):
        found.append("the reward model is planned as a pass of the trainer; verl runs it in an engine")
    return (*found, *ray_left(node_counts(request, plan.num_gpus)[0]))


def _model(where: str, model: ModelSpec, *, key: str = "path") -> Options:
    """The checkpoint, where its hub is known."""
    found = checkpoint(model)
    return _set(where, **{key: found}) if found else []


def _is_megatron(request: FlowRequest) -> bool:
    return request.stack.framework == MEGATRON


def _engine(request: FlowRequest, role: str) -> str:
    """Where a role's engine is configured."""
    if _is_megatron(request):
        return f"{role}.megatron"
    return f"{role}.fsdp" if role == "critic" else f"{role}.fsdp_config"


def _set(where: str, **values: Any) -> Options:
    """One override per value."""
    return [[f"{where}.{name}={value}"] for name, value in values.items()]


FLOW = FlowTarget(
    target=TARGET,
    workflows=WORKFLOWS,
    one_pool=True,
    command=_command,
    left_to_you=_yours,
    question_gaps=question_gaps,
    placement_gaps=placement_gaps,
    bases=bases,
    other_pins=other_pins,
    further_pins=further_pins,
    further=("micro_batch_size",),
)
