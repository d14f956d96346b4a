"""Host memory of what calls hand on, and device memory of what they read of it."""

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import PlanBatch
from planner.dataflow.call_costs import CallSetting, price_plans
from planner.dataflow.flow.held_data import data_memory
from planner.dataflow.flow.request import FlowOptions, resolve_flow
from planner.dataflow.flow.results import FlowPlan, Task
from planner.question.machines import resolve_cluster
from planner.question.request import resolve_named_model
from planner.workflows import plan_dataflow
from profiles.stacks import find_stack

QUICK: dict[str, Any] = {"batch": 8, "prompt": 256, "generate": 256, "effort": 0.01}
VOCABULARY = 128256
FULL_BYTES = 8 * 512 * VOCABULARY * 2.0


def distilled(**settings: Any) -> FlowPlan:
    models = {"teacher": "llama-3.1-8b", "student": "llama-3.2-1b"}
    plan = plan_dataflow("distill", models, "2xH100", **QUICK | settings).plan
    assert plan is not None
    return plan


def test_scores_of_a_teacher_are_held_until_the_student_has_read_them() -> None:
    plan = distilled()
    (scores,) = plan.data
    assert (scores.source, scores.readers) == ("teacher_inf", ("student_train",))
    assert scores.size_bytes == FULL_BYTES
    assert scores.copies in (1, 2)
    assert plan.data_bytes == pytest.approx(FULL_BYTES * scores.copies)
    assert plan.host_peak_bytes == pytest.approx(plan.host_bytes + plan.data_bytes)
    few = distilled(settings={"scores": 50})
    assert few.data[0].size_bytes == 8 * 512 * 50 * 6.0


def held(spans: list[tuple[str, int, float, float]], gpus: tuple[int, int] = (0, 2)) -> Any:
    """Data of a distillation whose calls run when told, on four GPUs in two nodes."""
    models = {"teacher": "llama-3.1-8b", "student": "llama-3.2-1b"}
    request = resolve_flow("distill", models, "4xH100", FlowOptions(**QUICK))
    tasks = [
        Task(name=name, kind="call", iteration=iteration, start_s=start, end_s=end, meshes=())
        for name, iteration, start, end in spans
    ]
    return data_memory(request, tasks, {"teacher_inf": gpus, "student_train": (2, 2)}, np.asarray([0, 0, 1, 1]))


def test_a_teacher_that_runs_ahead_is_held_several_times() -> None:
    serial = [
        ("teacher_inf", 0, 0, 2),
        ("student_train", 0, 2, 5),
        ("teacher_inf", 1, 5, 7),
        ("student_train", 1, 7, 9),
    ]
    ahead = [("teacher_inf", 0, 0, 2), ("student_train", 0, 2, 5), ("teacher_inf", 1, 2, 4), ("student_train", 1, 5, 8)]
    once, twice = held(serial), held(ahead)
    assert (once.held[0].copies, once.peak_bytes) == (1, FULL_BYTES)
    assert (twice.held[0].copies, twice.peak_bytes) == (2, 2 * FULL_BYTES)
    assert once.node_bytes.tolist() == [FULL_BYTES, 0]
    assert held(serial, gpus=(1, 2)).node_bytes.tolist() == [FULL_BYTES / 2, FULL_BYTES / 2]


def test_what_is_written_as_soon_as_there_is_room_takes_none_besides() -> None:
    """Starts are ends less durations, and may be the last digit before the end that they follow."""
    early = np.nextafter(5.0, 0.0)
    serial = [
        ("teacher_inf", 0, 0, 2),
        ("student_train", 0, 2, 5),
        ("teacher_inf", 1, early, 7),
        ("student_train", 1, 7, 9),
    ]
    found = held(serial)
    assert (found.held[0].copies, found.peak_bytes, found.node_bytes[0]) == (1, FULL_BYTES, FULL_BYTES)
    sooner = held([*serial[:2], ("teacher_inf", 1, 4.999, 7), serial[3]])
    assert (sooner.held[0].copies, sooner.peak_bytes) == (2, 2 * FULL_BYTES)
    brief = held([("teacher_inf", 0, 0, 1e-12), ("student_train", 0, 1e-12, 1e-11), *serial[2:]])
    assert (brief.held[0].copies, brief.peak_bytes) == (1, FULL_BYTES)


def test_a_teacher_that_never_runs_ahead_is_held_once() -> None:
    models = {"teacher": "llama-3-8b", "student": "llama-3.2-1b"}
    asked = {"batch": 64, "prompt": 512, "generate": 512, "settings": {"prefetch": 0}}
    plan = plan_dataflow("distill", models, "2x8xH100", **asked).plan
    assert plan is not None
    calls = sorted((task.start_s, task.end_s) for task in plan.tasks if task.name in ("teacher_inf", "student_train"))
    assert all(later[0] >= before[1] - 1e-9 for before, later in pairwise(calls))
    (scores,) = plan.data
    assert (scores.copies, plan.data_bytes) == (1, pytest.approx(64 * 1024 * VOCABULARY * 2.0))


def test_more_than_a_node_has_is_said() -> None:
    models = {"teacher": "llama-3.1-8b", "student": "llama-3.2-1b"}
    settings = QUICK | {"batch": 65536}
    result = plan_dataflow("distill", models, "2xH100", **settings)
    assert result.plan is not None
    assert any(note.code == "may_not_fit" for note in result.warnings)
    few = plan_dataflow("distill", models, "2xH100", settings={"scores": 50}, **settings)
    assert not any(note.code == "may_not_fit" for note in few.warnings)


def test_scores_of_a_micro_batch_lie_on_the_device_that_trains_on_them() -> None:
    model = resolve_named_model("llama-3.2-1b", allow_files=False).spec
    setting = CallSetting(cluster=resolve_cluster("8xH100", None), stack=find_stack("megatron"))
    plans = PlanBatch.from_columns(
        2, tensor_parallel=np.array([1, 2]), data_parallel=np.array([8, 4]), micro_batch_size=2, num_microbatches=4
    )
    quiet = ModelCall(kind=CallKind.TRAIN, num_sequences=64, prompt_tokens=512)
    reading = ModelCall(
        kind=CallKind.TRAIN,
        num_sequences=64,
        prompt_tokens=512,
        vocabulary_bytes_per_token=VOCABULARY * 2.0,
        score_bytes_per_token=300.0,
    )
    more = (
        price_plans(plans, reading, model, setting).active_bytes
        - price_plans(plans, quiet, model, setting).active_bytes
    )
    tokens = 2 * 512
    assert more == pytest.approx([tokens * (VOCABULARY * 2 + 300), tokens * (VOCABULARY + 300)])


def test_all_memory_is_told_in_one_unit(run: Any) -> None:
    """512 sequences of 2,048 tokens, 128,256 scores of two bytes each: 269e9 bytes, or 250.5 GiB."""
    models = ("--model", "teacher=llama-3.2-1b", "--model", "student=llama-3.2-1b")
    out = run("plan", "--job", "distill", *models, "--gpus", "8xH100-SXM-80GB", "--effort", "0.02")[1]
    words = " ".join(out.split())
    assert "up to 250.5 GiB at once in host memory, most of it teacher_scores of teacher_inf, 250.5 GiB" in words
    assert not re.search(r"\d GB\b", words)
