"""``planner export --format openrlhf``: arguments say the plan, and what they cannot say is refused or planned anew."""

import json
import shlex
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

import planner
from costmodels.plan import Recompute
from planner.dataflow.flow.results import FlowPlan
from planner.exporters.exported import Exported
from planner.exporters.flow_api import FlowExportResult, export_dataflow
from planner.exporters.flow_target import on_gpus
from planner.exporters.openrlhf import FLOW
from planner.exporters.openrlhf_checks import placement_gaps
from profiles.errors import SpecError
from profiles.units import GIB
from tests.flow_exports import OUTSIDE, SMALL, exported_flow, plan_of, with_layout

LAYOUT = {"tp": 2, "micro_batch": 4}
asked = partial(exported_flow, "openrlhf")
ALIKE = json.dumps(
    {
        "actor_gen": {"tp": 2, "engine": "vllm"},
        "actor_train": LAYOUT | {"zero": 1, "recompute": "full"},
        "actor_inf": LAYOUT,
        "ref_inf": LAYOUT,
    }
)


def options(exported: Exported) -> dict[str, str]:
    """Options of a script by name; flags have none."""
    script = exported.files["train.sh"]
    words = shlex.split(script[script.index("exec ") :].replace("\\\n", " "))
    assert words[1:4] == ["python3", "-m", "openrlhf.cli.train_ppo_ray"]
    assert words[-1] == "$@"
    found: dict[str, str] = {}
    for word in words[4:-1]:
        if word.startswith("--"):
            assert word not in found
            name, found[word] = word, ""
        else:
            found[name] = word
    return found


def grpo(cluster: str = "8xH100-80GB", **given: Any) -> FlowExportResult:
    return asked("grpo", "qwen2.5-1.5b", cluster, json.dumps(OUTSIDE), **given)


def written(result: FlowExportResult) -> dict[str, str]:
    assert result.exported is not None
    assert result.exported.unsupported == ()
    return options(result.exported)


def fields(result: FlowExportResult, plan: FlowPlan) -> list[str]:
    return [gap.field for gap in placement_gaps(result.flow.request, plan)]


def small_engine(plan: FlowPlan) -> FlowPlan:
    """The plan with an engine that leaves room for weights that stay."""
    group = plan.memory[0]
    owners = tuple(replace(owner, static_bytes=GIB, active_bytes=4 * GIB) for owner in group.owners)
    return replace(plan, memory=(replace(group, owners=owners),))


def test_a_whole_command() -> None:
    """Groups of 8 on 64 prompts; engines of two on all eight GPUs, which models share with tensor parallelism."""
    result = grpo(mode="colocated", pins=ALIKE)
    plan = small_engine(plan_of(result))
    exported = FLOW.export(result.flow.request, plan)
    assert exported.unsupported == ()
    found = options(exported)
    share = found.pop("--vllm.gpu_memory_utilization")
    generation = on_gpus(plan)["actor_gen"].call
    reported = result.flow.request.cluster.groups[0].device.reported_memory_bytes
    assert 0 <= float(share) * reported - generation.static_bytes - generation.active_bytes <= 0.011 * reported
    asleep = {"--ds.enable_sleep": ""} if on_gpus(plan)["actor_train"].call.holding != "resident" else {}
    assert found == asleep | {
        "--actor.num_nodes": "1",
        "--actor.num_gpus_per_node": "8",
        "--ref.num_nodes": "1",
        "--ref.num_gpus_per_node": "8",
        "--train.colocate_all": "",
        "--vllm.num_engines": "4",
        "--vllm.tensor_parallel_size": "2",
        "--vllm.enable_sleep": "",
        "--ds.zero_stage": "1",
        "--ds.tensor_parallel_size": "2",
        "--ds.overlap_comm": "",
        "--ds.packing_samples": "",
        "--actor.gradient_checkpointing_enable": "",
        "--rollout.batch_size": "64",
        "--rollout.n_samples_per_prompt": "8",
        "--rollout.micro_batch_size": "4",
        "--rollout.max_new_tokens": "512",
        "--train.batch_size": "512",
        "--train.micro_batch_size": "4",
        "--data.max_len": "768",
        "--algo.advantage.estimator": "group_norm",
        "--algo.kl.use_loss": "",
        "--algo.kl.estimator": "k3",
        "--actor.model_name_or_path": "Qwen/Qwen2.5-1.5B",
    }


