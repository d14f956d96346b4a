"""Plans that leave devices idle for the sake of the step: when they are looked at, and what is told of them."""

import json
from typing import Any

import pytest

import planner
from planner.answer import parts
from planner.answer.parts import sizes_to_try, smaller_sizes
from planner.question.request import Options, resolve_request
from planner.results import PlanResult, Request
from profiles.cluster_string import parse_cluster
from profiles.errors import SpecError
from tests.command import Command, command_line

MODEL = "llama-2-7b"
JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 48}
SHARED = {"tp": 1, "pp": 2, "dp": 3}  # of six devices

run = command_line


def asked(cluster: str, batch: int = 48, **pins: int) -> Request:
    return resolve_request(MODEL, cluster, JOB | {"global_batch_size": batch}, pins, Options())


@pytest.fixture(scope="module")
def seven() -> PlanResult:
    return planner.plan(MODEL, "7xH100", JOB, top=100, price_per_device_hour_usd=2.0)


def test_six_devices_share_what_seven_cannot(seven: PlanResult) -> None:
    best, six = seven.best, planner.plan(MODEL, "6xH100", JOB).best
    assert best is not None
    assert six is not None
    assert (best.num_devices, best.plan, best.step_time_s) == (6, six.plan, six.step_time_s)
    on_all = min(each.step_time_s for each in seven.plans if each.num_devices == 7)
    assert best.step_time_s < 0.97 * on_all


def test_the_answer_says_how_many_are_idle_and_what_all_of_them_take(seven: PlanResult) -> None:
    (note,) = (note for note in seven.warnings if note.code == "idle_devices")
    assert note.message.startswith("leaves 1 of the 7 GPUs idle; figures per GPU and costs are of the 6 in use;")
    assert "on all of them a step takes 1.4 s" in note.message
    assert {point.num_devices for point in seven.pareto} >= {6, 7}
    assert seven.explanation is not None
    assert any(rival.changes.get("num_devices") == (6, 7) for rival in seven.explanation.rivals)


def test_figures_per_device_and_costs_are_of_those_in_use(seven: PlanResult) -> None:
    best = seven.best
    assert best is not None
    assert best.device_seconds_per_step == pytest.approx(6 * best.step_time_s)
    assert best.tokens_per_s_per_device == pytest.approx(best.tokens_per_s / 6)
    costs = planner.plan(MODEL, "6xH100", JOB, price_per_device_hour_usd=2.0).best
    assert costs is not None
    assert best.mfu == costs.mfu
    assert best.device_seconds_per_token == costs.device_seconds_per_token


def test_where_all_devices_are_busy_no_others_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out: list[int] = []
    space_of = parts.space_of

    def noted(request: Request, cluster: Any = None) -> Any:
        laid_out.append((cluster or request.cluster).num_devices)
        return space_of(request, cluster)

    monkeypatch.setattr(parts, "space_of", noted)
    answer = planner.plan(MODEL, "8xH100", JOB | {"global_batch_size": 512})
    assert laid_out == [8]
    assert not any(note.code == "idle_devices" for note in answer.warnings)
    planner.plan(MODEL, "7xH100", JOB, objective="memory_headroom")
    assert laid_out == [8, 7]
    planner.plan(MODEL, "7xH100", JOB)
    assert laid_out[2:] == [7, 6]  # on five, and four, their work alone takes longer


def test_whole_machines_may_be_idle() -> None:
    answer = planner.plan("llama-2-13b", "13x8xH100", {"sequence_length": 2048, "global_batch_size": 512}, top=1)
    assert answer.best is not None
    assert answer.best.num_devices == 96
    alone = planner.plan("llama-2-13b", "12x8xH100", {"sequence_length": 2048, "global_batch_size": 512}, top=1)
    assert alone.best is not None
    assert answer.best.step_time_s == alone.best.step_time_s


def test_sizes_are_whole_machines_down_to_more_than_half() -> None:
    assert smaller_sizes(parse_cluster("7xH100")) == [6, 5, 4]
    assert smaller_sizes(parse_cluster("8xH100")) == [7, 6, 5]
    assert smaller_sizes(parse_cluster("5x8xH100")) == [32, 24]
    assert smaller_sizes(parse_cluster("2x8xH100")) == smaller_sizes(parse_cluster("1xH100")) == []


def test_sizes_that_share_batch_heads_and_layers_come_first() -> None:
    assert sizes_to_try(asked("1x13xH100")) == [12, 8, 11, 10, 9, 7]
    many = sizes_to_try(asked("64x8xH100", batch=4096))
    assert len(many) == parts.MOST_PARTS
    assert sizes_to_try(asked("7xH100"), above=5.0) == [6]


