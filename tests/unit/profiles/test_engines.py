"""Engines of the catalogue: what they take as they serve, and between two trainings."""

from dataclasses import replace

import pytest

import planner
from costmodels.lengths import fixed_length
from costmodels.model_calls import CallKind, ModelCall
from planner.dataflow.call_costs import CallSetting, call_costs
from planner.dataflow.flow.costs import flow_costs
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.engines import TRAINER, find_engine, load_engines
from profiles.model_presets import resolve_model
from profiles.stacks import find_stack, rl_fit

SETTING = CallSetting(
    cluster=parse_cluster("1xH100", default_catalog(), fabric=None), stack=find_stack("megatron"), engines=("sglang",)
)
LLAMA = resolve_model("llama-3.1-8b", default_catalog(), allow_paths=False).spec


@pytest.mark.parametrize(("name", "serving_s"), [("vllm", 1.8e-3), ("sglang", 0.0), ("tensorrt-llm", 0.0)])
def test_an_engine_waits_for_its_training_framework_only_where_there_is_one(name: str, serving_s: float) -> None:
    engine = find_engine(name)
    assert engine.step_overhead_s == serving_s
    assert engine.rollout_step_s == rl_fit()["host_step_s"] > 3e-3
    between = engine.between_training()
    assert between.step_overhead_s == serving_s + engine.rollout_step_s
    assert between.between_training() == between
    assert not between.measures_sampling
    assert not between.own_all_reduce
    names = ("rollout_step_s", "measures_sampling", "own_all_reduce", "splits_stages")
    own = {name: getattr(engine, name) for name in names}
    assert replace(between, step_overhead_s=serving_s, **own) == engine
    slow = engine.on_host(2.0)
    assert slow.between_training() == between.on_host(2.0)


def test_every_engine_that_serves_waits_for_its_training_framework_or_says_why_not() -> None:
    serving = {name: engine for name, engine in load_engines().items() if name != TRAINER}
    waiting = {name for name, engine in serving.items() if engine.rollout_step_s == rl_fit()["host_step_s"]}
    assert waiting == {"vllm", "sglang", "sglang-2025", "tensorrt-llm"}
    told = {name: engine.sources["rollout_step_s"].partition(" ")[0] for name, engine in serving.items()}
    assert told.pop("vllm") == "steps"
    assert told == {name: "assumed:" if name in waiting else "none" for name in told}
    assert len({serving[name].residual_log_std for name in waiting} - {0.0}) == 1


def test_engines_run_kernels_of_their_own() -> None:
    labels = {"vllm": "vllm-", "sglang": "sglang-", "tensorrt": "trtllm-", "trainer": ""}
    for name, engine in load_engines().items():
        label = labels[name.partition("-")[0]]
        assert engine.kernels.startswith(label), name
        assert bool(label) == bool(engine.kernels), name


def test_every_step_waits_in_a_dataflow_that_trains() -> None:
    call = ModelCall(kind=CallKind.GENERATE, num_sequences=32, prompt_tokens=128, output=fixed_length(1000))
    alone, between = (
        call_costs(call, LLAMA, replace(SETTING, between_training=trains), [1]) for trains in (False, True)
    )
    waited_s = find_engine("sglang").rollout_step_s * (1000 + 1)  # a step per token, one pass over all prompts
    assert between.time_s.min() - alone.time_s.min() == pytest.approx(waited_s, rel=0.01)


def test_a_workflow_says_whether_it_trains() -> None:
    """The same generation with and without a call that trains on it, as a workflow prices it."""
    roles = {"actor": {"model": "llama-3.1-8b"}}
    generates = {"gen": {"role": "actor", "kind": "generate", "inputs": ["prompts"], "outputs": ["sequences"]}}
    trains = {"train": {"role": "actor", "kind": "train", "inputs": ["sequences"]}}
    waited_s = []
    for engine in ("sglang", "tensorrt-llm", "trainer"):
        options = FlowOptions(batch=32, prompt=128, generate=1000, engine=engine)
        found = []
        for calls in (generates, generates | trains):
            graph = {"name": "flow", "roles": roles, "calls": calls}
            request = resolve_flow(graph, {}, "1xH100", options)
            assert request.graph.trains_between_generations is (calls is not generates)
            found.append(flow_costs(request, request.cluster, [[1]]).rows["gen"].table.time_s.min())
        waited_s.append(found[1] - found[0])
    steps_s = find_engine("sglang").rollout_step_s * (1000 + 1)
    assert waited_s == pytest.approx([steps_s, steps_s, 0.0], rel=0.01)


def test_current_engines_read_a_prompt_of_several_samples_once() -> None:
    """TensorRT-LLM's default too; what an engine has is cited."""
    engines = load_engines()
    sharing = {"vllm", "sglang", "sglang-2025", "tensorrt-llm"}
    assert {name for name, engine in engines.items() if engine.shares_prefixes} == sharing
    assert all("shares_prefixes" in engine.sources for engine in engines.values() if engine.shares_prefixes)


def test_engines_that_do_not_mix_prompts_and_tokens_in_a_step_read_first() -> None:
    engines = load_engines()
    first = {"vllm-0.3", "vllm-2024", "sglang", "sglang-2025"}
    assert {name for name, engine in engines.items() if engine.reads_first} == first
    assert all("reads_first" in engine.sources for engine in engines.values() if engine.reads_first)


def test_prompts_are_read_from_graphs_up_to_some_tokens_and_launched_beyond() -> None:
    engine = find_engine("sglang")
    assert engine.launch_s(0) == engine.launch_s(2049) == engine.launch_s(16384) == 0.0
    assert (engine.launch_s(2048, latent=True), engine.launch_s(2049, latent=True)) == (0.0, 4.6e-5)
    assert engine.launch_s(0, architecture="cdna3") == 0.0 < engine.launch_s(1, architecture="cdna3")
    elder = find_engine("sglang-2025")
    assert elder.launch_s(1) == 4.6e-5
    assert (elder.residual_log_std, elder.rollout_step_s) == (engine.residual_log_std, engine.rollout_step_s)
    assert find_engine("vllm").launch_s(512) == 0.0 < find_engine("vllm").launch_s(513)
    eager = engine.eager()
    assert eager.launch_s(0) == eager.launch_s(1) == engine.eager_launch_s
    assert engine.on_host(2.0).launch_s(4096, latent=True) == 9.2e-5


def test_what_reads_short_prompts_is_the_host_where_no_graph_does() -> None:
    """36 layers of 13 kernels, each issued in 46 us, take longer than reading 128 tokens; not than reading 8,192."""

    def first_token_s(engine: str, prompt: int) -> float:
        found = planner.serving("qwen3-8b", "1xH100", prompt=prompt, generate=64, engine=engine, concurrency=1)
        return found.plans[0].ttft_s

    launched_s = 36 * 13 * 4.6e-5
    assert launched_s < first_token_s("sglang-2025", 128) < 1.2 * launched_s
    assert first_token_s("sglang", 128) < 0.5 * launched_s
    assert first_token_s("sglang-2025", 8192) == pytest.approx(first_token_s("sglang", 8192), rel=0.01)


def test_no_graph_of_a_chunk_ends_at_2048_tokens_without_latent_attention() -> None:
    def first_token_s(prompt: int) -> float:
        found = planner.serving(
            "qwen2.5-0.5b", "1xH100-SXM-80GB", prompt=prompt, generate=8, engine="sglang", concurrency=1
        )
        return found.plans[0].ttft_s

    assert first_token_s(2049) == pytest.approx(first_token_s(2048), rel=0.05)
