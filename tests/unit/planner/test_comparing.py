"""Plans of several answers beside each other: what differs, what it adds up to, and what is refused."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

import planner
from planner.comparing import Change
from planner.document_compare import compare_schema
from planner.render.compare import change_in_words
from planner.results import PlanResult
from profiles.errors import SpecError
from profiles.units import GIB
from tests.command import Command, command_line

QUESTION = ("llama-2-7b", "8xA100-80GB", {"sequence_length": 2048, "global_batch_size": 64})


@pytest.fixture(scope="module")
def wide() -> PlanResult:
    return planner.estimate(*QUESTION, plan={"tp": 8, "micro_batch_size": 8})


@pytest.fixture(scope="module")
def ranked() -> PlanResult:
    return planner.plan(*QUESTION, top=7)


def document(result: PlanResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(planner.to_document(result)))
    return found


def test_parts_add_up_to_the_whole_difference(wide: PlanResult, ranked: PlanResult) -> None:
    (change,) = planner.compare(wide, ranked).changes
    first, best = wide.best, ranked.best
    assert first is not None
    assert best is not None
    assert change.tokens_per_s_ratio == pytest.approx(best.tokens_per_s / first.tokens_per_s)
    assert change.tokens_per_s_ratio == pytest.approx(first.step_time_s / best.step_time_s)
    assert sum(change.time_per_token.values()) == pytest.approx(1 / change.tokens_per_s_ratio - 1)
    parts = first.time_parts_s, best.time_parts_s
    lost = (parts[1]["tensor_parallel"] - parts[0]["tensor_parallel"]) / first.step_time_s
    assert change.time_per_token["tensor_parallel"] == pytest.approx(lost)
    assert change.time_per_token["tensor_parallel"] < -0.05
    assert sum(change.memory_bytes.values()) == pytest.approx(change.peak_memory_difference_bytes)
    assert change.peak_memory_difference_bytes == best.peak_memory_bytes - first.peak_memory_bytes
    assert change.intervals_overlap


def test_steps_of_other_batches_are_held_against_each_other_by_the_token() -> None:
    model, cluster, job = QUESTION
    pins = {"tp": 1, "pp": 1, "zero": 1, "micro_batch_size": 1, "recompute": "full"}
    small, large = (
        planner.estimate(model, cluster, {**job, "global_batch_size": batch}, plan=pins) for batch in (64, 128)
    )
    (change,) = planner.compare(small, large).changes
    assert change.time_per_token["forward"] == pytest.approx(0.0, abs=1e-9)
    assert change.time_per_token["optimizer"] < 0  # one for twice as many tokens
    assert sum(change.time_per_token.values()) == pytest.approx(1 / change.tokens_per_s_ratio - 1)


def test_fewer_devices_cost_less_for_each_token() -> None:
    model, _, job = QUESTION
    pins = {"tp": 1, "pp": 1, "micro_batch_size": 1}
    all_of_them, half = (planner.estimate(model, f"{count}xA100-80GB", job, plan=pins) for count in (8, 4))
    result = planner.compare(all_of_them, half)
    (change,) = result.changes
    assert change.tokens_per_s_ratio < 1
    assert change.device_seconds_per_token_ratio == pytest.approx(0.5 / change.tokens_per_s_ratio)
    assert result.question["cluster.num_devices"] == (8, 4)
    assert result.plan["data_parallel"] == (8, 4)
    assert not any(field.startswith(("model.", "job.", "pins")) for field in result.question)


def test_a_saved_answer_is_the_answer(wide: PlanResult, ranked: PlanResult) -> None:
    live = planner.compare(wide, ranked, ranks=[1, 3])
    saved = planner.compare(document(wide), document(ranked), ranks=[1, 3])
    assert saved.changes == live.changes
    assert [item.estimate for item in saved.compared] == [item.estimate for item in live.compared]
    assert [item.saved_step_time_s for item in saved.compared] == [None, None]
    assert live.compared[1].estimate == ranked.plans[2]


def test_a_single_ranking_shows_its_first_plans(ranked: PlanResult) -> None:
    result = planner.compare(ranked)
    assert [item.name for item in result.compared] == ["#1", "#2", "#3", "#4", "#5"]
    assert [item.estimate for item in result.compared] == list(ranked.plans[:5])
    assert not result.question
    chosen = planner.compare(document(ranked), ranks=[2, 7])
    assert [item.name for item in chosen.compared] == ["#2", "#7"]
    assert chosen.compared[1].estimate == ranked.plans[6]


@pytest.mark.parametrize(
    ("part", "name", "told"),
    [("time", "step_time_s", "saved_step_time_s"), ("memory", "peak_memory_bytes", "saved_peak_memory_bytes")],
)
def test_figures_of_other_prices_are_told(
    wide: PlanResult, ranked: PlanResult, part: str, name: str, told: str
) -> None:
    changed = document(wide)
    changed["plans"][0][part][name] *= 1.5
    first = planner.compare(changed, ranked).compared[0]
    assert first.estimate == wide.best
    assert getattr(first, told) == changed["plans"][0][part][name]
    assert [first.saved_step_time_s, first.saved_peak_memory_bytes].count(None) == 1


@pytest.mark.parametrize("name", ["time.step_time_s", "memory.peak_memory_bytes"])
@pytest.mark.parametrize("told", [True, -3.0, "fast", float("inf"), pytest.param(10**400, id="huge")])
def test_a_saved_figure_that_is_none_is_refused(wide: PlanResult, name: str, told: object) -> None:
    changed = document(wide)
    part, figure = name.split(".")
    changed["plans"][0][part][figure] = told
    with pytest.raises(SpecError, match=f"a plan whose {name} is"):
        planner.compare(changed, wide)


@pytest.fixture
def fit(tmp_path: Path) -> str:
    """Steps that take a fifth longer than the package's."""
    path = tmp_path / "fit.json"
    cards = {"megatron-core": {"values": {"step_time_scale": 1.2}, "rows": 4, "sources": ["runs.csv"]}}
    path.write_text(json.dumps({"stacks": cards}))
    return str(path)


