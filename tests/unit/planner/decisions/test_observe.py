"""Trials fed back: rows matched with the question, intervals that narrow, plans that move, what to try next."""

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

import planner
from costmodels.plan import ExecutionPlan
from costmodels.uncertainty import NORMAL_90
from planner.decisions.document import observe_document
from planner.decisions.kinship import NOISE, SCALES
from planner.decisions.results import ObserveResult, UpdatedPlan
from planner.decisions.schema import observe_schema
from profiles.errors import SpecError

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}
QUESTION: dict[str, Any] = {"model": "llama-2-7b", "cluster": "8xA100-80GB", "job": JOB}


def row(plan: ExecutionPlan, **cells: object) -> dict[str, object]:
    """A trial of the question as a table holds it."""
    recompute = plan.recompute.name.lower()
    return {
        "source": "mine", "model": "llama-2-7b", "gpu": "A100", "gpu_mem_gb": 80, "num_gpus": 8,
        "framework": "Megatron-Core", "precision": "bf16", "seq_len": 2048, "global_batch_seqs": 64,
        "tp": plan.tensor_parallel, "pp": plan.pipeline_parallel, "dp": plan.data_parallel,
        "vpp": plan.virtual_stages, "sp": plan.sequence_parallel, "zero_stage": plan.zero_stage,
        "micro_batch": plan.micro_batch_size, "recompute": recompute, "flash_attention": True, "task": "pretrain",
        **cells,
    }  # fmt: skip


@cache
def trials() -> tuple[Any, ...]:
    return planner.portfolio(**QUESTION, count=3).trials


def simple() -> Any:
    """The first trial whose recomputation a table can say."""
    return next(trial for trial in trials() if trial.plan.recompute.name in ("NONE", "FULL", "SELECTIVE"))


def seen(*cells: dict[str, object], **settings: Any) -> ObserveResult:
    return planner.observe(**QUESTION, trials=[row(simple().plan, **each) for each in cells], **settings)


def tried(result: ObserveResult) -> UpdatedPlan:
    (found,) = [item for item in result.plans if item.tried]
    return found


def width(view: Any) -> float:
    return float(np.log(view.step_time_high_s / view.step_time_low_s))


def test_a_slow_trial_is_believed_and_narrows_every_interval() -> None:
    trial = simple()
    slow_s = 1.25 * trial.step_time_s
    result = seen({"measured_step_time_s": slow_s})
    (observed,) = result.observed
    assert observed.same_job
    assert observed.died is False
    assert (observed.measured_s, observed.step_time_s) == pytest.approx((slow_s, trial.step_time_s), rel=0.02)
    stated = width(trial) / (2 * NORMAL_90)
    assert observed.surprise == pytest.approx(np.log(1.25) / stated, abs=0.3)
    own = tried(result)
    # As far as a run of so much noise says more than the price does.
    noise = NOISE * np.sqrt(np.mean(SCALES**2)) / stated
    believed = 1 - noise**2
    assert np.log(own.after.step_time_s / own.before.step_time_s) / np.log(1.25) == pytest.approx(believed, abs=0.05)
    # Another run of it still has the noise of measuring.
    assert width(own.after) / width(own.before) == pytest.approx(noise * np.sqrt(1 + believed), abs=0.06)
    assert own.after.best_probability < own.before.best_probability
    assert own.after.oom_probability == 0.0
    assert own.rank >= own.rank_before  # a stranger's first run tells of the level first, which all plans share
    others = [item for item in result.plans if not item.tried]
    assert all(width(item.after) < width(item.before) for item in others)
    assert result.learned[0].name == "level"
    assert result.learned[0].factor > 1.0
    assert result.learned[0].std_after < result.learned[0].std_before
    assert result.regret is not None
    assert result.next_trials[0].regret < result.regret


def test_a_death_rules_its_plan_out_and_warns_of_its_kin() -> None:
    result = seen({"oom": True})
    own = tried(result)
    assert own.after.oom_probability == pytest.approx(1.0)
    assert own.after.best_probability == 0.0
    assert result.regret is None
    assert result.observed[0].died is True
    assert result.grounds.effective_draws < result.grounds.draws
    riskier = [item.after.oom_probability - item.before.oom_probability for item in result.plans if not item.tried]
    assert np.mean(riskier) > 0
    assert simple().plan not in {trial.plan for trial in result.next_trials}


