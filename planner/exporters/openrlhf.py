"""OpenRLHF: arguments of its ``openrlhf.cli.train_ppo_ray``, from the plan of a workflow.

Target: OpenRLHF 0.11 (openrlhf 0.11.2: ``openrlhf/cli/train_ppo_ray.py``), whose parser and checks tests feed where it
is installed. What it cannot express is in ``openrlhf_checks``.
"""

from collections.abc import Sequence

from costmodels.plan import Recompute
from planner.dataflow.flow_request import FlowRequest
from planner.dataflow.flow_results import FlowPlan
from planner.dataflow.graph import EXTERNAL
from planner.exporters.exported import Exported, Target, scripted, written_for
from planner.exporters.flow_target import (
    GENERATION,
    FlowTarget,
    Placed,
    about,
    checkpoint,
    longest_response,
    memory_share,
    on_gpus,
    responses,
)
from planner.exporters.openrlhf_checks import (
    EASED,
    FURTHER,
    bases,
    further_pins,
    in_workers,
    is_apart,
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
_IN_LOSS = ("grpo",)  # whose divergence from the reference is a term of the loss (arXiv:2402.03300), not of the reward

Options = list[list[str]]


def export_flow(request: FlowRequest, plan: FlowPlan, said: Sequence[str] = ()) -> Exported:
    """The launch of ``train_ppo_ray`` that runs a plan.

    Args:
        request: The question.
        plan: Its answer.
        said: Sentences about the plan for the script.
    """
    options = [
        *_placement(request, plan),
        *_engines(request, plan),
        *_strategy(request, plan),
        *_batches(request, plan),
        *_algorithm(request),
        *_models(request, plan),
    ]
    return scripted(
        TARGET,
        [written_for(TARGET), about(request, plan), *said],
        command=[["python3", "-m", "openrlhf.cli.train_ppo_ray"], *options],
        gaps=(*placement_gaps(request, plan), *question_gaps(request)),
        left_to_you=_yours(request, plan),
    )


def _placement(request: FlowRequest, plan: FlowPlan) -> Options:
    """GPUs of every role, and which roles share them."""
    roles = {item.call.role: item for item in in_workers(plan).values()}
    options: Options = []
    for role, item in roles.items():
        nodes, each = _nodes(request, item)
        options += _set(role, num_nodes=nodes, num_gpus_per_node=each)
    if not is_apart(plan) or request.staleness:
        options.append(["--train.colocate_all"])
    elif "ref" in roles:
        options.append(["--train.colocate_actor_ref"])
    if request.staleness:
        options += [["--train.async_enable"], *_set("train", async_queue_size=request.staleness)]
    return options


def _nodes(request: FlowRequest, item: Placed) -> tuple[int, int]:
    """Nodes, and GPUs of each, that a call has."""
    each = min(request.cluster.groups[0].node.devices_per_node, item.call.num_gpus)
    return item.call.num_gpus // each, each


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
    layout = in_workers(plan)["actor_train"].layout
    options = _set("ds", zero_stage=layout.zero_stage)
    if layout.tensor_parallel > 1:
        options += _set("ds", tensor_parallel_size=layout.tensor_parallel)
    if layout.context_parallel > 1:
        options += _set("ds", ring_attn_size=layout.context_parallel)
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
    train = in_workers(plan)["actor_train"]
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
        *_set("data", max_len=request.prompt_tokens + longest_response(request)),
    ]


def _algorithm(request: FlowRequest) -> Options:
    graph = request.graph
    options = _set("algo", **{"advantage.estimator": _ADVANTAGES[graph.name]})
    reference = any(call.name == "ref_inf" for call in graph.calls)
    if not reference:
        options += _set("algo", **{"kl.init_coef": 0})
    elif graph.name in _IN_LOSS:
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
    used = {item.call.role for item in in_workers(plan).values()}
    return [role for role in ("actor", "critic", "reward") if role in used]


def _yours(request: FlowRequest, plan: FlowPlan) -> tuple[str, ...]:
    graph, item = request.graph, on_gpus(plan)[GENERATION]
    found = ["--data.prompt_dataset, learning rates, clipping and the rest, as arguments of train.sh"]
    if any(call.kind == EXTERNAL for call in graph.calls):
        found.append(
            "rewards: --reward.remote_url or --train.agent_func_path; without them it looks for a reward model"
        )
    for role in _roles(plan):
        if not checkpoint(request.models[role]):
            found.append(f"--{role}.model_name_or_path: the checkpoint of {request.models[role].name}")
    heads = [role for role in _roles(plan) if role != "actor"]
    if heads:
        found.append(f"checkpoints of {' and '.join(heads)}: those written are of language models of that size")
    found.append(
        f"vLLM runs as many sequences at once as it likes: train_ppo_ray sets no max_num_seqs, which the plan has at "
        f"{item.call.concurrent}"
    )
    if kept(plan):
        words = ", ".join(kept(plan))
        found.append(f"16-bit weights of {words} stay on the GPUs, where the plan has them on the host in between")
    nodes = plan.num_gpus // min(request.cluster.groups[0].node.devices_per_node, plan.num_gpus)
    if nodes > 1:
        found.append(
            f"Ray on the {nodes} nodes: ray start --head on one, ray start --address on others; train.sh there"
        )
    return tuple(found)


def _set(where: str, **values: object) -> Options:
    """One option per value."""
    return [[f"--{where}.{name}", str(value)] for name, value in values.items()]


FLOW = FlowTarget(
    target=TARGET,
    workflows=tuple(_ADVANTAGES),
    one_pool=False,
    export=export_flow,
    question_gaps=question_gaps,
    placement_gaps=placement_gaps,
    bases=bases,
    other_pins=other_pins,
    further_pins=further_pins,
    further=FURTHER,
    eased=EASED,
)
