"""OpenRLHF: arguments of its ``openrlhf.cli.train_ppo_ray``, from the plan of a workflow.

Target: OpenRLHF 0.11 (openrlhf 0.11.2: ``openrlhf/cli/train_ppo_ray.py``), whose parser and checks tests feed where it
is installed. What it cannot express is in ``openrlhf_checks``.
"""

from costmodels.plan import Recompute
from planner.dataflow.flow.request import FlowRequest
from planner.dataflow.flow.results import FlowPlan
from planner.dataflow.graphs.graph import EXTERNAL
from planner.exporters.exported import Target
from planner.exporters.flow_target import (
    GENERATION,
    IN_LOSS,
    FlowTarget,
    attention_of,
    checkpoint,
    checkpoints_left,
    is_apart,
    longest_response,
    longest_sequence,
    memory_share,
    node_counts,
    on_gpus,
    on_trainers,
    ray_left,
    responses,
)
from planner.exporters.openrlhf_checks import (
    EASED,
    FURTHER,
    bases,
    further_pins,
    kept,
    offloads,
    other_pins,
    placement_gaps,
    question_gaps,
    scoring,
    sleeps,
)

TARGET = Target(name="openrlhf", title="OpenRLHF 0.11", stacks=("deepspeed", "deepspeed-liger"))
# Workflow to ``--algo.advantage.estimator``.
_ADVANTAGES = {
    "ppo": "gae",
    "grpo": "group_norm",
    "dapo": "group_norm",
    "rloo": "rloo",
    "reinforce++": "reinforce",
}

Options = list[list[str]]


def _command(request: FlowRequest, plan: FlowPlan) -> Options:
    return [
        ["python3", "-m", "openrlhf.cli.train_ppo_ray"],
        *_placement(request, plan),
        *_engines(request, plan),
        *_strategy(request, plan),
        *_batches(request, plan),
        *_algorithm(request),
        *_models(request, plan),
    ]


def _placement(request: FlowRequest, plan: FlowPlan) -> Options:
    """GPUs of every role, and which roles share them."""
    roles = {item.call.role: item for item in on_trainers(plan).values()}
    options: Options = []
    for role, item in roles.items():
        nodes, each = node_counts(request, item.call.num_gpus)
        options += _set(role, num_nodes=nodes, num_gpus_per_node=each)
    if not is_apart(plan) or request.staleness:
        options.append(["--train.colocate_all"])
    elif "ref" in roles:
        options.append(["--train.colocate_actor_ref"])
    if request.staleness:
        options += [["--train.async_enable"], *_set("train", async_queue_size=request.staleness)]
    return options


def _engines(request: FlowRequest, plan: FlowPlan) -> Options:
    item = on_gpus(plan)[GENERATION]
    tensor = item.layout.tensor_parallel
    options = _set(
        "vllm",
        num_engines=item.call.num_gpus // tensor,
        tensor_parallel_size=tensor,
        gpu_memory_utilization=memory_share(request, item),
    )
    options += [["--vllm.enforce_eager"]] if request.options.eager else []
    return options if is_apart(plan) else [*options, ["--vllm.enable_sleep"]]


def _strategy(request: FlowRequest, plan: FlowPlan) -> Options:
    """What DeepSpeed does with all models."""
    layout = on_trainers(plan)["actor_train"].layout
    options = _set("ds", zero_stage=layout.zero_stage)
    if layout.tensor_parallel > 1:
        options += _set("ds", tensor_parallel_size=layout.tensor_parallel)
    if layout.context_parallel > 1:
        options += _set("ds", ring_attn_size=layout.context_parallel)
    if attention := attention_of(request, "actor"):
        options += _set("ds", attn_implementation=attention)
    flags = {
        "--ds.adam_offload": layout.offload_optimizer,
        "--ds.enable_sleep": sleeps(plan),
        "--ds.overlap_comm": layout.overlap_grad_reduce,
        "--ds.packing_samples": True,  # micro-batches are of sequences of mean length
        "--ds.use_liger_kernel": request.stack.name == "deepspeed-liger",
        "--actor.gradient_checkpointing_enable": layout.recompute == Recompute.FULL,
    }
    options += [[name] for name, on in flags.items() if on]
    return options + [[f"--{item.call.role}.offload"] for item in scoring(plan).values() if offloads(item)]


def _batches(request: FlowRequest, plan: FlowPlan) -> Options:
    train = on_trainers(plan)["actor_train"]
    scored = [item.layout.micro_batch_size for item in scoring(plan).values()]
    return [
        *_set(
            "rollout",
            batch_size=request.batch,
            n_samples_per_prompt=responses(request),
            micro_batch_size=min(scored, default=train.layout.micro_batch_size),
            max_new_tokens=longest_response(request),
        ),
        *_set(
            "train",
            batch_size=train.call.sequences // train.call.mini_batches,
            micro_batch_size=train.layout.micro_batch_size,
        ),
        *_set("data", max_len=longest_sequence(request)),
    ]


def _algorithm(request: FlowRequest) -> Options:
    graph = request.graph
    options = _set("algo", **{"advantage.estimator": _ADVANTAGES[graph.name]})
    reference = any(call.name == "ref_inf" for call in graph.calls)
    if not reference:
        options += _set("algo", **{"kl.init_coef": 0})
    elif graph.name in IN_LOSS:
        options += [["--algo.kl.use_loss"], *_set("algo", **{"kl.estimator": "k3"})]
    if graph.call(GENERATION).factor > graph.call("actor_train").factor:
        options.append(["--algo.dynamic_filtering_enable"])
    return options


def _models(request: FlowRequest, plan: FlowPlan) -> Options:
    """Checkpoints, where their hub is known."""
    names = {role: checkpoint(request.models[role]) for role in _roles(plan)}
    return [option for role, name in names.items() if name for option in _set(role, model_name_or_path=name)]


def _roles(plan: FlowPlan) -> list[str]:
    """Roles that a checkpoint is named for; the reference has the actor's."""
    used = {item.call.role for item in on_trainers(plan).values()}
    return [role for role in ("actor", "critic", "reward") if role in used]


def _yours(request: FlowRequest, plan: FlowPlan) -> tuple[str, ...]:
    graph, item = request.graph, on_gpus(plan)[GENERATION]
    found = ["--data.prompt_dataset, learning rates, clipping and the rest, as arguments of train.sh"]
    if any(call.kind == EXTERNAL for call in graph.calls):
        found.append(
            "rewards: --reward.remote_url or --train.agent_func_path; without them it looks for a reward model"
        )
    found += checkpoints_left(request, {role: f"--{role}.model_name_or_path" for role in _roles(plan)})
    found.append(
        f"vLLM runs as many sequences at once as it likes: train_ppo_ray sets no max_num_seqs, which the plan has at "
        f"{item.call.concurrent}"
    )
    if kept(plan):
        words = ", ".join(kept(plan))
        found.append(f"16-bit weights of {words} stay on the GPUs, where the plan has them on the host in between")
    return (*found, *ray_left(node_counts(request, plan.num_gpus)[0]))


def _set(where: str, **values: object) -> Options:
    """One option per value."""
    return [[f"--{where}.{name}", str(value)] for name, value in values.items()]


FLOW = FlowTarget(
    target=TARGET,
    workflows=tuple(_ADVANTAGES),
    one_pool=False,
    command=_command,
    left_to_you=_yours,
    question_gaps=question_gaps,
    placement_gaps=placement_gaps,
    bases=bases,
    other_pins=other_pins,
    further_pins=further_pins,
    further=FURTHER,
    eased=EASED,
)
