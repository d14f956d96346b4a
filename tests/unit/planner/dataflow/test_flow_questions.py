"""Questions about workflows: what is filled in, what is refused and how; lengths and pins."""

import json
from pathlib import Path
from typing import Any

import pytest

from costmodels.lengths import OutputLengths
from planner.dataflow.flow.pins import parse_call_pins, pin_from_words
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.dataflow.graphs.graph import Dataflow
from planner.dataflow.graphs.presets import build_preset
from planner.dataflow.length_text import lengths_text, parse_lengths
from planner.question.machines import resolve_cluster
from planner.question.request import Options, resolve_request
from planner.workflows import plan_dataflow
from profiles.errors import SpecError
from profiles.mixed_cluster import alone

MODELS = {"actor": "llama-2-70b", "critic": "llama-2-7b"}


def test_what_is_left_out_is_filled_in_and_said() -> None:
    request = resolve_flow("ppo", MODELS, "16x8xH100", FlowOptions())
    assert {role: model.name for role, model in request.models.items()} == {
        "actor": "llama-2-70b",
        "critic": "llama-2-7b",
        "reward": "llama-2-7b",
        "ref": "llama-2-70b",
    }
    assert (request.batch, request.prompt_tokens, request.output.most) == (512, 1024, 1024)
    said = {note.field for note in request.assumptions}
    assert {"batch", "prompt", "generate", "precision", "models.reward", "models.ref"} <= said


def test_usual_lengths_stay_within_what_a_model_can_place() -> None:
    usual = resolve_flow("ppo", {"": "gpt2"}, "8xH100", FlowOptions())
    assert (usual.prompt_tokens, usual.output.most) == (512, 512)
    asked = resolve_flow("ppo", {"": "gpt2"}, "8xH100", FlowOptions(prompt=1000))
    assert (asked.prompt_tokens, asked.output.most) == (1000, 24)


def test_a_model_beyond_its_length_is_told_once() -> None:
    result = plan_dataflow("sft", "llama-2-7b", "8xH100", batch=64, prompt=4000, generate=200, effort=0.01)
    assert [note.field for note in result.warnings if note.code == "beyond_model_length"] == ["models.actor"]
    result = plan_dataflow("dpo", "llama-2-7b", "8xH100", batch=64, prompt=4000, generate=200, effort=0.01)
    assert [note.field for note in result.warnings if note.code == "beyond_model_length"] == ["models.actor"]


def test_one_model_is_that_of_the_first_role() -> None:
    request = resolve_flow("grpo", {"": "llama-2-7b"}, "8xA100-80GB", FlowOptions(batch=64))
    assert request.models["actor"].name == request.models["reward"].name == "llama-2-7b"


def test_a_device_without_bf16_computes_in_fp16() -> None:
    assert resolve_flow("sft", {"": "llama-3.2-1b"}, "8xV100-SXM2-32GB", FlowOptions()).precision == "fp16"


def test_devices_too_old_for_16_bits_or_fused_attention_are_asked_what_a_single_plan_asks() -> None:
    old = resolve_flow("dpo", {"": "llama-3.2-1b"}, "8xP4", FlowOptions())
    assert old.precision == resolve_request("llama-3.2-1b", "8xP4", {"task": "full"}, None, Options()).job.precision
    assert old.precision == "fp32"
    for framework, said in (("megatron", 1), ("fsdp", 0)):
        request = resolve_flow("dpo", {"": "llama-3.2-1b"}, "1x8xV100+1x8xA100", FlowOptions(framework=framework))
        assert [note.field for note in request.assumptions].count("job.attention") == said


def test_async_runs_one_step_ahead_unless_told_otherwise() -> None:
    request = resolve_flow("grpo", {"": "llama-2-7b"}, "8xH100", FlowOptions(mode="async"))
    assert (request.dependency, request.staleness) == ("stale", 1)
    assert any(note.field == "staleness" for note in request.assumptions)


