"""Which results say that their prices are those of hosts that are set up well."""

import pytest

import planner
from planner.host_notes import host_notes
from planner.question.machines import resolve_cluster
from profiles.stacks import find_stack

JOB = {"global_batch_size": 8, "sequence_length": 256}


@pytest.mark.parametrize(("cluster", "told"), [("2x4090", True), ("1x4090", False), ("2xA100", False)])
def test_every_kind_of_result_warns_of_hosts_without_peer_access(cluster: str, told: bool) -> None:
    model = "gpt2"
    flow = {"batch": 8, "prompt": 64, "generate": 64, "iterations": 1}
    for result in (
        planner.plan(model, cluster, JOB),
        planner.estimate(model, cluster, JOB),
        planner.search(model, cluster, JOB, seconds=20),
        planner.plan_dataflow("grpo", model, cluster, **flow),
    ):
        assert ("depends_on_host" in {note.code for note in result.warnings}) is told


def test_one_group_without_peer_access_is_enough() -> None:
    found = planner.search("gpt2", "1x2xA100+1x2x4090", JOB, seconds=20)
    assert [note.code for note in found.warnings].count("depends_on_host") == 1


def test_a_framework_s_own_limit_between_nodes_is_told_where_the_network_is_faster() -> None:
    def said(cluster: str, stack: str) -> list[str]:
        return [note.message for note in host_notes([(resolve_cluster(cluster, None), find_stack(stack))])]

    (message,) = said("4x8xH100", "deepspeed")
    assert message.startswith("groups across nodes run at 23 GB/s at most")
    assert said("8xH100", "deepspeed") == said("4x8xH100", "fsdp") == []
    assert said("4x8xA10G", "deepspeed") == []  # a slower network
    (message,) = said("4x8xV100", "deepspeed")  # four adapters of 12.5 GB/s
    assert "23 GB/s" in message


def test_a_plan_within_one_node_has_no_limit_between_nodes() -> None:
    asked = {"model": "llama-2-7b", "cluster": "2x8xH100", "job": JOB, "framework": "deepspeed"}
    for objective, told in (("step_time", True), ("fewest_gpus", False)):
        result = planner.plan(**asked, objective=objective)
        assert ("framework_limit" in {note.code for note in result.warnings}) is told


@pytest.mark.parametrize(("tokens", "met"), [("15T", True), ("10B", False)])
def test_a_run_that_is_long_enough_to_be_interrupted_says_how_often(tokens: str, met: bool) -> None:
    """16,384 H100s for 54 days met 419 interruptions (arXiv:2407.21783): one in 50,700 GPU-hours."""
    job = {"sequence_length": 8192, "global_batch_size": 2048, "train_tokens": {"15T": 15e12, "10B": 10e9}[tokens]}
    answer = planner.estimate("llama-3-70b", "128x8xH100", job)
    assert answer.best is not None
    assert answer.best.run is not None
    told = [note.message for note in answer.warnings if note.code == "interruptions"]
    assert bool(told) == met
    if met:
        assert told[0].endswith(f" {answer.best.run.device_hours * 419 / (54 * 24 * 16384):,.0f}")
        assert "50,677" in told[0]


@pytest.mark.parametrize(("offloaded", "told"), [(True, True), (False, False)])
def test_who_updates_weights_on_the_host_is_told_of_threads(offloaded: bool, told: bool) -> None:
    asked = {"model": "llama-3-8b", "cluster": "8xA100-80GB", "job": JOB | {"task": "full"}, "framework": "deepspeed"}
    found = planner.estimate(**asked, plan={"zero_stage": 2, "offload_optimizer": offloaded})
    messages = [note.message for note in found.warnings if note.code == "host_threads"]
    assert len(messages) == told
    assert all("OMP_NUM_THREADS" in message for message in messages)