def test_answers_of_a_fit_of_ones_own_runs_are_priced_by_it(fit: str, wide: PlanResult) -> None:
    model, cluster, job = QUESTION
    own = planner.estimate(model, cluster, job, plan={"tp": 8, "micro_batch_size": 8}, stack_fit=fit)
    live = planner.compare(wide, own)
    assert live.changes[0].tokens_per_s_ratio == pytest.approx(1 / 1.2)
    assert live.question == {"stack_fitted": (False, True)}
    saved = planner.compare(document(wide), document(own), stack_fit=fit)
    assert saved.changes == live.changes
    assert [item.saved_step_time_s for item in saved.compared] == [None, None]
    with pytest.raises(SpecError, match="rests on a fit") as caught:
        planner.compare(wide, document(own))
    assert caught.value.field == "answers[1].stack_fit"
    with pytest.raises(SpecError, match="rests on no fit"):
        planner.compare(document(wide), wide, stack_fit=fit)
    assert planner.replan_saved(document(own), "4xA100-80GB", stack_fit=fit).running == own.best
    for answer, given in ((own, None), (wide, fit)):
        with pytest.raises(SpecError) as caught:
            planner.replan_saved(document(answer), "4xA100-80GB", stack_fit=given)
        assert caught.value.field == "stack_fit"
    assert planner.export_saved(document(own), format="megatron-lm").exported


