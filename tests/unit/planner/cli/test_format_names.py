"""Spellings of number formats and of other words: one name of each in answers, exports and bodies."""

import pytest
from fastapi.testclient import TestClient

import planner
from costmodels.workload import TrainingJob
from planner.workflows import plan_dataflow
from profiles.precision import format_name
from service.app import create_app

MODEL, CLUSTER = "llama-3.2-1b", "8xA100-80GB"
SPELLINGS = ("bfloat16", "BF16", "torch.bfloat16")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_spelling_is_answered_by_its_name(spelling: str) -> None:
    """Rules and exporters compare names: Accelerate was said to have no bfloat16."""
    job = {"precision": spelling, "master_dtype": "float32"}
    found = planner.plan(MODEL, CLUSTER, job, top=1)
    assert planner.to_document(found) == planner.to_document(
        planner.plan(MODEL, CLUSTER, {"precision": "bf16", "master_dtype": "fp32"}, top=1)
    )
    assert planner.export(MODEL, CLUSTER, job, format="accelerate").exported is not None


def test_a_job_of_python_is_answered_so_too():
    job = TrainingJob(sequence_length=2048, global_batch_size=64, precision="float16")
    assert planner.plan(MODEL, CLUSTER, job, top=1).request.job.precision == "fp16"


def test_workflows_and_serving_take_them():
    found = plan_dataflow("sft", MODEL, CLUSTER, batch=16, prompt=64, effort=0.05, precision="bfloat16")
    assert found.request.precision == "bf16"
    assert planner.serving(MODEL, CLUSTER, prompt=64, generate=64, precision="float16").precision == "fp16"


def test_the_service_takes_what_the_library_takes():
    client = TestClient(create_app())
    answers = [
        client.post("/plan", json={"model": MODEL, "cluster": CLUSTER, "job": job, "objective": objective})
        for job, objective in (
            ({"task": "LoRA", "precision": "bfloat16", "state_dtype": "FP32"}, "Step_Time"),
            ({"task": "lora", "precision": "bf16", "state_dtype": "fp32"}, "step_time"),
        )
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    refused = client.post("/plan", json={"model": MODEL, "cluster": CLUSTER, "job": {"precision": "Int8"}})
    assert refused.status_code == 422
    assert "got 'Int8'" in refused.json()["detail"]  # as it was given


def test_names_of_formats():
    assert [format_name(spelling) for spelling in (*SPELLINGS, "half", "fp8")] == [
        "bf16",
        "bf16",
        "bf16",
        "fp16",
        "fp8",
    ]
