"""Several changes at once, where one is not enough: none that can be left out, or that a search has not confirmed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from planner import api
from planner.answer.trials import Trial, joined, trial_of
from planner.question.request import Options, resolve_request, space_of
from planner.ranking import Priced
from planner.results import Remedy, Request
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec

TOGETHER = "together"
FULL: dict[str, Any] = {"task": "full", "sequence_length": 8192}


def remedies(model: str, cluster: str, job: dict[str, Any]) -> dict[str, Remedy]:
    answer = api.plan(model, cluster, job)
    assert answer.infeasible is not None
    return {remedy.code: remedy for remedy in answer.infeasible.remedies}


def test_offloading_under_another_framework_fits_where_neither_does() -> None:
    told = remedies("llama-3-70b", "8xH100", FULL)
    remedy = told[TOGETHER]
    assert not {"other_framework", "offload"} & told.keys()
    assert remedy.message.endswith("(--framework fsdp); and offload optimizer states, checkpoints or weights to the "
                                   "host (--offload)")  # fmt: skip
    again = api.plan("llama-3-70b", "8xH100", FULL, framework="fsdp", offload=True)
    assert again.fits
    assert remedy.likely
    assert again.plans[0].step_time_s == pytest.approx(remedy.step_time_s)


def test_what_one_change_does_needs_no_second() -> None:
    told = remedies("llama-3-8b", "2xA100-40GB", FULL)
    assert told["offload"].likely
    assert TOGETHER not in told


def test_offloading_with_degrees_let_go_of_is_told_once() -> None:
    answer = api.plan("llama-3-70b", "8xA100-80GB", {"task": "full"}, pins={"tp": 8, "zero": 0}, framework="megatron")
    assert answer.infeasible is not None
    codes = [remedy.code for remedy in answer.infeasible.remedies if remedy.likely]
    assert "offload_and_free" in codes
    assert TOGETHER not in codes


def test_sequences_get_no_shorter_than_the_samples_packed_in_them() -> None:
    told = remedies("llama-3-8b", "1xA100-40GB", FULL | {"sample_tokens": 4096})
    assert "shorter_sequence" not in told
    assert told["adapters"].fits


def test_what_is_quantised_has_no_frozen_format() -> None:
    told = remedies("llama-3-70b", "1xA100-40GB", {"task": "lora", "frozen_dtype": "fp32"})
    assert told["offload"].fits


def question() -> Request:
    pins = {"zero_stage": 0, "micro_batch_size": 4}
    return resolve_request("llama-2-13b", "8xA100-40GB", {"global_batch_size": 64}, pins, Options())


def without(request: Request, name: str) -> Trial:
    pins = {key: value for key, value in request.pins.items() if key != name}
    return trial_of(request, f"free {name}", f"free {name}", pins=pins)


def trials_of(request: Request) -> list[Trial]:
    return [
        without(request, "zero_stage"),
        without(request, "micro_batch_size"),
        trial_of(request, "offload", "offload", offload=True),
    ]


def answers(trials: Sequence[Trial], request: Request, needed: set[str], illegal: str = "") -> list[Remedy]:
    """What is joined where a few changes are needed, and one is not legal with others."""

    def search(changed: Request, cluster: ClusterSpec) -> Priced:
        done = {"zero_stage", "micro_batch_size"} - changed.pins.keys() | ({"offload"} if changed.offload else set())
        if illegal in done:
            raise SpecError("plan", "not with the others")
        return priced(changed, cluster, fits=needed <= done)

    return joined(trials, request, search)


def priced(request: Request, cluster: ClusterSpec, *, fits: bool) -> Priced:
    plans = space_of(request, cluster).plans.take(np.arange(1))
    one = np.ones(1)
    return Priced(
        plans=plans, step_time_s=one, peak_memory_bytes=one, host_memory_bytes=0 * one,
        fits=np.array([fits]), likely=np.array([fits]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("needed", "message"),
    [
        ({"zero_stage", "micro_batch_size"}, "free zero_stage; and free micro_batch_size"),
        ({"zero_stage", "offload"}, "free zero_stage; and offload"),
        ({"zero_stage", "micro_batch_size", "offload"}, "free zero_stage; and free micro_batch_size; and offload"),
    ],
)
def test_changes_that_can_be_left_out_are(needed: set[str], message: str) -> None:
    request = question()
    (remedy,) = answers(trials_of(request), request, needed)
    assert (remedy.code, remedy.message, remedy.likely) == (TOGETHER, message, True)


def test_what_does_not_fit_with_all_of_them_is_no_remedy() -> None:
    request = question()
    assert answers(trials_of(request), request, {"nothing does"}) == []


def test_one_that_is_not_legal_with_the_others_is_left_out() -> None:
    request = question()
    (remedy,) = answers(trials_of(request), request, {"zero_stage", "micro_batch_size"}, illegal="offload")
    assert remedy.message == "free zero_stage; and free micro_batch_size"
    assert answers(trials_of(request)[1:], request, set(), illegal="offload") == []


def test_one_change_is_none_together() -> None:
    request = question()
    assert answers(trials_of(request)[:1], request, set()) == []


def test_changed_fields_of_the_job_come_together() -> None:
    request, seen = question(), []
    jobs = (replace(request.job, linear_cross_entropy=True), replace(request.job, state_dtype="int8"))

    def note(changed: Request, cluster: ClusterSpec) -> Priced:
        seen.append((changed.job.linear_cross_entropy, changed.job.state_dtype, changed.job.global_batch_size))
        return priced(changed, cluster, fits=False)

    joined([trial_of(request, str(place), "", job=job) for place, job in enumerate(jobs)], request, note)
    assert seen == [(True, "int8", 64)]


def test_adapters_are_of_a_model_in_4_bits_where_16_are_too_many() -> None:
    told = remedies("llama-3-8b", "1xRTX4090", {"task": "full"})["adapters"]
    assert told.message.endswith("(--task qlora)")
    again = api.plan("llama-3-8b", "1xRTX4090", {"task": "qlora", "global_batch_size": 128, "sequence_length": 4096})
    assert again.plans[0].step_time_s == pytest.approx(told.step_time_s)
    assert remedies("llama-3-8b", "1xA100-40GB", {"task": "full"})["adapters"].message.endswith("(--task lora)")


def test_more_devices_have_a_batch_that_they_share_where_none_was_asked_for() -> None:
    """The Trainer's replicas take a sequence each, and sum gradients beside their shards over several micro-batches."""
    few = remedies("llama-3-8b", "1xRTX4090", {"task": "full"})["more_devices"]
    assert few.message == "use 16 devices and a global batch of 16 sequences"
    many = remedies("llama-3-405b", "8xH100", {"task": "full"})["more_devices"]
    assert many.message == "use 320 devices and a global batch of 320 sequences"
    for remedy, model in ((few, "llama-3-8b"), (many, "llama-3-405b")):
        nodes = "16xRTX4090" if remedy is few else "40x8xH100"
        again = api.plan(model, nodes, {"task": "full", "global_batch_size": remedy.num_devices})
        assert again.plans[0].step_time_s == pytest.approx(remedy.step_time_s)
    kept = remedies("llama-3-8b", "1xRTX4090", {"task": "full", "global_batch_size": 128})["more_devices"]
    assert "global batch" not in kept.message or kept.num_devices > 128