def test_fixed_degrees_are_those_of_every_size() -> None:
    assert sizes_to_try(asked("1x13xH100", dp=3)) == [12, 9]
    assert sizes_to_try(asked("7xH100", tp=1, pp=7)) == []
    assert planner.plan(MODEL, "7xH100", JOB, pins={"pp": 7}).plans[0].num_devices == 7
    with pytest.raises(SpecError, match=r"tensor_parallel 4 must divide the 7 devices"):
        planner.plan(MODEL, "7xH100", JOB, pins={"tp": 4})
    with pytest.raises(SpecError, match=r"must divide the 7 devices"):
        planner.estimate(MODEL, "7xH100", JOB, plan={"tp": 2, "pp": 1, "dp": 1})  # not even half of them
    with pytest.raises(SpecError, match=r"must equal the 7 devices"):
        planner.estimate(MODEL, "7xH100", JOB, plan=planner.plan(MODEL, "3xH100", JOB).plans[0].plan)


def test_the_plan_is_priced_again_on_the_same_cluster(seven: PlanResult) -> None:
    best = seven.best
    assert best is not None
    (again,) = planner.estimate(MODEL, "7xH100", JOB, plan=best.plan).plans
    assert (again.num_devices, again.step_time_s, again.mfu) == (6, best.step_time_s, best.mfu)
    document = json.loads(json.dumps(planner.to_document(seven)))
    told = planner.estimate(MODEL, "7xH100", JOB, plan=document["plans"][0]["plan"])
    assert [note.code for note in told.warnings if note.code == "idle_devices"] == ["idle_devices"]
    assert told.plans[0].step_time_s == best.step_time_s
    degrees = planner.estimate(MODEL, "7xH100", JOB, plan=SHARED)
    assert degrees.plans[0].step_time_s == best.step_time_s


def test_exports_launch_on_the_devices_in_use(seven: PlanResult) -> None:
    made = planner.export(MODEL, "7xH100", JOB, format="megatron-lm")
    saved = planner.export_saved(planner.to_document(seven), format="megatron-lm")
    for result in (made, saved):
        assert result.exported is not None
        assert "--nproc-per-node 6 " in result.exported.launch


def test_the_command_line_says_so(run: Command) -> None:
    words = ("--model", MODEL, "--gpus", "7xH100", "--seq", "2048", "--global-batch", "48")
    code, out, _ = run("estimate", *words)
    assert code == 0
    assert "4 micro-batches, 6 of 7 GPUs" in out
    assert "leaves 1 of the 7 GPUs idle" in out


def test_a_search_proves_it_of_fewer_devices_too() -> None:
    result = planner.search(MODEL, "7xH100", JOB)
    assert result.best is not None
    assert (result.best.num_devices, result.best.idle_devices, result.optimal) == (6, 1, True)
    best = planner.plan(MODEL, "7xH100", JOB).best
    assert best is not None
    assert result.best.step_time_s == result.uniform_step_time_s == pytest.approx(best.step_time_s, rel=1e-9)
    assert "stages alike on half of the GPUs or fewer" in result.left_out


def test_a_search_says_which_numbers_of_devices_it_leaves_out() -> None:
    result = planner.search(MODEL, "64x8xH100", JOB | {"global_batch_size": 512}, strategy="enumerate")
    (told,) = (item for item in result.left_out if "other numbers" in item)
    tried = [*sizes_to_try(asked("64x8xH100", batch=512)), 512]
    assert told.endswith(f"than {', '.join(map(str, sorted(tried)))}")
    fixed = planner.search(MODEL, "8xH100", JOB, pins={"tp": 8}, strategy="enumerate")
    assert not any("stages alike on" in item for item in fixed.left_out)


def test_a_plan_on_the_fewest_devices_is_priced_under_that_objective_alone() -> None:
    fewest: dict[str, Any] = {"framework": "megatron", "objective": "fewest_gpus"}
    best = planner.plan("llama-3.2-1b", "16xA100-80GB", JOB, **fewest).best
    assert best is not None
    assert best.num_devices == 1
    again = planner.estimate("llama-3.2-1b", "16xA100-80GB", JOB, plan=best.plan, **fewest).best
    assert again is not None
    assert (again.num_devices, again.step_time_s) == (1, best.step_time_s)
    with pytest.raises(SpecError, match="must equal the 16 devices"):
        planner.estimate("llama-3.2-1b", "16xA100-80GB", JOB, plan=best.plan, framework="megatron")