def test_the_usual_framework_gives_way_to_one_that_it_runs() -> None:
    result = grpo()
    assert result.flow.request.stack.name == "deepspeed"
    assert result.exported is not None
    assert "# Planned with --framework deepspeed." in result.exported.files["train.sh"]
    given = [result, grpo(framework="deepspeed")]
    assert given[0].flow.plan == given[1].flow.plan
    assert given[1].exported is not None
    assert "Planned with" not in given[1].exported.files["train.sh"]


def test_weights_that_stay_on_the_gpus_need_room() -> None:
    """The engine has weights of its own; DeepSpeed's 16-bit ones stay where they are while it generates."""
    result = grpo(mode="colocated", pins=ALIKE)
    plan = small_engine(plan_of(result))
    (group,) = plan.memory
    assert fields(result, plan) == []
    usable = group.usable_bytes
    full = [
        replace(owner, static_bytes=0.0, active_bytes=usable - GIB * (owner.call == "actor_gen"))
        for owner in group.owners
    ]
    found = fields(result, replace(plan, memory=(replace(group, owners=tuple(full)),)))
    assert "plan.actor_gen.active_bytes" in found
    assert "plan.actor_inf.active_bytes" in found  # beside the reference


def test_a_role_s_weights_are_there_once_with_what_its_training_keeps() -> None:
    """Optimizer states stay while log-probabilities are computed; weights that calls share are counted once."""
    result = grpo(mode="colocated", pins=ALIKE)
    plan = plan_of(result)
    (group,) = plan.memory
    kept_bytes = {"actor_train": 10 * GIB, "actor_inf": 0.0, "ref_inf": 2 * GIB, "actor_gen": 0.0}
    calls = tuple(
        replace(call, holding="resident", static_bytes=max(kept_bytes.get(call.name, 0.0), 2.0 * GIB))
        if call.name in ("actor_train", "actor_inf", "ref_inf")
        else call
        for call in plan.calls
    )

    def found(call: str, active_bytes: float) -> bool:
        owners = tuple(
            replace(owner, static_bytes=kept_bytes[owner.call], active_bytes=active_bytes * (owner.call == call))
            for owner in group.owners
        )
        held = replace(plan, calls=calls, memory=(replace(group, owners=owners),))
        return f"plan.{call}.active_bytes" in fields(result, held)

    assert {owner.call for owner in group.owners} == kept_bytes.keys()
    for call in kept_bytes:
        assert not found(call, group.usable_bytes - 12.01 * GIB)
        assert found(call, group.usable_bytes - 11.99 * GIB)


def test_frozen_weights_wait_on_the_host_where_they_are_sharded() -> None:
    given = SMALL | {"settings": {"old_logprobs": True}, "mode": "colocated", "framework": "deepspeed"}
    result = planner.plan_dataflow("ppo", "qwen2.5-1.5b", "8xH100-80GB", **given)
    assert result.plan is not None
    plan = with_layout(with_layout(result.plan, "train", zero_stage=3), "inference", zero_stage=3)
    away = {"ref_inf", "reward_inf"}
    calls = [replace(call, holding="fetched") if call.name in away else call for call in plan.calls]
    sharded = options(FLOW.export(result.request, replace(plan, calls=tuple(calls))))
    assert {"--ref.offload", "--reward.offload"} <= sharded.keys()
    assert sharded["--ds.zero_stage"] == "3"
    whole = with_layout(
        with_layout(replace(plan, calls=tuple(calls)), "train", zero_stage=2), "inference", zero_stage=0
    )
    exported = FLOW.export(result.request, whole)
    assert not {"--ref.offload", "--reward.offload"} & options(exported).keys()
    told = [words for words in exported.left_to_you if words.startswith("16-bit weights of")]
    assert len(told) == 1
    assert all(name in told[0] for name in away)


def test_a_critic_has_the_actor_s_gpus_and_layout() -> None:
    result = asked("ppo", "qwen2.5-1.5b", "8xH100-80GB", json.dumps({"old_logprobs": True}), mode="colocated")
    found, calls = written(result), on_gpus(plan_of(result))
    assert found["--algo.advantage.estimator"] == "gae"
    assert found["--critic.num_gpus_per_node"] == found["--reward.num_gpus_per_node"] == "8"
    assert found["--critic.model_name_or_path"] == found["--reward.model_name_or_path"] == "Qwen/Qwen2.5-1.5B"
    assert int(found["--train.batch_size"]) == 16
    sizes = {item.layout.micro_batch_size for name, item in calls.items() if name in ("actor_train", "critic_train")}
    assert sizes == {int(found["--train.micro_batch_size"])}
    assert len({item.layout.tensor_parallel for name, item in calls.items() if name != "actor_gen"}) == 1


