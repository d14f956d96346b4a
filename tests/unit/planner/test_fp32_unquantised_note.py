"""Answers about QLoRA say where unquantised weights in fp32 make one plan slower per GPU than another."""

import pytest

import planner
from tests.command import command_line

_KEPT = "that it does not quantise"
MODEL, JOB = "llama-3-8b", {"task": "qlora", "global_batch_size": 128}


def _answer(gpus: str, plan: dict[str, int], **job: bool) -> tuple[float, bool]:
    """Device-seconds per step, and whether the answer tells of the cast."""
    result = planner.estimate(MODEL, gpus, {**JOB, **job}, plan=plan)
    told = any(note.field == "job.fp32_unquantised" for note in result.warnings)
    assert result.best is not None
    return result.best.step_time_s * result.best.plan.num_devices, told


def test_cast_weights_are_told_where_nothing_shards_them() -> None:
    one, told_of_one = _answer("1xH100", {"mbs": 1})
    whole, told_of_whole = _answer("2xH100", {"mbs": 1, "dp": 2, "zero": 0})
    sharded, told_of_sharded = _answer("2xH100", {"mbs": 1, "dp": 2, "zero": 3})
    assert (told_of_one, told_of_whole, told_of_sharded) == (True, True, False)
    assert whole == pytest.approx(one, rel=0.01)
    assert one > 1.1 * sharded


def test_the_cast_is_the_whole_difference() -> None:
    one, told = _answer("1xH100", {"mbs": 1}, fp32_unquantised=False)
    sharded, _ = _answer("2xH100", {"mbs": 1, "dp": 2, "zero": 3})
    assert not told
    assert one == pytest.approx(sharded, rel=0.02)


def test_other_tasks_are_told_nothing() -> None:
    result = planner.estimate(MODEL, "1xH100", {"task": "lora", "global_batch_size": 128}, plan={"mbs": 1})
    assert not any(note.field == "job.fp32_unquantised" for note in result.warnings)


@pytest.mark.parametrize("framework", ["unsloth", "deepspeed", "fsdp", "hf-trainer"])
def test_where_nothing_is_cast_it_has_no_effect(
    framework: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**JOB, "fp32_unquantised": False}
    result = planner.estimate(MODEL, "1xH100", asked, plan={"mbs": 1}, framework=framework)
    told = [note.message for note in result.request.assumptions if note.field == "job.fp32_unquantised"]
    casts = framework == "hf-trainer"
    assert told == ([] if casts else [f"fp32_unquantised has no effect: {framework} casts nothing {_KEPT}"])
    run = command_line(capsys, monkeypatch)
    for option in ("--fp32-unquantised", "--no-fp32-unquantised"):
        words = ("--model", MODEL, "--gpus", "1xH100", "--task", "qlora", "--framework", framework, option)
        code, _, err = run("estimate", *words)
        assert (code == 0) is casts
        if not casts:
            refused = f"error: job.fp32_unquantised: has no effect: {framework} casts nothing {_KEPT}"
            assert err == f"{refused}. Hint: --framework hf-trainer, or leave it out\n"
    assert run("search", *words[:6], "--framework", f"{framework},hf-trainer", option, "--evaluations", "9")[0] == 0