def test_a_plan_that_ran_and_died_is_one_plan_and_said_to_be() -> None:
    time_s = 1.01 * simple().step_time_s
    result = seen({"oom": True}, {"measured_step_time_s": time_s})
    assert 0.01 < tried(result).after.oom_probability < 0.9
    assert [note.code for note in result.warnings] == ["contradictory"]
    assert len(result.observed) == 2
    (twice,) = seen({"measured_step_time_s": time_s}, {"measured_step_time_s": time_s}).observed
    assert twice.repeats == 2


def test_a_fast_trial_says_that_all_plans_are_fast() -> None:
    """How fast a stranger's machine is, is less well known than how plans differ."""
    result = seen({"measured_step_time_s": 0.72 * simple().step_time_s})
    assert tried(result).rank == 1
    assert tried(result).after.best_probability > tried(result).before.best_probability
    assert (result.learned[0].name, result.warnings) == ("level", ())
    others = [item for item in result.plans if not item.tried]
    assert all(0.65 < item.after.step_time_s / item.before.step_time_s < 0.9 for item in others)


def test_a_trial_beyond_what_machines_differ_by_is_surprising() -> None:
    result = seen({"measured_step_time_s": 4 * simple().step_time_s})
    assert [note.code for note in result.warnings] == ["surprising"]
    assert "standard deviations slower than expected" in result.warnings[0].message


def test_runs_of_another_job_teach_prices_only() -> None:
    result = seen({"measured_step_time_s": 0.55 * simple().step_time_s, "global_batch_seqs": 32})
    assert [item.same_job for item in result.observed] == [False]
    assert result.regret is None
    assert not any(item.tried for item in result.plans)
    assert [note.code for note in result.warnings] == ["other_job"]
    assert result.learned[0].factor == pytest.approx(1.0, abs=0.1)  # half the batch takes about half the time


def test_rows_of_other_stacks_and_devices_are_listed_as_unused() -> None:
    time_s = simple().step_time_s
    result = seen(
        {"measured_step_time_s": time_s},
        {"measured_step_time_s": time_s, "framework": "PyTorch FSDP"},
        {"measured_step_time_s": time_s / 2, "gpu": "H100"},
        {},
    )
    reasons = {item.line: item.reason for item in result.unused}
    assert reasons[2].startswith("ran on fsdp; planned for is megatron-core")
    assert reasons[3].startswith("ran on H100-SXM-80GB; planned for is A100-SXM-80GB")
    assert reasons[4] == "measured neither time nor memory"
    assert len(result.observed) == 1


def test_more_trials_teach_more() -> None:
    level = []
    for count in (1, 2, 3):
        rows = [row(trial.plan, measured_step_time_s=1.2 * trial.step_time_s) for trial in trials()[:count]]
        level.append(planner.observe(**QUESTION, trials=rows).learned[0].std_after)
    assert level[0] > level[1] > level[2]