@pytest.mark.parametrize("mode", [pytest.param("disaggregated", marks=pytest.mark.long), "async"])
def test_engines_apart(mode: str) -> None:
    result = grpo("2x8xH100-80GB", mode=mode)
    found, calls = written(result), on_gpus(plan_of(result))
    engines = int(found["--vllm.num_engines"]) * int(found["--vllm.tensor_parallel_size"])
    assert engines == calls["actor_gen"].call.num_gpus
    models = int(found["--actor.num_nodes"]) * int(found["--actor.num_gpus_per_node"])
    assert models == 16 - engines == int(found["--ref.num_nodes"]) * int(found["--ref.num_gpus_per_node"])
    assert "--vllm.enable_sleep" not in found
    assert ("--train.colocate_actor_ref" in found) == (mode == "disaggregated")
    assert ("--train.async_enable" in found) == ("--train.colocate_all" in found) == (mode == "async")
    assert found.get("--train.async_queue_size") == ("1" if mode == "async" else None)


def test_groups_that_are_dropped_are_made_up_for() -> None:
    found = written(asked("dapo", "qwen2.5-1.5b", "8xH100-80GB"))
    assert "--algo.dynamic_filtering_enable" in found
    assert found["--algo.kl.init_coef"] == "0"
    assert not any(name.startswith("--ref.") for name in found)


def test_layouts_that_differ() -> None:
    result = grpo(mode="colocated", pins=ALIKE)
    plan = small_engine(plan_of(result))
    for columns, kind, names in (
        ({"tensor_parallel": 4}, "inference", ["actor_inf.tensor_parallel", "ref_inf.tensor_parallel"]),
        ({"zero_stage": 3}, "train", ["actor_inf.zero_stage", "ref_inf.zero_stage"]),
        ({"pipeline_parallel": 2}, "generate", ["actor_gen.pipeline_parallel"]),
        ({"expert_parallel": 2}, "generate", ["actor_gen.expert_parallel"]),
        ({"recompute": Recompute.SELECTIVE}, "train", ["actor_train.recompute"]),
        ({"offload_parameters": True}, "train", ["actor_train.offload_parameters"]),
        ({"zero_shard_degree": 2}, "train", ["actor_train.zero_shard_degree"]),
    ):
        assert fields(result, with_layout(plan, kind, **columns)) == [f"plan.{name}" for name in names]
    calls = [
        replace(call, plan=replace(call.plan, micro_batch_size=8)) if call.name == "ref_inf" and call.plan else call
        for call in plan.calls
    ]
    assert fields(result, replace(plan, calls=tuple(calls))) == ["plan.ref_inf.micro_batch_size"]
    half = [replace(call, num_gpus=4) if call.name == "ref_inf" else call for call in plan.calls]
    assert fields(result, replace(plan, calls=tuple(half))) == ["plan.ref_inf.gpus"]


@pytest.mark.parametrize(
    ("job", "change", "field"),
    [
        ("dpo", {}, "job"),
        ("ppo", {"settings": {}}, "settings.old_logprobs"),
        ("grpo", {"settings": {**OUTSIDE, "task": "lora"}}, "settings.task"),
        ("grpo", {"settings": {**OUTSIDE, "group_size": 1}}, "settings.group_size"),
        ("grpo", {"mode": "async", "rollout": "in_flight"}, "rollout"),
        ("grpo", {"stream": True}, "stream"),
        ("grpo", {"linear_loss": True}, "linear_loss"),
        ("grpo", {"attention_library": "cudnn"}, "attention_library"),
        ("grpo", {"framework": "megatron"}, "framework"),
        ("grpo", {"precision": "fp16"}, "precision"),
        ("grpo", {"prompt": 131072, "generate": 1, "batch": 8}, "models.actor"),
        ("grpo", {"engine": "sglang"}, "engine"),
    ],
)
def test_what_openrlhf_cannot_do_is_refused(job: str, change: dict[str, Any], field: str) -> None:
    question = {**SMALL, "settings": OUTSIDE, **change}
    if job == "dpo":
        question["settings"] = {}
    with pytest.raises(SpecError) as caught:
        export_dataflow(job, "qwen2.5-1.5b", "8xH100-80GB", format="openrlhf", **question)
    assert caught.value.field == field
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("job", FLOW.workflows)
def test_every_workflow_is_written(job: str) -> None:
    settings: dict[str, Any] = {} if job in ("ppo", "dapo") else dict(OUTSIDE)
    settings |= {"old_logprobs": True} if job == "ppo" else {}
    found = written(asked(job, "qwen2.5-1.5b", "8xH100-80GB", json.dumps(settings), mode="colocated"))
    assert found["--rollout.batch_size"] == "64"