@pytest.mark.parametrize("job", ["grpo", "dpo"])
def test_a_reference_of_its_own_next_to_adapters_is_refused_with_what_to_do(job: str) -> None:
    models = {"actor": "llama-2-7b", "ref": "llama-2-13b"}
    adapters = FlowOptions(settings={"task": "lora"})
    with pytest.raises(SpecError, match=rf"models.ref: {job} .* the actor is the reference. Hint: leave ref out, or"):
        resolve_flow(job, models | ({"reward": "llama-2-7b"} if job == "grpo" else {}), "8xH100", adapters)
    with pytest.raises(SpecError, match=r"models.reff: .* no such role. Hint: did you mean 'ref'"):
        resolve_flow(job, {"actor": "llama-2-7b", "reff": "llama-2-13b"}, "8xH100", FlowOptions())


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"job": "pppo"}, "job", "unknown workflow 'pppo'"),
    ({"job": 7}, "job", "must be a name, a file or a graph"),
    ({"models": {"aktor": "llama-2-7b"}}, "models.aktor", "ppo has no such role"),
    ({"models": {"critic": "llama-2-7b"}}, "models.actor", "is needed: the model of the role actor"),
    ({"models": {"actor": "lama-2-7b"}}, "models.actor", "unknown name 'lama-2-7b'"),
    ({"cluster": "8xH10O"}, "cluster.device", "unknown name 'H10O'"),
    ({"cluster": "1024x8xH100"}, "cluster", "up to 4096 GPUs; got 8192"),
    ({"batch": 0}, "batch", "whole number from 1"),
    ({"batch": True}, "batch", "whole number from 1"),
    ({"batch": 10}, "settings.mini_batches", "must divide the 10 sequences per iteration; got 4"),
    (
        {"batch": 1 << 14, "settings": {"group_size": 512}, "job": "grpo", "models": "gpt2"},
        "batch",
        "gives 8388608 sequences; at most",
    ),
    ({"prompt": 0}, "prompt", "from 1 to 16777216; got"),
    ({"generate": "long"}, "generate", "cannot read 'long'"),
    ({"prompt": 1 << 24, "generate": 1 << 24}, "generate", "together have up to"),
    ({"models": "gpt2", "prompt": 800, "generate": 400}, "generate", "1200 tokens; gpt2 (actor) has 1024 learned"),
    (
        {"models": {"actor": "llama-2-7b", "critic": "gpt2"}, "prompt": 1024},
        "prompt",
        "up to 1025 tokens; gpt2 (critic) has 1024 learned positions",
    ),
    ({"mode": "asnyc"}, "mode", "unknown value 'asnyc'"),
    ({"staleness": 1}, "staleness", "mode async only; mode is hybrid"),
    ({"mode": "async", "staleness": 65}, "staleness", "from 0 to 64"),
    ({"dependency": "stale"}, "dependency", "must suit mode hybrid; got 'stale'"),
    ({"dependency": "barier"}, "dependency", "must suit mode hybrid; got 'barier'"),
    ({"mode": "async", "dependency": "barrier"}, "dependency", "leaves nothing to run ahead"),
    ({"objective": "speed"}, "objective", "unknown value 'speed'"),
    ({"effort": 0.0}, "effort", "between 0.01 and 100"),
    ({"iterations": 99}, "iterations", "from 1 to 16"),
    ({"engine": "vlm"}, "engine", "unknown"),
    ({"job": "dpo", "models": "llama-2-7b", "engine": "vllm"}, "engine", "no call of dpo generates"),
    ({"framework": "megatrom"}, "framework", "unknown"),
    ({"precision": "fp9"}, "job.precision", "unknown"),
    ({"precision": "mxfp8"}, "job.precision", "no framework trains in mxfp8 on H100-SXM-80GB"),
    ({"settings": {"group_size": 4}}, "job.group_size", "has no effect on ppo"),
    ({"pins": {"actor_generate": {"tp": 8}}}, "pins.actor_generate", "no call of that name"),
    ({"speed": 3}, "speed", "unknown setting"),
    ({"job": "sft", "models": "llama-2-7b", "mode": "async"}, "mode", "does not generate with a model it trains"),
    ({"job": "work.yaml", "allow_files": False}, "job", "names a file, which is not read here"),
]


