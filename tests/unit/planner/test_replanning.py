"""``planner.replan`` and ``planner replan``: how a running job goes on on other devices."""

import io
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from rich.console import Console

import planner
from costmodels.workload import MAX_GLOBAL_BATCH
from planner.document_replan import replan_schema
from planner.phrases import percent
from planner.render.replan import render_replan
from planner.replanning import LAYOUT, LOADS, Continuation, ReplanResult
from planner.rules.base import FRAMEWORKS, NANOTRON
from profiles.errors import SpecError
from tests.command import Command

JOB = {"sequence_length": 4096, "global_batch_size": 512}
BASE = (
    "--model",
    "llama-3-70b",
    "--gpus",
    "8x8xH100",
    "--seq",
    "4096",
    "--global-batch",
    "512",
    "--tp",
    "4",
    "--pp",
    "4",
)


@pytest.fixture(scope="module")
def lost() -> ReplanResult:
    """One of eight machines has gone."""
    return planner.replan("llama-3-70b", "8x8xH100", "7x8xH100", JOB, plan={"tp": 4, "pp": 4})


def way(option: Continuation) -> tuple[bool, bool]:
    """Whether it keeps the layout, and whether it changes the batch."""
    return option.keeps_layout, option.request.job.global_batch_size != 512


def test_ways_are_told_apart_by_what_they_change(lost: ReplanResult) -> None:
    told = [way(option) for option in lost.options]
    assert len(set(told)) == len(told)
    assert {(False, False), (True, True), (True, False)} <= set(told)
    speeds = [option.estimate.tokens_per_s for option in lost.options]
    assert speeds == sorted(speeds, reverse=True)
    assert all(option.estimate.fits for option in lost.options)


def test_the_layout_of_the_checkpoint_is_kept(lost: ReplanResult) -> None:
    for option in lost.options:
        same = all(getattr(option.estimate.plan, name) == getattr(lost.running.plan, name) for name in LAYOUT)
        assert same == option.keeps_layout


def test_another_batch_is_close_and_shared_by_the_replicas(lost: ReplanResult) -> None:
    option = next(each for each in lost.options if way(each) == (True, True))
    plan, batch = option.estimate.plan, option.request.job.global_batch_size
    assert 0 < abs(batch - 512) <= 51
    assert batch == plan.data_parallel * plan.micro_batch_size * plan.num_microbatches
    assert plan.num_microbatches % plan.pipeline_parallel == 0  # as interleaved stages need
    assert option.estimate.num_devices == 48  # 3 replicas of 16


def test_prices_are_those_of_estimate(lost: ReplanResult) -> None:
    for option in lost.options:
        size = option.estimate.num_devices
        job = {"sequence_length": 4096, "global_batch_size": option.request.job.global_batch_size}
        priced = planner.estimate("llama-3-70b", f"{size // 8}x8xH100", job, plan=option.estimate.plan).best
        assert priced is not None
        assert priced.step_time_s == option.estimate.step_time_s
    best = planner.plan("llama-3-70b", "7x8xH100", JOB, top=1).best
    assert best is not None
    assert [each.estimate.plan for each in lost.options if way(each) == (False, False)] == [best.plan]


def test_the_same_devices_need_no_change() -> None:
    result = planner.replan("llama-3-70b", "8x8xH100", "8x8xH100", JOB)
    assert [option.keeps_layout for option in result.options] == [True]
    assert result.options[0].estimate.plan == result.running.plan


def test_more_devices_are_used() -> None:
    result = planner.replan("llama-2-7b", "8xA100-80GB", "2x8xA100-80GB", {"sequence_length": 2048})
    assert result.options[0].estimate.num_devices == 16
    assert 1.8 < result.options[0].estimate.tokens_per_s / result.running.tokens_per_s < 2.1


def test_no_other_batch_where_it_must_not_change() -> None:
    result = planner.replan("llama-3-70b", "8x8xH100", "7x8xH100", JOB, plan={"tp": 4, "pp": 4}, batch_change=0)
    assert {option.request.job.global_batch_size for option in result.options} == {512}
    assert [option.keeps_layout for option in result.options] == [False, True]
    assert result.options[1].estimate.num_devices == 32


