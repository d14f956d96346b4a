"""The plans that are ranked are likely to live; what would be better at more risk is told beside them."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import planner
from costmodels.context import CostContext
from costmodels.evaluate import lean_peak_bytes
from planner.answer import parts
from planner.answer.memory_law import MemoryLaw
from planner.answer.parts import search_on, search_parts
from planner.answer.risks import oom_risks
from planner.document_plan import to_document
from planner.question.request import Options, cost_context, resolve_request
from planner.ranking import Priced, best_rows
from planner.render.plans import render
from planner.results import RISKY, PlanResult
from profiles.errors import SpecError
from profiles.stacks import load_stacks

JOB = {"sequence_length": 8192, "global_batch_size": 512}
SMALL = {"sequence_length": 2048, "global_batch_size": 64}
TIGHT: dict[str, Any] = {"model": "llama-3-70b", "cluster": "32x8xH100", "job": JOB}


@pytest.fixture(scope="module")
def tight() -> PlanResult:
    """Many fast plans of which fill the devices to the brim."""
    return planner.plan(**TIGHT, top=100, variants=True)


@pytest.fixture(scope="module")
def daring() -> PlanResult:
    """The same, whatever they risk."""
    return planner.plan(**TIGHT, top=100, variants=True, max_oom_risk=1)


def text_of(result: PlanResult) -> str:
    console = Console(file=io.StringIO(), width=160)
    render(result, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_those_at_risk_are_not_ranked(tight: PlanResult, daring: PlanResult) -> None:
    assert any(item.risky for item in daring.plans)
    assert not any(item.risky for item in tight.plans)
    safe = [item.plan for item in daring.plans if not item.risky]
    assert [item.plan for item in tight.plans][: len(safe)] == safe
    assert tight.fitting == daring.fitting == daring.likely > tight.likely > 0


def test_what_would_be_the_first_is_told_as_riskier(tight: PlanResult, daring: PlanResult) -> None:
    assert tight.best is not None
    assert tight.riskier is not None
    assert daring.best is not None
    assert (tight.riskier.plan, tight.riskier.step_time_s) == (daring.best.plan, daring.best.step_time_s)
    assert tight.riskier.oom_probability >= RISKY > tight.best.oom_probability
    assert tight.riskier.step_time_s < tight.best.step_time_s
    assert tight.riskier.rank == len(tight.plans) + 1
    assert daring.riskier is None
    assert f"({tight.fitting - tight.likely:,} at 20 % risk or more)" in " ".join(text_of(tight).split())
    assert "at more risk" in text_of(tight)
    assert "at more risk" not in text_of(daring)


def test_an_estimate_and_a_short_list_name_the_same_plans(tight: PlanResult) -> None:
    assert tight.best is not None
    assert tight.riskier is not None
    for result in (planner.plan(**TIGHT, top=1), planner.estimate(**TIGHT)):
        assert result.best is not None
        assert result.riskier is not None
        assert (result.best.plan, result.riskier.plan) == (tight.best.plan, tight.riskier.plan)
        document = to_document(result)
        assert document["riskier"]["memory"]["oom_probability"] >= RISKY
        assert document["search"]["likely"] == tight.likely
        assert document["request"]["max_oom_risk"] == RISKY


@pytest.mark.parametrize("most", [0.3, 0.05, 0.01])
def test_the_limit_is_what_was_asked_for(most: float) -> None:
    result = planner.plan(**TIGHT, top=20, max_oom_risk=most)
    assert max(item.oom_probability for item in result.plans) < most
    assert result.best is not None
    assert result.riskier is not None
    assert result.riskier.oom_probability >= most
    assert result.riskier.step_time_s < result.best.step_time_s


def test_a_rival_at_risk_is_told_so() -> None:
    """One that differs in the micro-batch alone, and fits."""
    asked: dict[str, Any] = {"model": "llama-2-13b", "cluster": "8xA100", "job": SMALL | {"sequence_length": 4096}}
    for most in (1e-2, 1e-3):
        result = planner.plan(**asked, top=1, max_oom_risk=most)
        assert result.explanation is not None
        at_risk = [rival for rival in result.explanation.rivals if rival.fits and not rival.ranked]
        if at_risk:
            assert all(rival.step_time_ratio < 1 for rival in at_risk)
            assert "at risk" in text_of(result)
            assert "at risk of running out of memory" in str(to_document(result)["explanation"])
            return
    pytest.fail("no rival is at risk")


@pytest.mark.parametrize("fixed", [{}, {"tensor_parallel": 4, "micro_batch_size": 1}])
def test_where_the_first_is_likely_to_live_there_is_no_other(fixed: dict[str, int]) -> None:
    result = planner.plan("llama-3-8b", "8xH200", SMALL, pins=fixed)
    assert result.best is not None
    assert not result.best.risky
    assert result.riskier is None
    assert to_document(result)["riskier"] is None


def test_where_none_is_likely_all_that_fit_are_ranked() -> None:
    """Eight H200 hold Llama-3-70B under FSDP by a hair."""
    job = {"sequence_length": 8192}
    result = planner.plan("llama-3-70b", "8xH200", job, framework="fsdp", top=100)
    assert result.fits
    assert result.likely == 0
    assert all(item.risky for item in result.plans)
    assert [item.step_time_s for item in result.plans] == sorted(item.step_time_s for item in result.plans)
    (note,) = [note for note in result.warnings if note.code == "at_risk"]
    least = min(item.oom_probability for item in result.plans)
    assert note.message.startswith("no plan runs out of memory in less than 20 % of runs")
    assert f"does in {100 * least:.0f} %" in note.message
    assert "GiB? runs out" in text_of(result)


def test_a_plan_that_is_given_whole_is_counted_by_its_risk(daring: PlanResult) -> None:
    """Its risk is told, and there is nothing to rank it among."""
    assert daring.best is not None
    assert daring.best.oom_probability > 0.05
    for most in (0.05, daring.best.oom_probability + 0.01):
        alone = planner.estimate(**TIGHT, plan=daring.best.plan, max_oom_risk=most)
        assert alone.best is not None
        assert alone.best.oom_probability == pytest.approx(daring.best.oom_probability)
        assert (alone.fitting, alone.likely) == (1, int(most > 0.05))
        assert not [note for note in alone.warnings if note.code == "at_risk"]
    roomy = planner.plan("llama-3.2-1b", "8xH100", SMALL, top=1).best
    assert roomy is not None
    assert planner.estimate("llama-3.2-1b", "8xH100", SMALL, plan=roomy.plan, max_oom_risk=0.05).likely == 1


def test_plans_that_are_far_slower_are_no_answer() -> None:
    """Kimi K2 on 72 B300: 23 s at risk, and 394 s likely to live."""
    request = resolve_request("kimi-k2", "72xB300", SMALL, None, Options())
    priced, _, _ = search_parts(request)
    for low, high, ranked in ((1.8, 2.0, True), (2.0, 2.5, False)):
        fastest_s = float(priced.step_time_s[priced.fits].min())
        likely = priced.fits & (priced.step_time_s > low * fastest_s)
        likely &= priced.step_time_s < high * fastest_s
        assert likely.any()
        assert (replace(priced, likely=likely).ranked == (likely if ranked else priced.fits)).all()
        assert (replace(priced, likely=likely, likely_below=0.05).ranked == likely).all()  # as was asked for


@pytest.mark.parametrize("surer", [0.05, 1e-6])
def test_who_asks_for_less_risk_takes_none_that_is_higher(surer: float) -> None:
    """Where there is no plan of so little, plans are ranked that the usual bound ranks, and the answer says so."""
    job = {"sequence_length": 8192, "global_batch_size": 64, "task": "full"}
    usual, careful = (
        planner.plan("qwen2.5-7b", "8xRTX-4090", job, framework="megatron-core", max_oom_risk=most)
        for most in (RISKY, surer)
    )
    assert careful.plans[0].oom_probability <= usual.plans[0].oom_probability < RISKY
    assert [item.plan for item in careful.plans] == [item.plan for item in usual.plans]
    assert careful.likely == 0 < usual.likely
    (note,) = (note.message for note in careful.warnings if note.code == "at_risk")
    assert note.endswith("so those that do in less than 20 % are ranked")


def test_fewer_devices_have_to_be_likely_to_live() -> None:
    """The fewest GPUs are those that hold the job, not those on which it may just fit."""
    asked: dict[str, Any] = {"model": "llama-3-70b", "cluster": "2x8xH200", "objective": "fewest_gpus"}
    job = {"sequence_length": 8192}
    sure, any_risk = (planner.plan(**asked, job=job, framework="fsdp", top=1, max_oom_risk=most) for most in (0.2, 1.0))
    assert sure.best is not None
    assert any_risk.best is not None
    assert sure.best.num_devices > any_risk.best.num_devices
    assert sure.riskier is not None
    assert sure.riskier.num_devices == any_risk.best.num_devices
    assert f"on {any_risk.best.num_devices} GPUs" in text_of(sure)


def test_of_all_plans_the_likely_are_those_below_the_risk() -> None:
    """Only those close to the limit are looked at twice; all of them give the same."""
    request = resolve_request("qwen3-30b-a3b", "4x8xH100", SMALL, None, Options())
    priced, _, _ = search_parts(request)
    context = cost_context(request)
    assert priced.likely is not None
    rows = np.flatnonzero(priced.fits)
    risks = oom_risks(priced.plans.take(rows), context)
    assert (priced.likely[rows] == (risks < RISKY)).all()
    assert not priced.likely[~priced.fits].any()
    assert 0 < priced.likely.sum() < priced.fits.sum()
    assert priced.likely[best_rows(priced, objective="step_time", count=50)].all()


@pytest.mark.parametrize("stack", ["megatron-core", "fsdp", "hf-trainer", "deepspeed"])
@pytest.mark.parametrize("risk", [0.001, 0.05, 0.2, 0.5, 0.9])
def test_the_limit_in_memory_is_the_inverse_of_the_risk(stack: str, risk: float) -> None:
    law = MemoryLaw.of(load_stacks()[stack])
    assert law.risk(np.asarray(law.most_log(risk))) == pytest.approx(risk, rel=1e-5)
    assert law.most_log(1.0) == np.inf


@pytest.mark.parametrize("framework", ["megatron-core", "fsdp", "hf-trainer", "deepspeed"])
def test_what_is_needed_is_no_more_than_the_peak(framework: str) -> None:
    """Of plans whose peak is below the limit nothing else has to be known."""
    request = resolve_request("llama-3-8b", "8xA100-40GB", SMALL, None, Options(framework=framework))
    priced, _, _ = search_parts(request)
    rows = np.flatnonzero(priced.fits)
    lean = lean_peak_bytes(priced.plans.take(rows), cost_context(request))
    assert (lean <= priced.peak_memory_bytes[rows] * (1 + 1e-9)).all()


@pytest.mark.parametrize("value", [0, -0.1, 1.5, float("nan"), "much", True])
def test_a_share_is_asked_for(value: Any) -> None:
    with pytest.raises(SpecError, match="max_oom_risk: must be") as caught:
        planner.plan("llama-2-7b", "8xA100", max_oom_risk=value)
    assert caught.value.field == "max_oom_risk"


@pytest.mark.parametrize("call", [planner.portfolio, planner.search])
def test_what_weighs_risks_itself_takes_no_limit(call: Any) -> None:
    with pytest.raises(SpecError, match="max_oom_risk: decides which plans a ranking holds"):
        call("llama-2-7b", "8xA100", SMALL, max_oom_risk=0.05)


def test_a_part_that_is_likely_to_live_is_looked_at_where_the_whole_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slower plans of six devices, of which these are said to live, and none of seven."""
    job = {"sequence_length": 2048, "global_batch_size": 48}
    request = resolve_request("llama-2-7b", "7xA100-80GB", job, None, Options())

    def few(priced: Priced, context: CostContext, _: float) -> Priced:
        slow = priced.step_time_s > 1.2 * fastest_s
        return replace(priced, likely=priced.fits & slow & (context.cluster.num_devices == 6))

    whole, _, _ = search_on(request, [request.cluster])
    fastest_s = float(whole.step_time_s[whole.fits].min())
    monkeypatch.setattr(parts, "with_likely", few)
    priced, _, _ = search_parts(request)
    assert priced.likely_any
    assert set(priced.num_devices[priced.ranked].tolist()) == {6}