@pytest.mark.parametrize(("change", "field", "words"), REFUSED, ids=[str(index) for index in range(len(REFUSED))])
def test_what_is_wrong_is_named(change: dict[str, Any], field: str, words: str) -> None:
    given = {"job": "ppo", "models": MODELS, "cluster": "16x8xH100", "batch": 512} | change
    with pytest.raises(SpecError) as caught:
        plan_dataflow(given.pop("job"), given.pop("models"), given.pop("cluster"), **given)
    assert caught.value.field == field
    assert words in caught.value.problem


TRAINS = {"role": "actor", "kind": "train", "inputs": ["prompts"], "mini_batches": 4}


def test_an_error_of_a_graph_is_told_of_what_the_user_wrote(tmp_path: Path) -> None:
    """Settings of a workflow known by name, fields of one's own."""
    own = {"roles": {"actor": {"model": "gpt2"}}, "calls": {"train": TRAINS}}
    with pytest.raises(SpecError) as caught:
        resolve_flow(own, {}, "8xH100", FlowOptions(batch=7))
    assert (caught.value.field, caught.value.hint) == ("job.calls.train.mini_batches", "1")
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps(own))
    with pytest.raises(SpecError, match=r"^job\.calls\.train\.mini_batches"):
        resolve_flow(str(file), {}, "8xH100", FlowOptions(batch=7))
    own["roles"]["actor"]["task"] = "qlora"
    with pytest.raises(SpecError, match=r"^job\.roles\.actor\.task: Megatron's parallel layers have no 4-bit weights"):
        resolve_flow(own, {}, "8xH100", FlowOptions(framework="megatron"))
    with pytest.raises(SpecError, match=r"^settings\.task: Megatron's parallel layers have no 4-bit weights"):
        resolve_flow("sft", {"": "gpt2"}, "8xH100", FlowOptions(framework="megatron", settings={"task": "qlora"}))


@pytest.mark.parametrize(
    ("job", "settings", "batch", "hint"),
    [
        ("ppo", {}, 7, "mini_batches=1, or a batch of 8"),
        ("grpo", {"group_size": 4, "mini_batches": 16}, 30, "mini_batches=15, or a batch of 32"),
        ("dapo", {"oversampling": 1.25, "group_size": 8, "mini_batches": 24}, 4, "mini_batches=16, or a batch of 12"),
    ],
)
def test_either_fix_of_mini_batches_will_do(job: str, settings: dict[str, Any], batch: int, hint: str) -> None:
    models, changed = {"": "llama-3.2-1b"}, int(hint.partition(",")[0].removeprefix("mini_batches="))
    with pytest.raises(SpecError) as caught:
        resolve_flow(job, models, "8xH100", FlowOptions(batch=batch, settings=settings))
    assert (caught.value.field, caught.value.hint) == ("settings.mini_batches", hint)
    resolve_flow(job, models, "8xH100", FlowOptions(batch=batch, settings=settings | {"mini_batches": changed}))
    resolve_flow(job, models, "8xH100", FlowOptions(batch=int(hint.split()[-1]), settings=settings))


def test_modes_are_listed_rather_than_what_sounds_alike() -> None:
    with pytest.raises(
        SpecError, match=r"unknown value 'sync'\. Hint: use one of hybrid, colocated, "
    ):  # async is none
        plan_dataflow("ppo", MODELS, "8xH100", mode="sync")


def test_words_may_be_written_large() -> None:
    small, large = (
        resolve_flow("ppo", MODELS, "16x8xH100", FlowOptions(**words, staleness=2))
        for words in (
            {"mode": "async", "engine": "vllm", "rollout": "partial", "attention_library": "flash_3"},
            {"mode": "Async", "engine": " vLLM", "rollout": "PARTIAL", "attention_library": "Flash_3"},
        )
    )
    assert (large.mode, large.engines, large.options) == (small.mode, small.engines, small.options)


