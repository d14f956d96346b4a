"""``planner search`` and ``POST /search``: one document, exit codes, errors by field."""

import json
import re
from typing import Any
from unittest import mock

import pytest
from fastapi.testclient import TestClient

import planner
from planner.document_plan import infeasible_document
from planner.document_search import search_schema
from planner.question import request as request_module
from planner.space.enumeration import plan_space
from profiles.errors import SpecError
from service.app import create_app
from service.settings import ServiceSettings
from tests.command import command_line, instead
from tests.search.small import INSTANCES

MIXED = next(instance for instance in INSTANCES if instance.name == "two types, loose")
BODY: dict[str, Any] = {
    "model": MIXED.model, "cluster": MIXED.cluster, "job": MIXED.job, "plan": {"micro_batch_size": 1}, "seconds": 20.0,
}  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return command_line(capsys, monkeypatch, columns=110)


def test_uniform_plans_are_laid_out_once() -> None:
    sizes: list[int] = []

    def counted(setting: Any, **given: Any) -> Any:
        sizes.append(setting.num_devices)
        return plan_space(setting, **given)

    with mock.patch.object(request_module, "plan_space", counted):
        found = MIXED.found()
    assert found.best is not None
    assert sizes == [request.cluster.num_devices for request in MIXED.question().requests]


SMALL = ("search", "--model", "llama-2-7b", "--gpus", "4xA100-80GB", "--seq", "2048", "--global-batch", "64")


def test_tables_say_what_is_proved(run: Any) -> None:
    code, out, err = run(*SMALL)
    assert code == 0
    assert err == ""
    assert "proved: no plan of the spaces searched is faster" in out
    assert "recomputed" in out
    assert "enumerate: plans that treat every stage alike; optimal after" in out
    assert "; none is faster than " in out
    assert "Nothing is proved about\n  " in out
    assert "interleaved and zero-bubble schedules of stages with degrees of their own" in out
    assert "differ between stages" not in out
    assert "(--offload)" in out
    assert "Runs on Megatron-LM" in out


def test_json_is_the_document_of_the_schema(run: Any) -> None:
    code, out, _ = run(*SMALL, "--json", "--strategy", "enumerate", "--seed", "7")
    document = json.loads(out)
    schema = search_schema()
    assert code == 0
    assert set(document) == set(schema["properties"]) == set(schema["required"])
    plan = schema["properties"]["best"]["anyOf"][0]
    assert set(document["best"]) == set(plan["properties"])
    assert set(document["best"]["stages"][0]) == set(plan["properties"]["stages"]["items"]["properties"])
    assert document["seed"] == 7
    assert document["optimal"] is True
    engine = schema["properties"]["engines"]["items"]
    assert set(document["engines"][0]) == set(engine["properties"]) == set(engine["required"])
    assert document["left_out"] == document["engines"][0]["left_out"]
    assert document["left_out"] == ["stages that differ", "stages alike on half of the GPUs or fewer"]


def test_only_what_the_framework_can_run_is_searched_if_asked(run: Any) -> None:
    code, out, _ = run(*SMALL, "--json", "--runnable", "--framework", "nanotron")
    document = json.loads(out)
    assert code == 0
    assert document["runnable"] is True
    assert [entry["runs"] for entry in document["best"]["frameworks"] if entry["framework"] == "nanotron"] == [True]
    assert document["engines"][-1]["status"] == "not run"


@pytest.mark.long
def test_what_a_bound_is_not_about_depends_on_what_was_asked_for(run: Any) -> None:
    _, out, _ = run(*SMALL, "--json", "--named-modules", "--offload", "--strategy", "all", "--seconds", "5")
    document = json.loads(out)
    assert not [words for words in document["left_out"] if "--" in words]
    assert [run["left_out"] for run in document["engines"] if run["engine"] == "mcmc"] == [[]]
    _, quiet, _ = run(*SMALL, "--quiet")
    assert "Nothing is proved about" not in quiet


def test_nothing_fits_is_exit_code_three(run: Any) -> None:
    code, out, err = run("search", "--model", "llama-3-70b", "--gpus", "1xA10G")
    assert code == 3
    assert "Nothing fits." in out
    assert "Nearest: tp1 pp1 dp1" in out
    assert err == ""


