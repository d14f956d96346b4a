"""Exports to nanotron: what its file says, and what it cannot."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import yaml

import planner
from costmodels.plan import PlanBatch
from costmodels.stages.balance import balanced_stage_layers
from costmodels.stages.table import stage_table
from planner.exporters.exported import Exported
from profiles.errors import SpecError
from tests.exported import QUESTIONS, export, plan_of, request_of, some_plans
from tests.exporters.recorded import NANOTRON_ATTENTION, NANOTRON_FIELDS, NANOTRON_LLAMA, NANOTRON_QWEN

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}


def config(exported: Exported) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(exported.files["config.yaml"])
    return found


def sections(found: Any, name: str = "") -> dict[str, Any]:
    """Dotted name to its mapping, the first of a list; the model's is of its own."""
    here = found[0] if isinstance(found, list) else found
    inside = {f"{name}.{key}".strip("."): value for key, value in here.items()}
    nested = {key: value for key, value in inside.items() if isinstance(value, Mapping | list)}
    below = [sections(value, key) for key, value in nested.items() if key != "model.model_config"]
    return {name: here} | {key: value for each in below for key, value in each.items()}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("question", [each[1:] for each in QUESTIONS if each[0] == "nanotron"], ids="-".join)
def test_every_field_is_known_and_none_is_missing(question: tuple[str, ...], optimizer: str) -> None:
    for plan, request in some_plans(40, *question):
        asked = replace(request, job=replace(request.job, optimizer=optimizer))
        read = sections(config(export("nanotron", plan, asked)))
        assert read.keys() <= NANOTRON_FIELDS.keys()
        for name, values in read.items():
            needed, _, optional = (words.split() for words in NANOTRON_FIELDS[name].partition("|"))
            assert values.keys() <= {*needed, *optional}
            assert values.keys() >= set(needed)
        adam = read["optimizer.optimizer_factory"].keys() - {"name"}
        assert bool(adam) == (optimizer == "adamw")


def test_the_first_class_that_knows_all_fields_is_the_one_that_is_meant() -> None:
    """Of the union of LlamaConfig, Starcoder2Config and Qwen2Config, which are tried in that order."""
    job = JOB | {"sequence_length": 8192}
    for model, pins, known in (
        ("llama-2-7b", {}, NANOTRON_LLAMA),
        ("llama-2-7b", {"cp": 2}, NANOTRON_QWEN),
        ("qwen2.5-7b", {"tp": 2, "sp": True}, NANOTRON_QWEN),
        ("mistral-7b", {}, NANOTRON_QWEN),
    ):
        request = request_of(model, "8xH100", "nanotron", **job)
        exported = export("nanotron", plan_of(request, **pins), request)
        read = config(exported)["model"]["model_config"]
        assert exported.unsupported == ()
        assert read.keys() <= set(known.split())
        assert ("is_llama_config" in read) == (known == NANOTRON_LLAMA)
        if known == NANOTRON_QWEN:
            assert not read.keys() <= set(NANOTRON_LLAMA.split())
            assert read["_attn_implementation"] in NANOTRON_ATTENTION.split()
            assert (read["_attn_implementation"] == "ring") == (pins.get("cp", 1) > 1)
            assert read["attention_bias"] == (model == "qwen2.5-7b")
            assert ("sliding_window_size" in read) == (model == "mistral-7b")


