"""NeMo-RL: a YAML file on top of one of its own for ``examples/run_*.py``, from the plan of a workflow.

Target: NeMo-RL 0.7 (``examples/configs``, ``PolicyConfig`` of nemo_rl/models/policy/__init__.py, ``VllmConfig`` of
nemo_rl/models/generation/vllm/config.py, ``GRPOConfig`` of nemo_rl/algorithms/grpo.py). ``defaults`` of such a file
names one beside it, which it changes (``load_config_with_inheritance`` of nemo_rl/utils/config.py). What it cannot
express is in ``nemo_rl_checks``.
"""

from typing import Any

import yaml

from costmodels.plan import ExecutionPlan, Recompute
from planner.dataflow.flow.request import FlowRequest
from planner.dataflow.flow.results import FlowPlan
from planner.dataflow.graphs.graph import EXTERNAL
from planner.dataflow.holdings import ALL_OUT, HOLDING_NAMES, RESIDENT, STATES_OUT
from planner.dataflow.rollouts import IN_FLIGHT
from planner.exporters.exported import SCRIPT, Target
from planner.exporters.flow_target import (
    GENERATION,
    FlowTarget,
    Placed,
    checkpoint,
    has_experts,
    is_apart,
    longest_response,
    longest_sequence,
    memory_share,
    node_counts,
    on_gpus,
    prefill_tokens,
    responses,
)
from planner.exporters.megatron_model import recomputation
from planner.exporters.nemo_rl_checks import (
    ENGINE,
    FURTHER,
    PAIRS,
    bases,
    further_pins,
    in_workers,
    needs_async_engine,
    other_pins,
    packs,
    placement_gaps,
    question_gaps,
    trained,
)
from planner.rules.base import MEGATRON

TARGET = Target(name="nemo-rl", title="NeMo-RL 0.7", stacks=("megatron-core", "hf-fsdp"))
CONFIG = "planned.yaml"
# Workflow to the script that runs it and the file it changes, in examples/ and examples/configs/.
_SCRIPTS = {
    "grpo": ("run_grpo.py", "grpo_math_1B.yaml"),
    "dapo": ("run_grpo.py", "grpo_math_1B.yaml"),
    "rloo": ("run_grpo.py", "grpo_math_1B.yaml"),
    "reinforce++": ("run_grpo.py", "grpo_math_1B.yaml"),
    "dpo": ("run_dpo.py", "dpo.yaml"),
    "sft": ("run_sft.py", "sft.yaml"),
    "rm": ("run_rm.py", "rm.yaml"),
}
_FOLDER = "examples/configs"
_VALIDATED = 32  # items at least per batch of validation, as sft.yaml has them

Settings = dict[str, Any]


def _command(request: FlowRequest, plan: FlowPlan) -> list[list[str]]:
    del plan
    return [["uv", "run", f"examples/{_SCRIPTS[request.graph.name][0]}"], ["--config", f"{_FOLDER}/{CONFIG}"]]


def _files(request: FlowRequest, plan: FlowPlan) -> dict[str, str]:
    return {CONFIG: yaml.safe_dump(configuration(request, plan), sort_keys=False)}


def configuration(request: FlowRequest, plan: FlowPlan) -> Settings:
    """What changes of the file that ``defaults`` names."""
    nodes, each = node_counts(request, plan.num_gpus)
    algorithm = _algorithm(request) if GENERATION in on_gpus(plan) else _validation(request, plan)
    return {
        "defaults": _SCRIPTS[request.graph.name][1],
        **algorithm,
        "policy": _policy(request, plan),
        "cluster": {"gpus_per_node": each, "num_nodes": nodes},
    }


def _algorithm(request: FlowRequest) -> Settings:
    """Prompts, responses, how advantages are told, and what generation that runs ahead needs."""
    graph = request.graph
    grpo: Settings = {"num_prompts_per_step": request.batch, "num_generations_per_prompt": responses(request)}
    loss: Settings = {}
    more = graph.call(GENERATION).factor / graph.call("actor_train").factor
    if more > 1:
        grpo |= {"use_dynamic_sampling": True, "batch_multiplier": float(more)}
    if graph.name == "rloo":
        baseline = {"normalize_rewards": False, "use_leave_one_out_baseline": True}
        grpo |= baseline | {"adv_estimator": {"name": "grpo", **baseline}}
    if graph.name == "reinforce++":
        grpo["adv_estimator"] = {"name": "reinforce_plus_plus", "minus_baseline": responses(request) > 1}
    if all(call.name != "ref_inf" for call in graph.calls):
        grpo["skip_reference_policy_logprobs_calculation"] = True
        loss["reference_policy_kl_penalty"] = 0.0
    grpo["async_grpo"] = {"enabled": request.staleness > 0}
    if request.staleness:
        in_flight = request.options.rollout == IN_FLIGHT
        grpo["async_grpo"] |= {
            "max_trajectory_age_steps": request.staleness,
            "in_flight_weight_updates": in_flight,
            "recompute_kv_cache_after_weight_updates": in_flight and not request.options.keep_cache,
        }
        loss["use_importance_sampling_correction"] = True  # async_grpo_train asks for it
    return {"grpo": grpo, "loss_fn": loss} if loss else {"grpo": grpo}


