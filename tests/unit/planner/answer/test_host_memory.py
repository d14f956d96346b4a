"""What offloading asks of hosts: told where it is what is short, and how much would do."""

import io
from typing import Any

import pytest
from rich.console import Console

from planner import api
from planner.render.plans import render
from planner.results import PlanResult

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64, "task": "full"}
PLAN: dict[str, Any] = {
    "data_parallel": 8,
    "zero_stage": 3,
    "micro_batch_size": 4,
    "recompute": "full",
    "offload_optimizer": True,
    "offload_parameters": False,
}


def asked(host_memory_gb: float, framework: str = "deepspeed") -> PlanResult:
    cluster = {"device": "A100-40GB", "gpus_per_node": 8, "host_memory_gb": host_memory_gb}
    return api.estimate("llama-2-7b", cluster, JOB, plan=PLAN, framework=framework)


def shown(result: PlanResult) -> str:
    stream = io.StringIO()
    render(result, Console(file=stream, width=400), quiet=False)
    return stream.getvalue()


def test_where_hosts_are_short_the_verdict_says_so_and_not_that_devices_are() -> None:
    """Masters, moments and gradients in 32 bits and sums of these in 16 of 6.74B weights: 18 bytes of each, 113 GiB."""
    result = asked(64)
    best = result.best
    assert best is not None
    assert not best.fits
    assert best.headroom_bytes > 0
    assert best.host_memory_bytes == pytest.approx(18 * 6.738e9, rel=0.01)
    assert "does not fit: 113.0 GiB of host memory per node, which has 59.6 GiB; per GPU 13.5 GiB of" in shown(result)
    assert "might_fit" not in {note.code for note in result.warnings}
    assert "host memory per node, which has" not in shown(asked(256))


def test_hosts_that_hold_what_is_offloaded_are_a_remedy() -> None:
    infeasible = asked(64).infeasible
    assert infeasible is not None
    (remedy,) = (item for item in infeasible.remedies if item.code == "more_host_memory")
    assert remedy.fits
    assert remedy.message == "give every host 122 GB of memory (host_memory_gb)"
    assert asked(122).fits
    assert not asked(121).fits


def test_hosts_are_no_remedy_where_devices_are_what_is_short() -> None:
    job = JOB | {"sequence_length": 131072, "global_batch_size": 8}
    cluster = {"device": "T4", "gpus_per_node": 8, "host_memory_gb": 1e5}
    answer = api.plan("llama-2-7b", cluster, job, framework="deepspeed", offload=True, pins={"recompute": "none"})
    assert answer.infeasible is not None
    assert "more_host_memory" not in {remedy.code for remedy in answer.infeasible.remedies}