def test_a_plan_that_ran_is_known_to_fit_though_nothing_was_expected_to() -> None:
    # Nothing fits by the price; a trial that ran all the same is a plan to choose.
    question: dict[str, Any] = {
        "model": "llama-2-13b",
        "cluster": "8xA100-40GB",
        "job": JOB,
        "pins": {"tp": 1, "pp": 1},
    }
    if planner.plan(**question).fits:
        question["pins"] = {"tp": 1, "pp": 1, "zero": 0}
    assert not planner.plan(**question).fits
    plan = ExecutionPlan(data_parallel=8, num_microbatches=8)
    cells = {"model": "llama-2-13b", "gpu_mem_gb": 40, "measured_step_time_s": 12.0}
    ran = planner.observe(**question, trials=[row(plan, **cells)])
    assert ran.fits
    assert [item.tried for item in ran.plans] == [True]
    assert (ran.regret, ran.next_trials) == (0.0, ())
    other = planner.observe(**question, trials=[row(plan, **cells, global_batch_seqs=128)])
    assert not other.fits
    assert other.infeasible is not None
    jsonschema_rs.validate(observe_schema(), observe_document(other))


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ([], "trials: none given"),
        ([{"modle": "x"}], r"trials\.0.modle: unknown column. Hint: did you mean 'model'"),
        ([{"model": "llama-2-7b"}], r"trials\.0.gpu: is missing. Hint: every trial says model, gpu, num_gpus"),
        ([{"tensor_parallel": ["x"]}], r"trials\.0.tensor_parallel: must be a text or a number; got"),
        ([{"model": ["x"]}], r"trials\.0.model: must be a text or a number; got"),
        ([3], r"trials\.0: must be a mapping of columns; got 3"),
        (["no-such-file.csv"], "trials: no file or folder"),
        (["a.csv", {"model": "x"}], "trials: tables and rows cannot be mixed"),
    ],
)
def test_wrong_trials_are_named(trials: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        planner.observe(**QUESTION, trials=trials)


def test_times_in_another_unit_are_refused() -> None:
    with pytest.raises(SpecError, match=r"trials\.0\.measured_step_time_s: .* needs .* % of the bf16 peak of 8 A100"):
        seen({"measured_step_time_s": 0.009 * simple().step_time_s})
    with pytest.raises(SpecError, match="no row says anything of this question"):
        seen({"measured_step_time_s": 1000 * simple().step_time_s})


@pytest.mark.parametrize(
    ("peak_gb", "problem"),
    [
        (1e-9, "peak memory below weights, gradients and moments"),
        (62_000, "peak memory above the device's capacity"),
    ],
)
def test_peaks_that_cannot_be_are_refused(peak_gb: float, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        seen({"measured_step_time_s": simple().step_time_s, "measured_peak_mem_gb": peak_gb})
    assert str(caught.value) == f"trials.0: {problem}. Hint: is measured_peak_mem_gb that of one device, in GiB?"


def test_a_peak_of_adapters_in_another_unit_is_refused() -> None:
    """Nothing bounds what adapters keep from below but the prediction."""
    job = JOB | {"task": "lora"}
    cells = {
        "source": "mine", "model": "llama-2-7b", "gpu": "A100", "gpu_mem_gb": 80, "num_gpus": 8,
        "framework": "hf-trainer", "seq_len": 2048, "global_batch_seqs": 64, "tp": 1, "pp": 1, "dp": 8,
        "zero_stage": 0, "micro_batch": 1, "recompute": "none", "task": "lora", "measured_step_time_s": 3.5,
    }  # fmt: skip
    ask = {"model": "llama-2-7b", "cluster": "8xA100-80GB", "job": job}
    for peak_gb in (1e-9, 0.04):
        with pytest.raises(SpecError, match=r"trials\.0: peaks at \S+ GiB, where about \S+ GiB are expected. Hint"):
            planner.observe(**ask, trials=cells | {"measured_peak_mem_gb": peak_gb})
    (ran,) = planner.observe(**ask, trials=cells | {"measured_peak_mem_gb": 25}).observed
    assert ran.same_job
    (other,) = planner.observe(**ask, trials=cells | {"measured_peak_mem_gb": 25, "lora_rank": 8}).observed
    assert not other.same_job


def test_files_are_out_of_reach_of_a_network() -> None:
    with pytest.raises(SpecError, match="names a file, which is not read here"):
        planner.observe(**QUESTION, trials=["trials.csv"], allow_files=False)


def test_documents_match_their_schema_and_repeat() -> None:
    first, again = (seen({"measured_step_time_s": 8.0}, {"oom": True}) for _ in range(2))
    document = observe_document(first)
    jsonschema_rs.validate(observe_schema(), document)
    assert json.loads(json.dumps(document, allow_nan=False)) == document == observe_document(again)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "trials.csv"
    rows = [row(simple().plan, measured_step_time_s=1.1 * simple().step_time_s), row(simple().plan)]
    rows[0]["sp"] = "yes" if simple().plan.sequence_parallel else "no"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerow(rows[0] | {"flash_attention": "yes"})
    return path


ASK = ("observe", "--model", "llama-2-7b", "--gpus", "8xA100-80GB", "--seq", "2048", "--global-batch", "64", "--trials")


def test_the_command_prints_what_changed(run: Any, table: Path) -> None:
    code, out, _ = run(*ASK, str(table), "--next", "2")
    assert code == 0
    expected = (
        "Trials",
        "trials.csv:2",
        "Learnt: level x",
        "Plans before and after",
        "Stopping here",
        "Worth trying next",
    )
    assert [words for words in expected if words not in out] == []
    code, out, _ = run(*ASK, str(table), "--json")
    document = json.loads(out)
    assert (code, document["kind"], len(document["next_trials"])) == (0, "observe", 3)
    code, _, err = run(*ASK, str(table.parent / "none.csv"))
    assert code == 2
    assert err.startswith("error: trials: no file or folder")