def test_plan_job_and_model_are_said() -> None:
    request = request_of("llama-3-8b", "2x8xH100", "nanotron", **JOB | {"train_tokens": 2048 * 64 * 100})
    plan = plan_of(request, tp=2, sp=True, tensor_parallel_overlap=True, zero=1, mbs=2, recompute="full")
    exported = export("nanotron", plan, request)
    read = config(exported)
    assert exported.unsupported == ()
    assert read["parallelism"] == {
        "dp": 8,
        "pp": 1,
        "tp": 2,
        "context_parallel_size": 1,
        "expert_parallel_size": 1,
        "pp_engine": "1f1b",
        "tp_mode": "REDUCE_SCATTER",
        "tp_linear_async_communication": True,
        "recompute_layer": True,
    }
    assert read["tokens"] == {
        "sequence_length": 2048,
        "train_steps": 100,
        "micro_batch_size": 2,
        "batch_accumulation_per_replica": 4,
    }
    assert (read["optimizer"]["zero_stage"], read["optimizer"]["accumulate_grad_in_fp32"]) == (1, True)
    model = read["model"]["model_config"]
    assert (model["num_hidden_layers"], model["hidden_size"], model["intermediate_size"]) == (32, 4096, 14336)
    assert (model["num_key_value_heads"], model["vocab_size"]) == (8, 128256)
    assert exported.environment == {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert exported.launch.endswith("run_train.py --config-file config.yaml")


@pytest.mark.parametrize(
    ("job", "dtype", "longer"),
    [
        ({}, "bfloat16", True),
        ({"gradient_dtype": "bf16", "master_dtype": "none", "state_dtype": "bf16"}, "bfloat16", False),
        ({"precision": "fp32"}, "float32", False),
    ],
    ids=str,
)
def test_gradients_in_fp32_come_with_a_copy_of_the_weights(job: dict[str, str], dtype: str, longer: bool) -> None:
    request = request_of("llama-2-7b", "8xA100-80GB", "nanotron", **JOB | job)
    exported = export("nanotron", plan_of(request, zero=1), request)
    read = config(exported)
    assert exported.unsupported == ()
    assert (read["model"]["dtype"], read["optimizer"]["accumulate_grad_in_fp32"]) == (dtype, longer)


def test_stages_are_those_that_nanotron_lays_out() -> None:
    """By cost, the output layer's too: 17 and 15 of 32. Even stages were priced otherwise, and are refused."""
    request = request_of("llama-2-7b", "8xA100-80GB", "nanotron", **JOB)
    even = export("nanotron", plan_of(request, pp=2, zero=1), request)
    (gap,) = even.unsupported
    assert (gap.field, gap.hint) == ("plan.pipeline_parallel", "pp 1, or first_stage_layers 17")
    assert "here 17, 15" in gap.problem
    plan = plan_of(request, pp=2, zero=1, first_stage_layers=17)
    table = stage_table(PlanBatch.from_plans([plan]), request.model, full=True)
    assert tuple(table.layers[0]) == balanced_stage_layers(request.model, 2)
    assert export("nanotron", plan, request).unsupported == ()


@pytest.mark.parametrize(
    ("model", "job", "pins", "field"),
    [
        ("mixtral-8x7b", {}, {}, "model.moe"),
        ("qwen3-8b", {}, {}, "model.qk_norm"),
        ("gpt2-xl", {"sequence_length": 1024}, {}, "model.learned_positions"),
        ("falcon-7b", {}, {}, "model.parallel_residual"),
        ("gemma-2-9b", {}, {}, "model.attention_softcap"),
        ("mistral-7b", {"sequence_length": 8192}, {"cp": 2}, "plan.context_parallel"),
        ("llama-2-7b", {"precision": "fp16"}, {}, "job.precision"),
        ("llama-2-7b", {"gradient_dtype": "bf16"}, {}, "job.master_dtype"),
        ("llama-2-7b", {"attention": "unfused"}, {}, "job.attention"),
        ("llama-2-7b", {"fused_cross_entropy": True}, {}, "job.fused_cross_entropy"),
    ],
)
def test_what_cannot_be_said_is_told(model: str, job: dict[str, Any], pins: dict[str, Any], field: str) -> None:
    request = request_of(model, "8xH100", "nanotron", **JOB | job)
    exported = export("nanotron", plan_of(request, **pins), request)
    assert field in [gap.field for gap in exported.unsupported]


def test_the_best_plan_that_is_laid_out_so_is_taken() -> None:
    result = planner.export("llama-2-7b", "8xA100-80GB", JOB, format="nanotron")
    assert result.exported is not None
    assert result.plan is not None
    assert (result.request.stack.name, result.fits, result.exported.unsupported) == ("nanotron", True, ())
    with pytest.raises(SpecError, match=r"plan\.pipeline_parallel: nanotron .* cannot express it"):
        planner.export("llama-2-7b", "8xA100-80GB", JOB, format="nanotron", plan={"pp": 4})
