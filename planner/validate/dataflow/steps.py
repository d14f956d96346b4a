"""E10: synchronous and disaggregated steps, as sums and maxima of their calls.

A synchronous step is generation + training + weight update; with generation one step ahead on devices of its own it is
the longer of both, and the update. NeMo-RL's rows are predicted from their layouts. verl's tables name the parts but
neither lengths nor layouts: there the form itself is checked, on measured parts.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from costmodels.plan import FloatArray
from planner.validate.dataflow.nemo import NemoStep, nemo_steps, priced_step, update_size
from planner.validate.dataflow.setups import model_named
from planner.validate.dataflow.step_fit import (
    StepConstants,
    fit_scales,
    left_out_steps_s,
    model_and_system_of,
    model_of,
    packaged_steps,
)
from planner.validate.experiment import Experiment
from planner.validate.metrics import spearman
from planner.validate.tables.published import rows_of
from profiles.engines import find_engine

LEAST_RANK_CORRELATION = 0.8
# NeMo-RL 0.6, docs/about/performance-summary.md: the same 16 GB200 one step ahead take 301 s instead of 221 s.
_SLOWER_AHEAD_S = 301.0


def disaggregated_steps(folder: Path) -> Experiment:
    """E10: ranks of all steps, and whether running ahead pays where both were published on equal GPUs."""
    steps, left_out = nemo_steps(folder)
    measured = np.asarray([step.measured_s for step in steps])
    plain = [StepConstants().step_s(step) for step in steps]
    constants = packaged_steps()
    fitted = [constants.step_s(step) for step in steps]
    held_out, of_models = (left_out_steps_s(steps, key) for key in (model_and_system_of, model_of))
    ranks = [spearman(measured, np.asarray(one)) or 0.0 for one in (plain, held_out, of_models)]
    pairs = _pairs(folder, steps, constants)
    right = sum(sign for _, sign in pairs)
    accounts = verl_accounts(folder)
    return Experiment(
        name="E10",
        title="Synchronous and disaggregated steps (NeMo-RL, verl)",
        criterion=f"rank correlation at least {LEAST_RANK_CORRELATION}; the sign of running ahead right in every pair",
        passed=min(ranks[1:]) >= LEAST_RANK_CORRELATION and right == len(pairs),
        findings=(
            *_fit_findings(steps, constants, ranks, {"fitted": fitted, "held out": held_out, "model": of_models}),
            f"Sign of running ahead: {right} of {len(pairs)} pairs right. " + " ".join(text for text, _ in pairs),
            '"Left out" is fitted without the model on that GPU. The slower row of the last pair is in no fit. Half of '
            "the GPUs have twice as many micro-batches each: it is training of experts, not generation, that takes "
            "longer ahead than both in turn. The margin is thin: little of what running ahead lost there is predicted.",
            "Weight updates are what NeMo-RL publishes of its own: DeepSeek V3 in 47 s on the same GPUs (blog of "
            "2025-08-12), in 14 s between GPUs, Qwen3-235B in 5.5 s there (pull request 1379). verl between GPUs, and "
            f"these constants: {', '.join(_verl_updates(folder))}.",
            f"verl: {len(accounts)} steps are the sum of their exposed parts within "
            f"{max(abs(error) for _, error in accounts):.1%}; lengths and layouts are not published, so that nothing "
            "is predicted.",
            *(f"Left out: {text}." for text in left_out),
        ),
        header=("step", "measured s", "generation s", "training s", "predicted s", "model on that GPU left out s"),
        rows=tuple(
            (
                step.label,
                f"{step.measured_s:.0f}",
                *(f"{seconds:.0f}" for seconds in constants.parts_s(step)),
                f"{constants.step_s(step):.0f}",
                f"{other:.0f}",
            )
            for step, other in zip(steps, held_out, strict=True)
        ),
    )


def _fit_findings(
    steps: Sequence[NemoStep],
    constants: StepConstants,
    ranks: Sequence[float],
    predicted: Mapping[str, Sequence[float]],
) -> tuple[str, ...]:
    """What the fit is worth, and what it says."""
    measured = np.asarray([step.measured_s for step in steps])
    errors = {name: _errors(seconds, measured) for name, seconds in predicted.items()}
    return (
        f"{len(steps)} steps of NeMo-RL; rank correlation {ranks[0]:.2f} without any fit. With host time per decode "
        "step, host time per pass of a micro-batch through a layer with experts, a scale of both on Grace hosts and "
        f"one of training, fitted without the model on that GPU: {ranks[1]:.2f}, {errors['held out']}; without the "
        f"model on any GPU: {ranks[2]:.2f}, {errors['model']}.",
        f"Fitted on all: {constants.host_step_s * 1e3:.1f} ms, {constants.expert_pass_s * 1e3:.1f} ms, "
        f"{constants.grace_time_scale:.2f}, {constants.training_scale:.2f}; {errors['fitted']}. Only Qwen3-30B, with "
        "48 layers in one stage and 110 to 220 micro-batches, spends long enough in layers with experts to tell what "
        "they cost; what others report of training it (Megatron-MoE-ModelZoo issues 7 and 21) says 4.1 and 3.8 ms. "
        "One linear layer of PyTorch takes 2.75 times as long to issue on Grace as on x86 (TransformerEngine issue "
        "2053).",
        f"Errors by policy: {_by_policy(steps, predicted['fitted'])}. Releases that repeat Qwen3-235B differ "
        "themselves, by 28 % on 128 H100 and by 14 % on 256.",
    )


def _errors(predicted: Sequence[float], measured: FloatArray) -> str:
    errors = np.abs(np.asarray(predicted) / measured - 1)
    return f"mean error {errors.mean():.0%}, worst {errors.max():.0%}"


def _by_policy(steps: Sequence[NemoStep], predicted: Sequence[float]) -> str:
    """Errors of steps together and ahead, on either kind of host."""
    texts = []
    for ahead, on_grace in product((False, True), repeat=2):
        errors = [
            seconds / step.measured_s - 1
            for step, seconds in zip(steps, predicted, strict=True)
            if (step.ahead, step.on_grace) == (ahead, on_grace)
        ]
        where = f"{'ahead' if ahead else 'together'} on {'GB200' if on_grace else 'H100'}"
        texts.append(f"{where} {np.mean(np.abs(errors)):.0%} (bias {np.mean(errors):+.0%})")
    return ", ".join(texts)


def _verl_updates(folder: Path) -> list[str]:
    """Weight updates of verl with its faster way, beside what the engine says."""
    rows = [row for row in rows_of(folder / "verl_weight_sync_time.csv") if row["checkpoint_engine"] == "True"]
    engine = find_engine("vllm")
    return [
        f"{row['model']} {float(row['sync_s']):.2g} s against {engine.update_s(*update_size(model), apart=True):.2g} s"
        for row in rows
        for model in [model_named(row["model"].lower().replace("-math", ""))]
    ]


def verl_accounts(folder: Path) -> list[tuple[str, float]]:
    """Label and relative error of every verl step as the sum of the parts that are not hidden."""
    found: list[tuple[str, float]] = []
    for name in ("verl_one_step_off_Qwen2.5-Math-7B", "verl_fully_async_Qwen2.5-Math-7B", "verl_fully_async_30B"):
        for row in rows_of(folder / f"{name}.csv"):
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
            found.append(_pair(together, min(rivals, key=lambda step: step.measured_s), steps, constants))
    known = _published_beside_the_table(folder)
    if known is not None:
        found.append(_pair(*known, steps, constants))
    return found


def _published_beside_the_table(folder: Path) -> tuple[NemoStep, NemoStep] | None:
    """The pair in which running ahead is slower; its second row is not in the table."""
    rows = [
        row
        for row in rows_of(folder / "nemo_rl_performance_summary.csv")
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


def _pair(together: NemoStep, ahead: NemoStep, steps: Sequence[NemoStep], constants: StepConstants) -> tuple[str, bool]:
    others = [step for step in steps if model_and_system_of(step) != model_and_system_of(together)]
    measured = together.measured_s / ahead.measured_s
    predicted, held_out = (one.step_s(together) / one.step_s(ahead) for one in (constants, fit_scales(others)))
    text = (
        f"{together.model} on {together.num_devices} {together.system.split()[0]}: measured {measured:.2f}x, predicted "
        f"{predicted:.2f}x, left out {held_out:.2f}x."
    )
    return text, (measured > 1) == (predicted > 1)