def test_a_file_brings_its_models_and_the_user_overrides_them(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "roles: {actor: {model: llama-2-7b}, judge: {like: actor, head: value}}\n"
        "calls:\n"
        "  gen: {role: actor, kind: generate, inputs: [prompts], outputs: [text]}\n"
        "  judge_inf: {role: judge, kind: inference, inputs: [text], outputs: [scores]}\n"
        "  train: {role: actor, kind: train, inputs: [text, scores]}\n"
    )
    request = resolve_flow(str(path), {"judge": "llama-2-13b"}, "8xH100", FlowOptions())
    assert {role: model.name for role, model in request.models.items()} == {
        "actor": "llama-2-7b",
        "judge": "llama-2-13b",
    }
    with pytest.raises(SpecError, match="is a setting of presets"):
        resolve_flow(str(path), {}, "8xH100", FlowOptions(settings={"kl": False}))


def test_a_graph_of_ones_own_is_taken_as_it_is() -> None:
    graph = build_preset("dpo")
    assert isinstance(graph, Dataflow)
    assert resolve_flow(graph, {"": "llama-2-7b"}, "8xH100", FlowOptions()).graph is graph


def test_lengths_in_all_their_forms() -> None:
    assert parse_lengths("generate", 512).most == 512
    assert parse_lengths("generate", "512").is_fixed
    text = parse_lengths("generate", "lognormal:mean=800,sigma=1,max=8192")
    mapping = parse_lengths("generate", {"lognormal": {"mean": 800, "sigma": 1.0, "max": 8192}})
    assert text == mapping
    assert text.mean == pytest.approx(800, rel=0.01)
    assert text.longest_of(512) > 4 * text.mean
    steps = parse_lengths("generate", "cdf:0.5=256,0.9=1024,1=8192")
    assert steps.most == 8192
    assert parse_lengths("generate", {"cdf": {"0.5": 256, "0.9": 1024, "1": 8192}}) == steps
    assert parse_lengths("generate", steps) is steps
    assert isinstance(steps, OutputLengths)
    assert lengths_text(parse_lengths("generate", 512)) == "512 tokens"
    assert lengths_text(text) == f"{text.mean:.0f} tokens on average, at most 8192"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (True, "must be a number of tokens"),
        (0, "must be between 1"),
        ("-1", "must be between 1 and 16777216 tokens; got -1"),
        (1 << 25, "must be between 1 and 16777216 tokens; got 33554432"),
        ("\u00b2", "cannot read"),  # a digit to some functions of Python, a number to none
        ("lognormal", "cannot read"),
        ("lognormal:mean=800", "needs mean, sigma and max; got mean"),
        ("lognormal:mean=x,sigma=1,max=10", "must be a number; got 'x'"),
        ("lognormal:mean=8,sigma=1,max=10.5", "whole number of tokens"),
        ("cdf:0.5=256,0.5=300,1=400", "'0.5' is given twice"),
        ("cdf:0.5=256", "quantiles run from at least 0 to 1"),
        ("uniform:1=2", "unknown distribution 'uniform'"),
        ({"cdf": [1, 2]}, "unknown distribution"),
        ({}, "must be a number of tokens"),
    ],
)
def test_lengths_that_are_none(given: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_lengths("generate", given)
    assert caught.value.field.startswith("generate")
    assert words in caught.value.problem


def test_pins_name_meshes_engines_and_degrees() -> None:
    cluster = alone(resolve_cluster("2x8xH100", None))
    given = {"actor_gen": {"gpus": "0-7", "engine": "vllm", "tp": 4}, "actor_train": {"gpus": 8}}
    pins = parse_call_pins(given, build_preset("ppo"), cluster)
    gen, train = pins["actor_gen"], pins["actor_train"]
    assert (gen.first_gpu, gen.num_gpus, gen.engine, dict(gen.columns)) == (0, 8, "vllm", {"tensor_parallel": 4})
    assert (train.first_gpu, train.num_gpus) == (None, 8)
    assert pin_from_words("actor_gen.tp=8") == ("actor_gen", "tp", 8)
    assert pin_from_words("actor_gen.gpus = 0-63") == ("actor_gen", "gpus", "0-63")


@pytest.mark.parametrize(
    ("pins", "field", "words"),
    [
        ({"actor_gen": 8}, "pins.actor_gen", "must be a mapping"),
        ({"actor_gen": {"gpus": "8-99"}}, "pins.actor_gen.gpus", "within GPUs 0-15"),
        ({"actor_gen": {"gpus": 17}}, "pins.actor_gen.gpus", "the 16 GPUs; got 17"),
        ({"actor_gen": {"gpus": 12}}, "pins.actor_gen.gpus", "part of one node, or whole nodes; got 12"),
        ({"actor_gen": {"gpus": "0-11"}}, "pins.actor_gen.gpus", "part of one node, or whole nodes; got 0-11"),
        ({"actor_gen": {"gpus": "6-9"}}, "pins.actor_gen.gpus", "part of one node, or whole nodes; got 6-9"),
        ({"actor_gen": {"gpus": "all"}}, "pins.actor_gen.gpus", "cannot read 'all'"),
        ({"actor_gen": {"tp": "8"}}, "pins.actor_gen.tp", "whole number"),
        ({"actor_gen": {"tp": 0}}, "pins.actor_gen.tp", "whole number from 1 to"),
        ({"actor_gen": {"tp": 2, "tensor_parallel": 4}}, "pins.actor_gen.tensor_parallel", "is given twice"),
        ({"actor_gen": {"recompute": 1}}, "pins.actor_gen.recompute", "is a matter of training"),
        ({"actor_train": {"axis_order": 1}}, "pins.actor_train.axis_order", "cannot be fixed"),
        ({"actor_gen": {"engine": 3}}, "pins.actor_gen.engine", "must be text"),
    ],
)
def test_pins_are_checked(pins: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_call_pins(pins, build_preset("ppo"), alone(resolve_cluster("2x8xH100", None)))
    assert caught.value.field == field
    assert words in caught.value.problem


@pytest.mark.parametrize(
    ("gpus", "hint"), [(12, "8 or 16"), ("0-11", "0-7 or 0-15"), ("6-9", "6-7 or 0-15"), ("10-20", "10-15 or 8-23")]
)
def test_the_nearest_meshes_are_named(gpus: Any, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_call_pins({"actor_gen": {"gpus": gpus}}, build_preset("ppo"), alone(resolve_cluster("4x8xH100", None)))
    assert caught.value.hint == hint


def test_words_that_pin_nothing() -> None:
    with pytest.raises(SpecError, match=r"CALL\.FIELD=VALUE"):
        pin_from_words("actor_gen=8")


def test_a_file_that_is_not_named_as_yaml_is_told_from_an_unknown_workflow(tmp_path: Path) -> None:
    file = tmp_path / "workflow.txt"
    file.write_text("name: x")
    for allow_files, problem in ((True, "is a file, but not named as YAML"), (False, "unknown workflow")):
        with pytest.raises(SpecError) as refused:
            resolve_flow(str(file), {}, "8xH100", FlowOptions(allow_files=allow_files))
        assert refused.value.field == "job"
        assert problem in refused.value.problem
    for text in ("x" * 5000, "a\0b", "\ud800", str(tmp_path)):
        with pytest.raises(SpecError, match="unknown workflow"):
            resolve_flow(text, {}, "8xH100", FlowOptions())


@pytest.mark.parametrize(
    ("pins", "field", "hint"),
    [
        ({"actor_train": {"tp": 3}}, "pins.actor_train.tensor_parallel", "1, 2 or 4"),
        ({"actor_train": {"tp": 2, "dp": 5}}, "pins.actor_train.data_parallel", "1, 2 or 4"),
        ({"actor_gen": {"ep": 2}}, "pins.actor_gen.expert_parallel", "1"),
        ({"actor_train": {"tp": 4, "gpus": 2}}, "pins.actor_train", "leave one of them open"),
    ],
)
def test_a_layout_that_there_is_not_is_no_shortage_of_memory(pins: dict[str, Any], field: str, hint: str) -> None:
    with pytest.raises(SpecError, match="no layout of actor_") as caught:
        plan_dataflow("grpo", "llama-3.2-1b", "4xH100", batch=16, prompt=64, generate=64, effort=0.01, pins=pins)
    assert (caught.value.field, caught.value.hint) == (field, hint)
