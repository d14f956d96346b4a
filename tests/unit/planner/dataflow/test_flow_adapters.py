"""Roles trained with adapters: a policy is its own reference, and prices and defaults are those of a single job."""

from dataclasses import replace
from typing import Any

import pytest

from costmodels.workload import LoraSpec
from planner import api
from planner.dataflow.flow.costs import call_flops, model_call
from planner.dataflow.flow.payloads import payload
from planner.dataflow.flow.request import FlowOptions, FlowRequest, resolve_flow
from planner.dataflow.graphs.file import graph_from_mapping
from planner.dataflow.graphs.graph import Dataflow
from planner.dataflow.graphs.presets import build_preset
from planner.dataflow.graphs.roles import Role
from planner.workflows import plan_dataflow
from profiles.errors import SpecError
from profiles.stacks import find_stack, load_stacks

QUICK: dict[str, Any] = {"batch": 64, "prompt": 128, "generate": 128, "effort": 0.05, "iterations": 2}
MODEL = "llama-2-7b"


def with_its_own_reference(graph: Dataflow) -> Dataflow:
    calls = tuple(replace(call, role="ref") if call.name == "ref_inf" else call for call in graph.calls)
    return replace(graph, roles=(*graph.roles, Role(name="ref", like="actor")), calls=calls)


def test_a_second_copy_would_not_fit() -> None:
    """7B in 16 bits are 13.5 GB: for training, for the engine while it runs, and once more for a reference: 40 GB."""
    graph = build_preset("grpo", {"task": "lora", "reward": "external"})
    shared, apart = (
        plan_dataflow(job, {"": MODEL}, "1xA100-SXM-40GB", **QUICK, offload=False).plan
        for job in (graph, with_its_own_reference(graph))
    )
    assert shared is not None
    assert apart is None


def test_the_weights_of_a_reference_are_what_is_saved() -> None:
    graph = build_preset("dpo", {"task": "lora"})
    shared, apart = (
        plan_dataflow(job, {"": MODEL}, "1xA100-SXM-80GB", **QUICK, offload=False, framework="megatron").plan
        for job in (graph, with_its_own_reference(graph))
    )
    assert shared is not None
    assert apart is not None
    held = [max(gpu.peak_bytes for gpu in plan.memory) for plan in (shared, apart)]
    assert held[1] - held[0] > 0.8 * 13.5e9


def test_a_reference_of_four_bits_is_read_in_four_bits() -> None:
    """13B: 26 GB in 16 bits, which no RTX 4090 holds; the reference is the policy's 4-bit weights, adapters off."""
    sizes: dict[str, Any] = {"batch": 16, "prompt": 256, "generate": 256}
    plan = plan_dataflow("dpo", "llama-2-13b", "1xRTX4090", settings={"task": "qlora"}, **sizes).plan
    assert plan is not None
    calls = {call.name: call for call in plan.calls}
    frozen, trained = calls["ref_inf"], calls["actor_train"]
    assert 0.5 * 13e9 < frozen.static_bytes < 0.75 * 13e9
    beside = trained.static_bytes - frozen.static_bytes  # adapters of 62.6M, their gradients and states
    assert 0 < beside < 16 * 62.6e6
    assert plan.memory[0].peak_bytes < trained.static_bytes + max(frozen.active_bytes, trained.active_bytes) + 1
    # A forward pass restores each weight to 16 bits, as that of training does: no pass is half of a step's third.
    assert frozen.time_s > 0.5 * trained.time_s / 3


def test_adapters_do_not_count_as_work_of_a_reference() -> None:
    flops = {
        task: call_flops(asked("dpo", settings={"task": task}, framework="fsdp"), "ref_inf")
        for task in ("lora", "qlora")
    }
    assert flops["qlora"] == flops["lora"] > 0


def asked(job: str, cluster: str = "8xH100", **options: Any) -> FlowRequest:
    return resolve_flow(job, {"": MODEL}, cluster, FlowOptions(batch=64, **options))