@pytest.mark.long
def test_what_would_fit_is_told_of_every_group(run: Any) -> None:
    code, out, _ = run("search", "--model", "llama-2-7b", "--gpus", "1xA100-40GB+1xH100", "--json")
    document = json.loads(out)
    assert code == 3
    small, large = document["infeasible"]
    alone = planner.plan("llama-2-7b", "1xA100-40GB").infeasible
    assert alone is not None
    assert small == infeasible_document(alone)
    assert "more_memory" in {remedy["code"] for remedy in large["remedies"]}
    _, table, _ = run("search", "--model", "llama-2-7b", "--gpus", "1xA100-40GB+1xH100")
    assert table.index("On 1xA100-40GB alone") < table.index("On 1xH100 alone")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--strategy", "luck"), "strategy: unknown value 'luck'"),
        (("--seconds", "-1"), "seconds: must be above 0"),
        (("--gpus", "8xA100+8xB1O0"), "unknown name 'B1O0'"),
        (("--objective", "cost"), "objective: a search minimises step_time"),
    ],
)
def test_bad_input_is_exit_code_two(run: Any, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = run(SMALL[0], *instead(SMALL[1:], arguments))
    assert code == 2
    assert words in err


def test_a_cluster_of_two_types_is_searched_over_rest() -> None:
    with TestClient(create_app(ServiceSettings())) as client:
        answer = client.post("/search", json=BODY)
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert document["kind"] == "search"
        assert {stage["device"] for stage in document["best"]["stages"]} == {"A100-SXM-80GB", "H100-SXM-80GB"}
        assert len(document["requests"]) == 2
        alone, across, varied = document["engines"][-3:]
        assert "on 1x2xH100 alone" in alone["space"]
        assert across["space"].startswith("pipelines across groups")
        assert "stages that span groups" in across["left_out"]
        assert "stages that span groups" not in alone["left_out"]
        left_out = {item for run in (alone, across, varied) for item in run["left_out"]}
        made_up = {item for item in left_out if "differ between stages" in item or "different configurations" in item}
        assert len(made_up) == 2
        assert left_out - made_up == set(document["left_out"])
        assert not document["runnable"]
        told = client.post("/search", json=BODY | {"runnable": True}).json()
        assert told["runnable"]
        assert told["best"]["frameworks"][0] == {"framework": "megatron", "runs": True, "broken": []}
        for change, field in (({"strategy": "luck"}, "strategy"), ({"seconds": 0}, "seconds"), ({"top": 3}, "top")):
            wrong = client.post("/search", json=BODY | change)
            assert wrong.status_code == 422
            assert [entry["field"] for entry in wrong.json()["errors"]] == [field]


def test_groups_that_are_alike_are_one_cluster() -> None:
    """Its plans treat all devices alike, which those over several groups do not."""
    asked: dict[str, Any] = {"model": "llama-3.2-1b", "job": {"global_batch_size": 64}, "seconds": 2.0, "seed": 1}
    whole, halves = (planner.search(cluster=name, **asked) for name in ("2x8xH100", "8xH100+8xH100"))
    assert whole.best is not None
    assert halves.best is not None
    assert halves.best.step_time_s == pytest.approx(whole.best.step_time_s, rel=0.02)
    assert [run.space for run in halves.engines][:1] == [run.space for run in whole.engines][:1]


def test_gpus_of_two_vendors_train_nothing_together() -> None:
    with pytest.raises(SpecError, match="GPUs of amd and nvidia"):
        planner.search("llama-3-8b", "8xH100+8xMI300X", {"global_batch_size": 128})


def test_a_plan_that_may_run_out_of_memory_is_told_with_what_to_leave_free() -> None:
    """With that much left free another is found, of which it is not told."""
    asked: dict[str, Any] = {"model": "llama-2-7b", "cluster": "8xH100", "framework": "hf-trainer"}
    brim = planner.search(**asked)
    (note,) = [note for note in brim.warnings if note.code == "at_risk"]
    spare = re.search(r"--reserve-gib (\d+)", note.message)
    assert spare is not None
    safer = planner.search(**asked, memory_reserve_bytes=float(spare[1]) * 2**30)
    assert not [note for note in safer.warnings if note.code == "at_risk"]
    little = planner.search(**asked, memory_reserve_bytes=2.0**30)  # as much is to be left free in all as before
    (again,) = [note for note in little.warnings if note.code == "at_risk"]
    assert f"--reserve-gib {spare[1]})" in again.message
    assert brim.best is not None
    assert safer.best is not None
    assert brim.best.step_time_s < safer.best.step_time_s < 1.2 * brim.best.step_time_s
