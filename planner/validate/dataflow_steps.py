"""E10: synchronous and disaggregated steps, as sums and maxima of their calls.

A synchronous step is generation + training + weight update; with generation one step ahead on devices of its own it is
the longer of both. NeMo-RL's rows are predicted from their layouts. verl's tables name the parts but neither lengths
nor layouts: there the form itself is checked, on measured parts.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from planner.validate.dataflow_nemo import NemoStep, nemo_steps, priced_step
from planner.validate.dataflow_step_fit import StepConstants, left_out_steps_s, packaged_steps
from planner.validate.experiment import Experiment

LEAST_RANK_CORRELATION = 0.8
# NeMo-RL 0.6, docs/about/performance-summary.md: the same 16 GB200 one step ahead take 301 s instead of 221 s.
_SLOWER_AHEAD_S = 301.0


def disaggregated_steps(folder: Path) -> Experiment:
    """E10: ranks of all steps, and whether running ahead pays where both were published on equal GPUs."""
    steps, left_out = nemo_steps(folder)
    measured = [step.measured_s for step in steps]
    plain = [StepConstants().step_s(step) for step in steps]
    scaled = packaged_steps()
    held_out = left_out_steps_s(steps, scaled)
    plain_rank, held_rank = _rank_correlation(measured, plain), _rank_correlation(measured, held_out)
    errors = np.abs(np.asarray(held_out) / np.asarray(measured) - 1)
    pairs = _pairs(folder, steps, scaled)
    right = sum(sign for _, sign in pairs)
    accounts = verl_accounts(folder)
    return Experiment(
        name="E10",
        title="Synchronous and disaggregated steps (NeMo-RL, verl)",
        criterion=f"rank correlation at least {LEAST_RANK_CORRELATION}; the sign of running ahead right in every pair",
        passed=held_rank >= LEAST_RANK_CORRELATION and right == len(pairs),
        findings=(
            f"{len(steps)} steps of NeMo-RL; rank correlation {plain_rank:.2f} without any fit, {held_rank:.2f} with "
            "host time per decode step and a scale of training fitted on the other models.",
            f"With each model left out: mean error {errors.mean():.1%}, worst {errors.max():.1%}.",
            f"Sign of running ahead: {right} of {len(pairs)} pairs right. " + " ".join(text for text, _ in pairs),
            f"verl: {len(accounts)} steps are the sum of their exposed parts within "
            f"{max(abs(error) for _, error in accounts):.1%}; lengths and layouts are not published, so that nothing "
            "is predicted.",
            *(f"Left out: {text}." for text in left_out),
        ),
        header=("step", "measured s", "generation s", "training s", "predicted s", "model left out s"),
        rows=tuple(
            (
                step.label,
                f"{step.measured_s:.0f}",
                f"{step.generation_s + scaled.host_step_s * step.passes:.0f}",
                f"{step.training_s * scaled.training_scale:.0f}",
                f"{scaled.step_s(step):.0f}",
                f"{other:.0f}",
            )
            for step, other in zip(steps, held_out, strict=True)
        ),
    )


def verl_accounts(folder: Path) -> list[tuple[str, float]]:
    """Label and relative error of every verl step as the sum of the parts that are not hidden."""
    found: list[tuple[str, float]] = []
    for name in ("verl_one_step_off_Qwen2.5-Math-7B", "verl_fully_async_Qwen2.5-Math-7B", "verl_fully_async_30B"):
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                overlapped = bool(row.get("wait_prev_gen_s"))
                exposed = ["wait_prev_gen_s" if overlapped else "gen_s", "old_log_prob_s", "ref_s", "update_actor_s"]
                total = sum(float(row[column]) for column in exposed if row.get(column))
                found.append((f"{name} {row['mode']}", total / float(row["step_s"]) - 1))
    return found


def _pairs(folder: Path, steps: Sequence[NemoStep], constants: StepConstants) -> list[tuple[str, bool]]:
    """Sentence and outcome for every model and system published in both modes on equal GPUs."""
    found = []
    for together in steps:
        if together.ahead:
            continue
        rivals = [
            step
            for step in steps
            if step.ahead
            and (step.model, step.system, step.num_devices) == (together.model, together.system, together.num_devices)
        ]
        if rivals:
            found.append(_pair(together, min(rivals, key=lambda step: step.measured_s), constants))
    known = _published_beside_the_table(folder)
    if known is not None:
        found.append(_pair(*known, constants))
    return found


def _published_beside_the_table(folder: Path) -> tuple[NemoStep, NemoStep] | None:
    """The pair in which running ahead is slower; its second row is not in the table."""
    with (folder / "nemo_rl_performance_summary.csv").open(encoding="utf-8", newline="") as stream:
        rows = [
            row
            for row in csv.DictReader(stream)
            if (row["model"], row["gpus"], row["policy"]) == ("Qwen3-30B3A", "16", "On policy")
        ]
    if not rows:
        return None
    row = rows[0]
    slower = float(row["tokens_per_s_per_gpu"]) * float(row["step_time_s"]) / _SLOWER_AHEAD_S
    other = row | {
        "policy": "1-step Off",
        "step_time_s": str(_SLOWER_AHEAD_S),
        "tokens_per_s_per_gpu": str(slower),
        "train_[TP,CP,EP,PP,VPP]": "[1,1,8,1,n/a]",
    }
    together, ahead = priced_step(row), priced_step(other)
    return None if isinstance(together, str) or isinstance(ahead, str) else (together, ahead)


def _pair(together: NemoStep, ahead: NemoStep, constants: StepConstants) -> tuple[str, bool]:
    measured = together.measured_s / ahead.measured_s
    predicted = constants.step_s(together) / constants.step_s(ahead)
    text = (
        f"{together.model} on {together.num_devices} {together.system.split()[0]}: measured {measured:.2f}x, predicted "
        f"{predicted:.2f}x."
    )
    return text, (measured > 1) == (predicted > 1)


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)