@pytest.mark.parametrize(
    ("task", "cluster", "framework"),
    [
        ("qlora", "1xRTX4090", None),
        ("lora", "8xA100-80GB", None),
        ("full", "8xA100-80GB", None),
        ("full", "8xA100-80GB", "megatron"),
    ],
)
def test_one_training_call_costs_what_the_single_job_does(task: str, cluster: str, framework: str | None) -> None:
    """Time and interval; memory leaves out the free blocks that an allocator keeps while there is room for them."""
    sizes = {"batch": 64, "prompt": 512, "generate": 512}
    plan = plan_dataflow("sft", "llama-3-8b", cluster, settings={"task": task}, framework=framework, **sizes).plan
    assert plan is not None
    (call,) = plan.calls
    assert call.plan is not None
    job = {"task": task, "sequence_length": 1024, "global_batch_size": 64}
    alone = api.estimate("llama-3-8b", cluster, job, plan=call.plan, framework=framework).best
    assert alone is not None
    times = (alone.step_time_s, alone.step_time_low_s, alone.step_time_high_s)
    assert (call.time_s, call.time_low_s, call.time_high_s) == pytest.approx(times, rel=1e-9)
    assert (plan.steady_s, plan.steady_low_s, plan.steady_high_s) == pytest.approx(times, rel=1e-9)
    best = api.plan("llama-3-8b", cluster, job, framework=framework).best
    assert best is not None
    assert plan.steady_s == pytest.approx(best.step_time_s, rel=0.02)


@pytest.mark.parametrize("framework", [None, "megatron"])
def test_adapters_of_a_mixture_are_those_of_the_single_job(framework: str | None) -> None:
    """On attention alone where nobody names layers, priced so and said so."""
    sizes = {"batch": 64, "prompt": 512, "generate": 512}
    found = plan_dataflow("sft", "qwen3-30b-a3b", "8xH100", settings={"task": "lora"}, framework=framework, **sizes)
    assert found.plan is not None
    (call,) = found.plan.calls
    job = {"task": "lora", "sequence_length": 1024, "global_batch_size": 64}
    answer = api.estimate("qwen3-30b-a3b", "8xH100", job, plan=call.plan, framework=framework)
    assert answer.best is not None
    assert call.time_s == pytest.approx(answer.best.step_time_s, rel=1e-9)
    told = {note.message for note in answer.request.assumptions if "adapters on" in note.message}
    assert told == {"adapters on q, k, v, o (not given; none on experts unless gate, up and down are named)"}
    assert {f"actor: {message}" for message in told} <= {note.message for note in found.assumptions}


@pytest.mark.parametrize(
    ("model", "cluster", "framework", "task"),
    [
        ("llama-2-7b", "8xH100", "fsdp", "qlora"),
        ("llama-2-7b", "8xH100", "fsdp", "lora"),
        ("llama-2-7b", "8xH100", "deepspeed", "lora"),
        ("gpt-oss-20b", "8xH100", "deepspeed", "full"),  # split by AutoTP, whose sequences stay whole
    ],
)
def test_the_fastest_layout_of_a_single_job_is_among_those_of_a_workflow(
    model: str, cluster: str, framework: str, task: str
) -> None:
    job = {"task": task, "sequence_length": 512, "global_batch_size": 16}
    alone = api.plan(model, cluster, job, framework=framework).best
    options: dict[str, Any] = {"batch": 16, "prompt": 256, "generate": 256, "settings": {"task": task}}
    found = plan_dataflow("sft", model, cluster, framework=framework, **options).plan
    assert alone is not None
    assert found is not None
    assert found.calls[0].time_s == pytest.approx(alone.step_time_s, rel=0.01)


