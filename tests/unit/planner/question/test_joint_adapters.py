"""One adapter where one layer makes queries, keys and values: its size, its launches, its names."""

from collections.abc import Mapping

import pytest

from costmodels.evaluate import evaluate
from costmodels.memory.activations import layer_activations
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.workload import LoraSpec, TrainingJob
from planner.question.jobs import resolve_job
from planner.question.request import Options, resolve_request
from profiles.adapter_parameters import lora_parameters, total_lora_parameters
from profiles.errors import SpecError
from profiles.model import ModelSpec
from tests.fakes import RateKernels, context, job, llama, stack

MODEL = llama(num_key_value_heads=4)
H, KV = MODEL.hidden_size, 4 * MODEL.head_dim
APART, JOINT = ("q", "k", "v"), ("qkv",)
PLANS = PlanBatch.from_plans([ExecutionPlan()])


def tuned(targets: tuple[str, ...], **lora: object) -> TrainingJob:
    return job(task="lora", lora=LoraSpec(rank=8, targets=targets, **lora))  # type: ignore[arg-type]


def test_it_has_one_inner_matrix_for_all_three() -> None:
    assert lora_parameters(MODEL, 8, JOINT) == 8 * (H + H + 2 * KV)
    assert lora_parameters(MODEL, 8, APART) - lora_parameters(MODEL, 8, JOINT) == 8 * 2 * H
    held = stage_parameters(PLANS, stage_table(PLANS, MODEL), MODEL, tuned(JOINT))
    assert held.trained_dense[0, 0] == total_lora_parameters(MODEL, 8, JOINT)


def test_it_is_issued_once() -> None:
    """Forward two products and three kernels beside them; backward four products and three kernels; two pairs fewer."""
    bound = stack(kernel_launch_s=1.0)
    each, one = (
        float(
            evaluate(PLANS, context(model=MODEL, job=tuned(names), stack=bound, kernels=RateKernels())).step_time_s[0]
        )
        for names in (APART, JOINT)
    )
    assert each - one == pytest.approx(MODEL.num_layers * 2 * ((2 + 3) + (4 + 3)), rel=1e-3)


def test_it_drops_its_input_once() -> None:
    tokens = job().sequence_length
    kept = [
        layer_activations(PLANS, MODEL, tuned(names, dropout=True), stack(), moe=False).whole[0]
        for names in (APART, JOINT)
    ]
    assert kept[0] - kept[1] == pytest.approx(2 * (2 + 1) * H * tokens)
    shared = [layer_activations(PLANS, MODEL, tuned(names), stack(), moe=False).whole[0] for names in (APART, JOINT)]
    assert shared[0] == shared[1]


def resolved(targets: str, model: ModelSpec = MODEL) -> tuple[str, ...]:
    given: Mapping[str, object] = {"task": "lora", "lora_targets": targets}
    lora = resolve_job(given, model, context().cluster, {})[0].lora
    assert lora is not None
    return lora.targets


@pytest.mark.parametrize("name", ["qkv", "c_attn", "query_key_value", "Wqkv", "qkv_proj"])
def test_models_call_it_differently(name: str) -> None:
    assert resolved(f"{name},o_proj") == ("qkv", "o")


def test_what_it_excludes() -> None:
    with pytest.raises(SpecError, match="names q, k or v beside qkv"):
        resolved("qkv,v")
    with pytest.raises(SpecError, match="has no layer for queries, keys and values"):
        asked("deepseek-v2-lite", "megatron")


def asked(model: str, framework: str, **lora: object) -> None:
    said = lora or {"lora_targets": "qkv,o"}
    resolve_request(model, "8xH100", {"task": "lora", **said}, None, Options(framework=framework))


@pytest.mark.parametrize(
    ("model", "framework"),
    [
        ("llama-3.1-8b", "megatron"),  # Megatron-Core makes one layer of three
        ("gpt-neox-20b", "hf-trainer"),
        ("falcon-7b", "fsdp"),
        ("phi-3-mini", "hf-trainer"),
    ],
)
def test_one_layer_for_all_three_is_the_models_or_the_stacks(model: str, framework: str) -> None:
    asked(model, framework)


@pytest.mark.parametrize("framework", ["hf-trainer", "fsdp", "deepspeed", "litgpt"])
def test_where_there_are_three_layers_they_are_named_apart(framework: str) -> None:
    with pytest.raises(SpecError, match=r"has no one layer for queries, keys and values, and .* makes none") as error:
        asked("llama-3.1-8b", framework)
    assert error.value.field == "job.lora_targets"
    assert error.value.hint == "lora_targets q,k,v"
    with pytest.raises(SpecError) as error:
        asked("llama-3.1-8b", framework, lora={"targets": ["qkv"]})
    assert error.value.field == "job.lora.targets"
    asked("llama-3.1-8b", framework, lora_targets="q,k,v")