def test_what_differs_of_one_machine_by_two_names_is_told(
    wide: PlanResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, _, job = QUESTION
    asked = {"2x8xA100-80GB": "ib-hdr-200", "2x8xA100-SXM-80GB": "ib-hdr-100", "2x8xH100-SXM-80GB": "ib-ndr-400"}
    paths = [tmp_path / f"{name}.json" for name in asked]
    for path, (cluster, fabric) in zip(paths, asked.items(), strict=True):
        path.write_text(json.dumps(planner.to_document(planner.estimate(model, cluster, job, fabric=fabric))))
    run = command_line(capsys, monkeypatch, columns=200)
    _, same, _ = run("compare", *map(str, paths[:2]))
    assert {line.split()[0] for line in same.splitlines()[:4] if line.strip()} >= {"cluster", "fabric"}
    _, others, _ = run("compare", *map(str, paths))
    named = {line.split()[0] for line in others.splitlines() if line.strip()}
    assert {"cluster", "fabric"} <= named
    assert "node" not in named


def test_reserves_are_told_in_gib(
    wide: PlanResult, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    model, cluster, job = QUESTION
    less = planner.estimate(model, cluster, job, plan={"tp": 8, "micro_batch_size": 8}, memory_reserve_bytes=4 * GIB)
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, result in zip(paths, (wide, less), strict=True):
        path.write_text(json.dumps(planner.to_document(result)))
    _, shown, _ = command_line(capsys, monkeypatch)("compare", *map(str, paths))
    (line,) = [line for line in shown.splitlines() if line.startswith("reserve")]
    assert line.split()[1:] == ["0.0", "GiB", "4.0", "GiB"]
    assert "usable memory bytes" not in shown


def test_the_document_holds_what_its_schema_says(wide: PlanResult, ranked: PlanResult) -> None:
    written = planner.to_document(planner.compare(wide, ranked, names=["wide", "best"]))
    jsonschema_rs.validate(compare_schema(), json.loads(json.dumps(written)))
    assert written["kind"] == "compare"
    assert [item["name"] for item in written["compared"]] == ["wide", "best"]
    assert written["differing"]["plan"]["tensor_parallel"][0] == 8


@pytest.mark.parametrize(
    ("places", "settings", "field"),
    [
        ("", {}, "answers"),
        ("e", {}, "answers"),
        ("eeeeeeeee", {}, "answers"),
        ("ee", {"ranks": [1]}, "ranks"),
        ("ee", {"ranks": "12"}, "ranks"),
        ("ee", {"ranks": [1, 2]}, "ranks[1]"),
        ("p", {"ranks": [1, 8]}, "ranks[1]"),
        ("ee", {"names": ["one"]}, "names"),
        ("ex", {}, "answers[1]"),
        ("x", {}, "answers[0]"),
        ("w", {}, "answers[0]"),
    ],
)
def test_what_is_wrong_is_named(
    wide: PlanResult, ranked: PlanResult, places: str, settings: dict[str, Any], field: str
) -> None:
    answers: dict[str, Any] = {"e": wide, "p": ranked, "x": {"kind": "serving"}, "w": {"kind": "workflow"}}
    with pytest.raises(SpecError) as caught:
        planner.compare(*(answers[place] for place in places), **settings)
    assert caught.value.field == field


@pytest.fixture
def files(tmp_path: Path, wide: PlanResult, ranked: PlanResult) -> tuple[str, str]:
    paths = tmp_path / "old[1].json", tmp_path / "new.json"
    for path, result in zip(paths, (wide, ranked), strict=True):
        path.write_text(json.dumps(planner.to_document(result)))
    return str(paths[0]), str(paths[1])


def test_the_command_sets_files_beside_each_other(command: Command, files: tuple[str, str]) -> None:
    old, new = files
    code, shown, _ = command("compare", old, f"{new}#2")
    assert code == 0
    assert "old[1]" in shown
    assert "new#2" in shown
    assert "new#2 makes" in shown
    assert "tensor-parallel communication" in shown
    printed = json.loads(command("compare", old, f"{new}#2", "--json")[1])
    assert [item["name"] for item in printed["compared"]] == ["old[1]", "new#2"]
    assert len(json.loads(command("compare", new, "--json")[1])["compared"]) == 5


def test_the_command_names_the_file_that_is_wrong(command: Command, files: tuple[str, str], tmp_path: Path) -> None:
    old, new = files
    other = tmp_path / "other.json"
    other.write_text('{"kind": "serving"}')
    for arguments, words in (
        ([old], "two are compared"),
        ([f"{new}#1"], "come to one plan, and two are compared"),
        ([f"{new}#0"], f"{new}#0: there is no plan 0"),
        ([f"{new}#99"], f"{new}#99: there is no plan 99"),
        ([old, f"{new}#9"], f"{new}#9: there is no plan 9"),
        ([old, f"{new}#one"], "'one' is no rank"),
        ([old, str(other)], f"{other}: is not an answer"),
        ([old, str(tmp_path / "none.json")], "cannot read"),
    ):
        code, _, said = command("compare", *arguments)
        assert code == 2
        assert words in said


def test_a_difference_of_many_small_parts_names_the_largest() -> None:
    """1.2 % of three parts, none of them half a percent: nothing in brackets is no reason."""
    change = Change(
        name="b",
        tokens_per_s_ratio=1 / 1.012,
        device_seconds_per_token_ratio=1.012,
        peak_memory_difference_bytes=0.08 * GIB,
        time_per_token={"forward": 0.0048, "backward": 0.0042, "data_parallel": 0.0030},
        memory_bytes={"activations": 0.04 * GIB, "logits": 0.04 * GIB},
        intervals_overlap=True,
    )
    told = change_in_words("a", change)
    assert "+1.2 % time per token (forward +0.5 %);" in told
    assert "()" not in told