def test_a_degree_that_a_single_job_may_have_may_be_pinned() -> None:
    options: dict[str, Any] = {"batch": 16, "prompt": 256, "generate": 256, "settings": {"task": "full"}}
    pins = {"actor_train": {"tp": 4}}
    found = plan_dataflow("sft", "llama-3-8b", "8xH100", framework="deepspeed", pins=pins, **options).plan
    assert found is not None
    assert found.calls[0].plan is not None
    assert (found.calls[0].plan.tensor_parallel, found.calls[0].plan.sequence_parallel) == (4, False)


def test_weights_that_code_reads_whole_are_sharded_in_no_workflow() -> None:
    """61 GB of weights and as many of gradients: eight devices hold shards, which Unsloth's code cannot read."""
    options: dict[str, Any] = {"batch": 16, "prompt": 64, "generate": 64, "settings": {"task": "full"}}
    sharded = plan_dataflow("sft", "qwen3-30b-a3b", "8xA100-80GB", framework="huggingface", **options).plan
    assert sharded is not None
    assert sharded.calls[0].plan is not None
    assert sharded.calls[0].plan.zero_stage == 3
    assert plan_dataflow("sft", "qwen3-30b-a3b", "8xA100-80GB", framework="unsloth", **options).plan is None
    job = {"task": "full", "sequence_length": 128, "global_batch_size": 16}
    assert not api.plan("qwen3-30b-a3b", "8xA100-80GB", job, framework="unsloth").fits


def test_adapters_of_a_mixture_reach_the_engine_as_few_as_they_are() -> None:
    """Two thin matrices of q, k, v and o each: none of the 128 experts of every layer has any."""
    graph = build_preset("grpo", {"task": "lora", "reward": "external"})
    request = resolve_flow(graph, {"": "qwen3-30b-a3b"}, "8xH100", FlowOptions(batch=64))
    carried = payload(request, "actor", "actor")
    model = request.models["actor"]
    heads = model.num_attention_heads * model.head_dim
    widths = 2 * (model.hidden_size + heads) + 2 * (model.hidden_size + model.num_key_value_heads * model.head_dim)
    assert carried.total_bytes == pytest.approx(2 * 16 * widths * model.num_layers)
    assert carried.tensors == 2 * 4 * model.num_layers


@pytest.mark.parametrize(
    ("job", "options", "stack"),
    [
        ("sft", {"settings": {"task": "qlora"}}, "hf-trainer"),
        ("dpo", {}, "hf-trainer"),
        ("grpo", {"settings": {"task": "lora"}}, "megatron-core"),
        ("ppo", {"settings": {"task": "lora"}}, "megatron-core"),  # the critic is trained in full
        ("grpo", {"settings": {"task": "qlora"}}, "hf-trainer"),
        ("ppo", {"settings": {"task": "qlora"}}, "hf-trainer"),
        ("dpo", {"settings": {"task": "lora"}}, "hf-trainer"),  # nothing is generated
        ("sft", {"settings": {"task": "pretrain"}}, "megatron-core"),
        ("grpo", {}, "megatron-core"),
        ("best-of-n", {}, "megatron-core"),
        ("sft", {"pins": {"actor_train": {"tp": 2}}}, "megatron-core"),
        ("sft", {"pins": {"actor_train": {"dp": 2}}}, "hf-trainer"),
        ("best-of-n", {"pins": {"actor_gen": {"tp": 2}}}, "megatron-core"),
        ("grpo", {"settings": {"task": "qlora"}, "pins": {"actor_gen": {"tp": 2}}}, "hf-trainer"),
        (
            "grpo",
            {"settings": {"task": "lora"}, "pins": {"actor_gen": {"tp": 2, "engine": "trainer"}}},
            "megatron-core",
        ),
        ("grpo", {"settings": {"task": "qlora"}, "pins": {"actor_gen": {"tp": 2, "engine": "trainer"}}}, "hf-trainer"),
    ],
)
def test_who_trains_where_nobody_says_is_said(job: str, options: dict[str, Any], stack: str) -> None:
    request = asked(job, **options)
    assert {each.name for each in request.stacks.values()} == {stack}
    (note,) = [note for note in request.assumptions if note.field == "framework"]
    assert note.code == "assumed_default"
    assert note.message.startswith(f"{stack}: ")
    named = asked(job, framework="fsdp", settings=options.get("settings", {}))
    assert {each.framework for each in named.stacks.values()} == {"fsdp"}
    assert not any(note.field == "framework" for note in named.assumptions)