def _validation(request: FlowRequest, plan: FlowPlan) -> Settings:
    """Batches of validation that all data-parallel ranks have a part of, which the trainer scores as it trains."""
    ranks = trained(plan).layout.data_parallel
    return {request.graph.name: {"val_global_batch_size": -(-_VALIDATED // ranks) * ranks, "val_micro_batch_size": 1}}


def _policy(request: FlowRequest, plan: FlowPlan) -> Settings:
    item, calls = trained(plan), in_workers(plan)
    layout = item.layout
    share = 2 if request.graph.name in PAIRS else 1  # sequences of an item that batches count
    megatron = request.stack.framework == MEGATRON
    micro_batch = max(layout.micro_batch_size // share, 1)
    found: Settings = _model(request, item)
    found |= {
        "train_global_batch_size": item.call.sequences // item.call.mini_batches // share,
        "train_micro_batch_size": micro_batch,
    }
    scoring = [other.layout.micro_batch_size for name, other in calls.items() if other is not calls[item.call.name]]
    if GENERATION in on_gpus(plan):
        found["logprob_batch_size"] = min(scoring, default=micro_batch)
    found |= {
        "max_total_sequence_length": longest_sequence(request),
        "make_sequence_length_divisible_by": _multiple(layout),
        "precision": "bfloat16",
    }
    if is_apart(plan):
        out = item.call.holding in (HOLDING_NAMES[STATES_OUT], HOLDING_NAMES[ALL_OUT])
        found["offload_optimizer_for_logprob"] = out
    found |= {"dtensor_cfg": {"enabled": False}, "megatron_cfg": _megatron(request, item)} if megatron else {}
    found |= {} if megatron else {"dtensor_cfg": _fsdp(request, item), "megatron_cfg": {"enabled": False}}
    found |= {"dynamic_batching": {"enabled": False}, "sequence_packing": _packing(request, plan)}
    return found | ({"generation": _generation(request, plan)} if GENERATION in on_gpus(plan) else {})


def _multiple(layout: ExecutionPlan) -> int:
    """What lengths are a multiple of, so that ranks can share them: context-parallel ones take two parts each."""
    return layout.tensor_parallel * (2 * layout.context_parallel if layout.context_parallel > 1 else 1)


def _model(request: FlowRequest, item: Placed) -> Settings:
    name = checkpoint(request.models[item.call.role])
    return {"model_name": name, "tokenizer": {"name": name}} if name else {}


def _packing(request: FlowRequest, plan: FlowPlan) -> Settings:
    """Micro-batches of as many tokens as those of the plan, which are of sequences of mean length."""
    if not packs(request, plan):
        return {"enabled": False}
    longest = longest_sequence(request)
    mean = request.prompt_tokens + request.output.mean
    multiple = _multiple(trained(plan).layout)
    sizes = {item.call.kind: item.layout.micro_batch_size for item in in_workers(plan).values()}
    found: Settings = {"enabled": True}
    for kind, name in (("train", "train_mb_tokens"), ("inference", "logprob_mb_tokens")):
        if kind in sizes:
            found[name] = -(-max(round(sizes[kind] * mean), longest) // multiple) * multiple
    return found


def _megatron(request: FlowRequest, item: Placed) -> Settings:
    """``megatron_cfg`` of a training call."""
    layout = item.layout
    found: Settings = {
        "enabled": True,
        "tensor_model_parallel_size": layout.tensor_parallel,
        "pipeline_model_parallel_size": layout.pipeline_parallel,
        "context_parallel_size": layout.context_parallel,
        "sequence_parallel": layout.sequence_parallel,
        "num_layers_in_first_pipeline_stage": layout.first_stage_layers or None,
        "num_layers_in_last_pipeline_stage": layout.last_stage_layers or None,
        "activation_checkpointing": layout.recompute != Recompute.NONE,
    }
    if layout.recompute == Recompute.SELECTIVE:
        said = recomputation(layout)
        found["recompute_granularity"] = said["granularity"]
        found["recompute_modules"] = list(said["modules"])  # type: ignore[arg-type]
    if has_experts(request, item):
        found |= {
            "expert_model_parallel_size": layout.expert_parallel,
            "expert_tensor_parallel_size": layout.expert_tensor_parallel,
            "moe_token_dispatcher_type": "alltoall",
            "moe_router_load_balancing_type": "none",  # others: Megatron-LM issue 1984 (_validate_training_config)
        }
    return found | {
        "optimizer": {"use_distributed_optimizer": layout.zero_stage > 0},
        "distributed_data_parallel_config": {
            "grad_reduce_in_fp32": request.stack.gradient_dtype == "fp32",
            "overlap_grad_reduce": layout.overlap_grad_reduce,
            # There is something to gather where the optimizer is shared out.
            "overlap_param_gather": layout.overlap_param_gather and layout.zero_stage > 0,
        },
    }


def _fsdp(request: FlowRequest, item: Placed) -> Settings:
    """``dtensor_cfg`` of a training call."""
    found: Settings = {
        "_v2": True,
        "enabled": True,
        "tensor_parallel_size": 1,
        "context_parallel_size": 1,
        "sequence_parallel": False,
        "activation_checkpointing": item.layout.recompute == Recompute.FULL,
        "cpu_offload": False,
    }
    lora = request.graph.role(item.call.role).adapters(request.models[item.call.role]).lora
    if lora is not None:
        found["lora_cfg"] = {"enabled": True, "match_all_linear": True, "dim": lora.rank}
    return found


def _generation(request: FlowRequest, plan: FlowPlan) -> Settings:
    item = on_gpus(plan)[GENERATION]
    layout, running = item.layout, item.call.concurrent
    return {
        "backend": ENGINE,
        "max_new_tokens": longest_response(request),
        "vllm_cfg": {
            "async_engine": needs_async_engine(request, plan),
            "tensor_parallel_size": layout.tensor_parallel,
            "pipeline_parallel_size": layout.pipeline_parallel,
            "expert_parallel_size": layout.expert_parallel,
            "gpu_memory_utilization": memory_share(request, item),
            "max_model_len": longest_sequence(request),
            "enforce_eager": request.options.eager,
        },
        "vllm_kwargs": {"max_num_seqs": running, "max_num_batched_tokens": prefill_tokens(item, running)},
        "colocated": _colocated(request, plan, item),
    }


def _colocated(request: FlowRequest, plan: FlowPlan, item: Placed) -> Settings:
    """Whether engines are on the GPUs that train, and how many they have where they are not."""
    if not is_apart(plan):
        return {"enabled": True}
    nodes, each = node_counts(request, plan.num_gpus)
    own = (item.call.num_gpus, 1) if nodes == 1 else (each, item.call.num_gpus // each)
    return {"enabled": False, "resources": {"gpus_per_node": own[0], "num_nodes": own[1]}}


def _yours(request: FlowRequest, plan: FlowPlan) -> tuple[str, ...]:
    graph, item, base = request.graph, trained(plan), _SCRIPTS[request.graph.name][1]
    nodes = node_counts(request, plan.num_gpus)[0]
    found = [
        f"{CONFIG} goes into {_FOLDER} of NeMo-RL, beside {base}; {SCRIPT} runs at the root, in its container",
        "data, learning rates, validation and checkpoints: as that file has them, or arguments of train.sh, such as "
        "data.train.dataset_name=NAME",
    ]
    if any(call.kind == EXTERNAL for call in graph.calls):
        found.append("rewards: the environment (env, data.default.env_name)")
    if not checkpoint(request.models[item.call.role]):
        model = request.models[item.call.role].name
        found.append(f"policy.model_name and policy.tokenizer.name: the checkpoint of {model}")
    found += _held(request, plan)
    if nodes > 1:
        found.append(f"Ray on the {nodes} nodes, for example by its ray.sub under Slurm; {SCRIPT} is the command")
    return tuple(found)


def _held(request: FlowRequest, plan: FlowPlan) -> list[str]:
    """Where NeMo-RL keeps weights and states between calls, which no setting changes, if the plan has it otherwise."""
    found, item = [], trained(plan)
    calls = in_workers(plan)
    if GENERATION in on_gpus(plan) and not is_apart(plan) and item.call.holding != HOLDING_NAMES[ALL_OUT]:
        kept = "them" if item.call.holding == HOLDING_NAMES[RESIDENT] else "weights"
        found.append(
            "weights, gradients and optimizer states go to the host while it generates (offload_before_refit, "
            f"offload_after_refit); the plan keeps {kept} on the GPUs, and has no such traffic"
        )
    if "ref_inf" in calls and calls["ref_inf"].call.holding == HOLDING_NAMES[RESIDENT]:
        there = "weights of the reference wait on the host (setup_reference_model_state)"
        found.append(f"{there}; the plan keeps them on the GPUs")
    return found


FLOW = FlowTarget(
    target=TARGET,
    workflows=tuple(_SCRIPTS),
    one_pool=False,
    command=_command,
    files=_files,
    left_to_you=_yours,
    question_gaps=question_gaps,
    placement_gaps=placement_gaps,
    bases=bases,
    other_pins=other_pins,
    further_pins=further_pins,
    further=FURTHER,
)