def test_part_of_a_machine_may_be_left() -> None:
    plan = {"tp": 2, "pp": 2, "vpp": 5}
    result = planner.replan("llama-2-13b", "8xA100-80GB", "6xA100-80GB", plan=plan, batch_change=0)
    kept = [option for option in result.options if option.keeps_layout]
    assert all(option.estimate.num_devices == 4 for option in kept)


def test_another_kind_of_device() -> None:
    result = planner.replan("llama-2-7b", "8xA100-80GB", "8xH100", {"sequence_length": 2048})
    assert result.onto.device.name == "H100-SXM-80GB"
    assert result.options[0].estimate.tokens_per_s > 1.5 * result.running.tokens_per_s


def test_what_loads_in_another_layout_is_known_of_frameworks() -> None:
    assert set(LOADS) == set(FRAMEWORKS) - {NANOTRON}


def test_what_is_read_into_the_new_devices_is_assumed_too(command: Command) -> None:
    asked = ("replan", "--model", "llama-2-7b", "--gpus", "8xA100-SXM-80GB", "--onto", "8xA100")
    assert "continued on: device: 'A100' is taken as A100-SXM-80GB" in command(*asked)[1]
    fields = {note["field"] for note in json.loads(command(*asked, "--json")[1])["assumptions"]}
    assert "onto" in fields


@pytest.mark.parametrize(("stage", "words"), [(1, "torch_dist"), (2, "fsdp_dtensor"), (3, "fsdp_dtensor")])
def test_what_loads_a_checkpoint_follows_from_what_writes_it(stage: int, words: str) -> None:
    plan = {"tensor_parallel": 1, "pipeline_parallel": 1, "zero_stage": stage}
    result = planner.replan("llama-2-7b", "8xH100", "4xH100", {"sequence_length": 2048}, plan=plan)
    assert words in result.loads


@pytest.mark.parametrize(("stage", "loads"), [(1, {0, 1}), (2, {2, 3})])
def test_other_layouts_load_the_checkpoint(stage: int, loads: set[int]) -> None:
    """Megatron-FSDP's checkpoints load under it alone, and others not under it."""
    job = {"sequence_length": 4096, "global_batch_size": 64}
    result = planner.replan("llama-3.1-8b", "8xA100-80GB", "7xA100-80GB", job, plan={"zero": stage}, batch_change=0.2)
    stages = {each.keeps_layout: each.estimate.plan.zero_stage for each in result.options}
    assert stages[True] == stage
    assert stages[False] in loads
    assert {each.estimate.plan.zero_stage for each in result.options} <= loads


@pytest.mark.parametrize("task", ["lora", "qlora"])
def test_a_saved_answer_about_adapters_is_read_back(task: str) -> None:
    answer = planner.estimate("llama-3-8b", "4xA10G", {"task": task, "sequence_length": 2048})
    saved = planner.replan_saved(json.loads(json.dumps(planner.to_document(answer))), "2xA10G").request
    assert saved.job == answer.request.job


def test_another_objective_is_refused() -> None:
    with pytest.raises(SpecError) as caught:
        planner.replan("llama-2-7b", "8xA100-80GB", "4xA100-80GB", objective="cost")
    assert caught.value.field == "objective"


def test_a_saved_answer_brings_its_price_and_what_is_considered() -> None:
    asked = {"price_per_device_hour_usd": 2.5, "price_date": "2026-11", "offload": True, "memory_reserve_bytes": 1e9}
    result = planner.estimate("llama-2-7b", "8xA100-80GB", JOB, **asked)
    saved = planner.replan_saved(planner.to_document(result), "4xA100-80GB").request
    assert saved.price == result.request.price
    assert (saved.offload, saved.memory_reserve_bytes) == (True, 1e9)


def test_errors_about_a_saved_answer_name_what_was_given(command: Command, tmp_path: Path) -> None:
    document = planner.to_document(planner.estimate("llama-2-7b", "8xA100-80GB", JOB))
    for rank, field in ((2, "rank"), (0, "rank")):
        with pytest.raises(SpecError) as caught:
            planner.replan_saved(document, "4xA100-80GB", rank=rank)
        assert caught.value.field == field
    saved = tmp_path / "answer.json"
    saved.write_text("{}")
    code, _, err = command("replan", "--plan", str(saved), "--onto", "4xA100-80GB")
    assert code == 2
    assert err.startswith("error: --plan: is not an answer")
    document["request"]["cluster"]["fabric"] = "string"
    saved.write_text(json.dumps(document))
    code, _, err = command("replan", "--plan", str(saved), "--onto", "4xA100-80GB")
    assert code == 2
    assert err.startswith("error: --plan, request.cluster.fabric: unknown link 'string'")