def test_megatron_trains_no_adapters_on_four_bits() -> None:
    with pytest.raises(SpecError) as caught:
        asked("grpo", framework="megatron", settings={"task": "qlora"})
    assert str(caught.value) == (
        "settings.task: Megatron's parallel layers have no 4-bit weights. Hint: task lora, or framework hf-trainer"
    )


@pytest.mark.parametrize("task", ["lora", "qlora"])
def test_nanotron_trains_no_adapters(task: str) -> None:
    with pytest.raises(SpecError, match=r"^settings\.task: nanotron trains all weights\. Hint: task full"):
        asked("sft", framework="nanotron", settings={"task": task})


def test_why_the_default_is_not_that_of_a_single_job_is_said() -> None:
    def reason(job: str, **options: Any) -> str:
        return next(note.message for note in asked(job, **options).assumptions if note.field == "framework")

    assert "published runs that generate and train; hf-trainer splits no model" in reason("grpo")
    assert reason("sft", pins={"actor_train": {"pp": 2}}).endswith("; hf-trainer splits no model")
    assert "splits" not in reason("sft")
    with pytest.raises(SpecError, match="framework: workflows are planned for one; got 'any'"):
        asked("sft", framework="any")


def test_intervals_are_as_wide_as_for_what_a_role_trains() -> None:
    graph = graph_from_mapping(
        {
            "roles": {"first": {"model": MODEL, "task": "pretrain"}, "second": {"model": MODEL, "task": "lora"}},
            "calls": {
                "first_train": {"role": "first", "kind": "train", "inputs": ["prompts"]},
                "second_train": {"role": "second", "kind": "train", "inputs": ["prompts"]},
            },
        }
    ).graph
    request = resolve_flow(
        graph, {"first": MODEL, "second": MODEL}, "8xH100", FlowOptions(batch=64, framework="megatron-core")
    )
    assert request.stacks == {
        "first": find_stack("megatron-core"),
        "second": find_stack("megatron-core", load_stacks("lora")),
    }
    plan = plan_dataflow(
        graph, {"first": MODEL, "second": MODEL}, "8xH100", framework="megatron-core", **QUICK, min_mesh=8
    ).plan
    assert plan is not None
    wide = {call.name: call.time_high_s / call.time_low_s for call in plan.calls}
    assert wide["second_train"] > 1.3 * wide["first_train"]


def test_adapters_alone_reach_the_engine() -> None:
    """Rank 16 on queries and values of 32 layers 4096 wide: 8.4 million of 6.7 billion parameters."""
    settings = {"task": "lora", "lora_targets": "q,v", "reward": "external", "kl": False, "old_logprobs": False}
    apart = {"actor_gen": {"gpus": "0-3"}, "actor_train": {"gpus": "4-7"}}
    plans = [
        plan_dataflow("grpo", {"": MODEL}, "8xH100", settings=settings | change, pins=apart, **QUICK).plan
        for change in ({}, {"task": "full", "lora_targets": None})
    ]
    (small,), (whole,) = [plan.reallocations for plan in plans if plan is not None]
    assert small.moved_bytes / whole.moved_bytes == pytest.approx(2 * 32 * 16 * 8192 / 6.738e9, rel=0.01)
    assert small.time_s < whole.time_s / 4
    engines = [plan.calls[0] for plan in plans if plan is not None]
    assert [engine.holding for engine in engines] == ["resident", "delivered"]
    base_bytes = 2 * 6.738e9 / plans[0].calls[0].plan.tensor_parallel  # type: ignore[union-attr]
    assert engines[0].static_bytes > base_bytes * (1 + small.moved_bytes / whole.moved_bytes)


