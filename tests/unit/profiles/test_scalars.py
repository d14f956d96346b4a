"""Numbers of NumPy's are as good as Python's, wherever a user describes something; and stay what they are."""

import json
from typing import Any

import numpy as np
import pytest

import planner
from planner.question.machines import mixed_of
from profiles.errors import SpecError
from profiles.scalars import plain

MODEL, CLUSTER = "llama-3.2-1b", "8xA100-80GB"
JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}
# A step of fewer tokens than the run of a byte has.
SHORT: dict[str, Any] = {"sequence_length": 8, "global_batch_size": 8}
WHOLE = [np.int64, np.int32, np.uint8]


def test_scalars_become_numbers_however_deep_and_the_rest_stays() -> None:
    given = {"a": np.int8(3), "b": [np.float32(0.5), {"c": (np.bool_(True), "text", None)}], "d": np.array(7)}
    found = plain(given)
    assert found == {"a": 3, "b": [0.5, {"c": (True, "text", None)}], "d": 7}
    assert [type(found["a"]), type(found["b"][0]), type(found["b"][1]["c"][0])] == [int, float, bool]
    for same in ({"a": [1, 2.0]}, (1, "x"), np.ones(2), planner.TrainingJob(**JOB), MODEL, None):
        assert plain(same) is same


def test_what_refers_to_itself_is_not_followed_for_ever() -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    assert plain(endless) is endless


@pytest.mark.parametrize("kind", WHOLE)
def test_narrow_numbers_in_a_job_do_not_wrap_around(kind: type) -> None:
    """128 tokens times 64 sequences are more than a byte holds."""
    expected = planner.plan(MODEL, CLUSTER, {"sequence_length": 128, "global_batch_size": 64}, top=2)
    given = {"sequence_length": kind(128), "global_batch_size": kind(64)}
    for job in (given, planner.TrainingJob(**given)):
        found = planner.plan(MODEL, CLUSTER, job, top=kind(2))
        assert [answer.step_time_s for answer in found.plans] == [answer.step_time_s for answer in expected.plans]
        assert json.dumps(planner.to_document(found)["plans"]) == json.dumps(planner.to_document(expected)["plans"])


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_numbers_are_taken_everywhere(kind: type) -> None:
    pins = {"tp": kind(2), "zero": kind(1)}
    planned = planner.plan(MODEL, CLUSTER, SHORT | {"train_tokens": kind(100)}, pins=pins, memory_reserve_bytes=kind(9))
    assert planned.best is not None
    assert planned.best.plan.tensor_parallel == 2
    assert planned.request.memory_reserve_bytes == 9
    assert planner.search(MODEL, CLUSTER, JOB, evaluations=kind(100), seed=kind(1)).best is not None
    assert len(planner.portfolio(MODEL, CLUSTER, JOB, count=kind(1)).trials) == 1
    mixed = {"groups": [{"device": "A100-80GB", "num_nodes": kind(1)}, {"device": "H100-80GB", "num_nodes": kind(1)}]}
    groups = mixed_of(mixed)
    assert groups is not None
    assert groups.num_devices == 16
    model = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 128, "vocab_size": 200}
    assert planner.estimate({name: kind(size) for name, size in model.items()}, CLUSTER, JOB).fits
    flow = {"batch": kind(16), "prompt": kind(64), "generate": kind(64), "pins": {"actor_train": {"tp": kind(2)}}}
    found = planner.plan_dataflow("grpo", MODEL, CLUSTER, effort=np.float32(0.02), **flow)
    assert found.request.batch == 16


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_so_are_others(kind: type) -> None:
    result = planner.plan(MODEL, CLUSTER, SHORT | {"train_tokens": kind(2048)}, price_per_device_hour_usd=kind(2.5))
    assert result.best is not None
    assert result.request.job.train_tokens == 2048
    assert planner.search(MODEL, CLUSTER, JOB, seconds=kind(0.5)).best is not None
    assert planner.plan(MODEL, CLUSTER, {"sequence_length": kind(2048)}).request.job.sequence_length == 2048
    with pytest.raises(SpecError, match=r"job.sequence_length: must be a whole number; got 1023.5"):
        planner.plan(MODEL, CLUSTER, {"sequence_length": kind(1023.5)})
    pins = {"tp": kind(2)}  # columns of a table with a gap in it
    planned = planner.plan(MODEL, CLUSTER, JOB, pins=pins, top=1).best
    served = planner.serving(MODEL, CLUSTER, prompt=128, generate=16, pins=pins).best
    assert planned is not None
    assert planned.plan.tensor_parallel == served.tensor_parallel == 2
    assert planner.plan(MODEL, CLUSTER, JOB, offload=np.bool_(True)).request.offload is True


def test_every_result_has_its_document() -> None:
    results = {
        "plan": planner.plan(MODEL, CLUSTER, JOB, top=1),
        "estimate": planner.estimate(MODEL, CLUSTER, JOB),
        "search": planner.search(MODEL, CLUSTER, JOB, evaluations=100),
        "portfolio": planner.portfolio(MODEL, CLUSTER, JOB, count=1),
        "sensitivity": planner.sensitivity(MODEL, CLUSTER, JOB, rivals=1),
        "workflow": planner.plan_dataflow("grpo", MODEL, CLUSTER, batch=16, prompt=64, generate=64, effort=0.02),
    }
    for kind, result in results.items():
        document = planner.to_document(result)
        assert json.loads(json.dumps(document))["kind"] == kind


@pytest.mark.parametrize("other", [3, None, {}, "plan"])
def test_something_else_has_none(other: object) -> None:
    with pytest.raises(TypeError, match=rf"to_document takes what planner.plan .* got {type(other).__name__}"):
        planner.to_document(other)


def test_an_estimate_takes_what_is_fixed_as_its_plan() -> None:
    with pytest.raises(SpecError, match=r"pins: unknown setting. Hint: .*plan=\{'tp': 8\}"):
        planner.estimate(MODEL, CLUSTER, JOB, pins={"tp": 8})