def test_a_saved_answer_goes_on_alike(command: Command, tmp_path: Path, lost: ReplanResult) -> None:
    saved = tmp_path / "answer.json"
    command("estimate", *BASE, "--output", str(saved))
    code, out, err = command("replan", "--plan", str(saved), "--onto", "7x8xH100", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    jsonschema_rs.validate(replan_schema(), document)
    asked = json.loads(json.dumps(planner.to_document(lost)))
    assert [option["estimate"] for option in document["options"]] == [item["estimate"] for item in asked["options"]]
    assert document["running"] == asked["running"]


def test_the_table(command: Command) -> None:
    code, out, err = command("replan", *BASE, "--onto", "7x8xH100")
    assert (code, err) == (0, "")
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert {"runs", "another layout", "same layout, another batch", "same layout"} <= set(rows)
    assert "another layout: distributed checkpoints (--ckpt-format torch_dist)" in out
    quiet = command("replan", *BASE, "--onto", "8x8xH100", "--quiet")[1]
    assert "batch" not in quiet.splitlines()[3]
    assert "Assumed" not in quiet


def test_a_narrow_table_keeps_room_for_plans(lost: ReplanResult) -> None:
    """At 80 columns a plan took a line for each of its degrees, beside a first column that did not wrap."""
    console = Console(file=io.StringIO(), width=80)
    render_replan(lost, console, quiet=True)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    runs = next(line for line in lines if line.startswith("runs"))
    assert len(runs.split("tp4", 1)[1].split()) >= 2


def test_nothing_fits_is_an_answer(command: Command) -> None:
    code, out, _ = command(
        "replan", "--model", "llama-2-13b", "--gpus", "8xA100-80GB", "--onto", "1xA100-80GB", "--json"
    )
    document = json.loads(out)
    assert (code, document["fits"], document["options"]) == (3, False, [])
    assert document["infeasible"]["remedies"]
    jsonschema_rs.validate(replan_schema(), document)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"onto": "8xH10O"}, "onto.device"),
        ({"onto": 8}, "onto"),
        ({"cluster": "8xB200", "onto": "8xH200", "job": {"precision": "mxfp8"}}, "job.precision"),
        ({"model": "glm-5", "cluster": "16x8xB200", "onto": "16x8xMI355X"}, "model.indexer"),
        ({"batch_change": 2}, "batch_change"),
        ({"batch_change": "none"}, "batch_change"),
        ({"plan": {"tp": 7}}, "plan.tensor_parallel"),
        ({"model": "lama"}, "model"),
        ({"job": {"sequence_length": 2048, "global_batch_size": 12}, "framework": "huggingface"}, "plan"),
    ],
)
def test_what_is_wrong_is_named(changed: dict[str, Any], field: str) -> None:
    asked: dict[str, Any] = {"model": "llama-2-7b", "cluster": "8xH100", "onto": "4xH100"} | changed
    with pytest.raises(SpecError) as wrong:
        planner.replan(**asked)
    assert wrong.value.field == field


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("--gpus", "8xH100", "--onto", "4xH100"), "--model"),
        (("--model", "7b", "--onto", "4xH100"), "--gpus"),
        (("--model", "7b", "--gpus", "8xH100", "--onto", "4xH100", "--rank", "2"), "--rank"),
        (("--plan", "answer.json", "--seq", "2048", "--onto", "4xH100"), "--seq"),
        (("--plan", "missing.json", "--onto", "4xH100"), "--plan"),
    ],
)
def test_options_that_do_not_go_together(command: Command, words: tuple[str, ...], flag: str) -> None:
    code, _, err = command("replan", *words)
    assert code == 2
    assert err.startswith(f"error: {flag}")


def test_replicas_of_many_machines_are_taken_whole() -> None:
    """A replica of 16 machines: seven of eight go on when one machine of 128 has gone."""
    asked = {"tp": 8, "pp": 16, "first_stage_layers": 7, "last_stage_layers": 7}
    job = {"sequence_length": 4096, "global_batch_size": 1024}
    result = planner.replan("llama-3-405b", "128x8xH100", "127x8xH100", job, plan=asked)
    kept = [option.estimate for option in result.options if option.keeps_layout]
    assert [each.num_devices for each in kept] == [896, 512]
    assert [each.plan.data_parallel for each in kept] == [7, 4]