def test_a_copy_of_the_policy_carries_all_weights() -> None:
    request = asked("mrdpo")
    assert request.graph.role("actor").task == "lora"
    assert payload(request, "actor", "ref").share == 1
    adapters = payload(request, "actor", "actor")
    assert adapters.tensors == 2 * 7 * 32
    assert adapters.total_bytes < 0.01 * payload(request, "actor", "ref").total_bytes


def test_engines_keep_the_base_of_adapters_and_say_so() -> None:
    notes = {note.field: note.message for note in asked("grpo", settings={"task": "lora"}).assumptions}
    assert "adapters alone go to the engine" in notes["job.roles.actor.lora"]
    for job, settings in (("grpo", {}), ("sft", {"task": "lora"})):
        assert "job.roles.actor.lora" not in {note.field for note in asked(job, settings=settings).assumptions}


def test_rank_and_targets_are_settings_and_said_when_assumed() -> None:
    def notes(request: FlowRequest) -> list[str]:
        return [note.message for note in request.assumptions if ".lora." in note.field]

    usual = asked("sft", settings={"task": "lora"})
    assert notes(usual) == [
        "actor: adapters of rank 16 (not given)",
        "actor: adapters on q, k, v, o, gate, up, down (not given)",
    ]
    assert not notes(asked("sft"))
    chosen = asked("sft", settings={"task": "lora", "lora_rank": 64, "lora_targets": "q_proj,v_proj"})
    assert not notes(chosen)
    calls = [model_call(request, request.graph.call("actor_train")) for request in (usual, chosen)]
    assert [call.lora for call in calls] == [LoraSpec(), LoraSpec(rank=64, targets=("q", "v"))]


@pytest.mark.parametrize(
    ("role", "lora"),
    [
        ({"lora_rank": 4, "lora_targets": ["q", "v"]}, LoraSpec(rank=4, targets=("q", "v"))),
        ({"lora": {"rank": 4, "dropout": True}}, LoraSpec(rank=4, dropout=True)),
        ({"lora": {"rank": 4}, "lora_targets": "o"}, LoraSpec(rank=4, targets=("o",))),
    ],
)
def test_a_graph_of_ones_own_says_them_of_its_roles(role: dict[str, Any], lora: LoraSpec) -> None:
    calls = {"t": {"role": "a", "kind": "train", "inputs": ["prompts"]}}
    graph = graph_from_mapping({"roles": {"a": {"task": "lora"} | role}, "calls": calls}).graph
    assert graph.role("a").adapters().lora == lora


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora_rank": 8}, "job.lora_rank: is given, but the task does not train adapters. Hint: task lora or qlora"),
        ({"task": "lora", "lora_rank": 0}, "job.lora_rank: must be a whole number from 1 to 16384; got 0"),
        ({"task": "lora", "lora_targets": "q,x"}, "job.lora_targets: unknown value 'x'"),
        ({"task": "lora", "lora_targets": ["qkv", "q"]}, "job.lora_targets: names q, k or v beside qkv"),
    ],
)
def test_adapters_are_checked_as_those_of_single_jobs(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        build_preset("grpo", settings)
    with pytest.raises(SpecError, match="deepseek-v3 has no layer for queries, keys and values"):
        resolve_flow(
            "sft", {"": "deepseek-v3"}, "8xH100", FlowOptions(settings={"task": "lora", "lora_targets": "qkv"})
        )


def test_one_adapter_for_all_three_takes_one_layer_of_the_role() -> None:
    joint = FlowOptions(settings={"task": "lora", "lora_targets": "qkv"})
    resolve_flow("sft", {"": MODEL}, "8xH100", replace(joint, framework="megatron"))
    with pytest.raises(SpecError, match="llama-2-7b has no one layer for queries, keys and values") as error:
        resolve_flow("sft", {"": MODEL}, "8xH100", replace(joint, framework="hf-trainer"))
    assert error.value.field == "settings.lora_targets"