def test_a_saved_answer_keeps_its_reserve() -> None:
    job, reserve = {"sequence_length": 4096, "global_batch_size": 512}, 12 * 2.0**30
    saved = planner.to_document(planner.plan("llama-3-70b", "8x8xH100", job, top=1, memory_reserve_bytes=reserve))
    result = planner.replan_saved(saved, "7x8xH100")
    usable = planner.plan("llama-3-70b", "7x8xH100", job, top=1).request.cluster.device.usable_memory_bytes
    assert result.onto.device.usable_memory_bytes == usable - reserve
    assert all(option.estimate.peak_memory_bytes <= usable - reserve for option in result.options)


def test_a_saved_plan_may_use_fewer_devices_than_there_were() -> None:
    job = {"sequence_length": 2048, "global_batch_size": 64}
    answer = planner.plan("llama-2-7b", "2x8xA100-80GB", job, top=1, objective="fewest_gpus")
    assert answer.best is not None
    assert answer.best.num_devices < 16
    result = planner.replan_saved(planner.to_document(answer), "8xA100-80GB")
    assert result.running.plan == answer.best.plan
    assert result.running.step_time_s == pytest.approx(answer.best.step_time_s)


def test_new_devices_that_cannot_be_are_named_as_such() -> None:
    with pytest.raises(SpecError) as told:
        planner.replan("llama-2-7b", "8xA100-80GB", "31xH100", JOB)
    assert told.value.field == "onto.num_devices"


def test_there_is_no_plan_of_rank_0(command: Command, tmp_path: Path) -> None:
    saved = tmp_path / "plan.json"
    job = {"sequence_length": 2048, "global_batch_size": 64}
    saved.write_text(json.dumps(planner.to_document(planner.plan("llama-2-7b", "8xA100-80GB", job, top=1))))
    for asked in (("replan", "--onto", "4xA100-80GB"), ("export", "--format", "megatron-lm")):
        code, _, err = command(*asked, "--plan", str(saved), "--rank", "0")
        assert code == 2
        assert "there is no plan 0" in err


def test_a_layout_that_cannot_go_on_is_told(command: Command) -> None:
    asked = ("--model", "llama-3-8b", "--gpus", "2x8xH100", "--seq", "4096", "--global-batch", "64")
    _, out, _ = command("replan", *asked, "--tp", "2", "--pp", "8", "--onto", "8xH100")
    assert "same layout: fits on no number of whole replicas" in " ".join(out.split())


def test_another_layout_may_have_a_batch_that_its_own_replicas_share() -> None:
    """504 sequences on 126 machines, 1.6 % from 512; the layout of the checkpoint could share 560."""
    job = {"sequence_length": 8192, "global_batch_size": 512}
    pins = {"tp": 8, "pp": 16, "cp": 2, "vpp": 4, "zero": 1, "micro_batch_size": 1}
    result = planner.replan("llama-3-405b", "128x8xH100", "127x8xH100", job, plan=pins, batch_change=0.02)
    first = result.options[0]
    assert (first.request.job.global_batch_size, first.estimate.num_devices) == (504, 1008)
    assert not first.keeps_layout


def test_no_batch_larger_than_the_largest_is_tried() -> None:
    """Seven GPUs would share 4,194,305 sequences, one more than any job may have."""
    job = {"sequence_length": 128, "global_batch_size": 4_194_303}
    options = planner.replan("llama-3.2-1b", "2x8xH100", "7xH100", job).options
    batches = {option.request.job.global_batch_size for option in options}
    assert max(batches) <= MAX_GLOBAL_BATCH


def test_the_risk_of_running_out_of_memory_is_told_of_every_way(command: Command) -> None:
    asked = ("replan", "--model", "llama-2-7b", "--gpus", "8xA100-SXM-80GB", "--onto", "6xA100-SXM-80GB")
    out = command(*asked)[1]
    result = planner.replan("llama-2-7b", "8xA100-SXM-80GB", "6xA100-SXM-80GB")
    assert "risk" in out
    for option in result.options:
        assert f" {percent(option.estimate.oom_probability)} " in out
    assert "continued on 6 x A100-SXM-80GB" in out
