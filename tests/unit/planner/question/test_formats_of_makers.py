"""Number formats that one maker's devices or one tool's recipes have."""

import pytest

import planner
from profiles.errors import SpecError


def test_nvfp4_is_nvidias() -> None:
    assert planner.plan("llama-3-8b", "8xB200", {"precision": "nvfp4"}, top=1).fits
    with pytest.raises(SpecError, match=r"MI355X multiplies MXFP4. Hint: mxfp4, fp8 or bf16"):
        planner.plan("llama-3-8b", "8xMI355X", {"precision": "nvfp4"}, top=1)


def test_torchtune_keeps_all_states_in_16_bits_unless_told_otherwise() -> None:
    """8.03 billion weights, gradients and two moments of 2 bytes fit an A100, where 16 bytes of each do not."""
    job = {"task": "full", "sequence_length": 2048, "global_batch_size": 16}
    tuned = planner.plan("llama-3-8b", "1xA100-80GB", job, framework="torchtune", top=1)
    assert tuned.fits
    kept = tuned.request.job
    assert (kept.master_dtype, kept.state_dtype, kept.gradient_dtype) == ("none", "bf16", "bf16")
    assert [note.message for note in tuned.assumptions if note.field == "job.master_dtype"] == [
        "weights and gradients in bf16, without a master copy, as torchtune has them; so are optimizer states"
    ]
    told = planner.plan("llama-3-8b", "1xA100-80GB", {**job, "master_dtype": "fp32"}, framework="torchtune", top=1)
    assert not told.fits
    assert told.request.job.master_dtype == "fp32"
    assert planner.plan("llama-3-8b", "1xA100-80GB", job, framework="fsdp", top=1).request.job.master_dtype == "fp32"


@pytest.mark.parametrize(("framework", "format_"), [("trl", "bf16"), ("fsdp", "bf16"), ("deepspeed", "fp32")])
def test_torchs_adam_keeps_moments_in_the_format_of_what_it_updates(framework, format_) -> None:
    """Weights, gradients and two moments of 2 bytes on one GPU, unless DeepSpeed has an option of its own for them."""
    job = {"task": "full", "sequence_length": 2048, "global_batch_size": 16, "master_dtype": "none"}
    found = planner.estimate("llama-3-8b", "1xH100-80GB", job, framework=framework, plan={"micro_batch_size": 1})
    assert found.request.job.state_dtype == format_
    told = [note.message for note in found.assumptions if note.field == "job.state_dtype"]
    assert told == ["optimizer states in bf16, the format of the weights (not given)"] * (format_ == "bf16")
    parts = found.plans[0].stages[0].memory_parts_bytes
    if format_ == "bf16":
        weights = parts["weights"]
        assert (parts["gradients"], parts["optimizer"]) == pytest.approx((weights, 2 * weights))
    kept = planner.estimate("llama-3-8b", "1xH100-80GB", {**job, "state_dtype": "fp32"}, framework=framework)
    assert kept.request.job.state_dtype == "fp32"


def test_mxfp4_is_amds_and_transformer_engines() -> None:
    """16 billion weights' products at twice the rate of mxfp8, which shows in the step."""
    job = {"sequence_length": 8192, "global_batch_size": 32}
    four, eight = (
        planner.plan("llama-3-8b", "8xMI355X", {**job, "precision": name}, top=1).best for name in ("mxfp4", "mxfp8")
    )
    assert 1.2 < eight.step_time_s / four.step_time_s < 2.0
    with pytest.raises(SpecError, match=r"no framework trains in mxfp4 on B200.*Hint: nvfp4, mxfp8 or bf16"):
        planner.plan("llama-3-8b", "8xB200", {"precision": "mxfp4"}, top=1)
    with pytest.raises(SpecError, match=r"PyTorch FSDP .* no option for mxfp4.* Hint: bf16, or framework megatron"):
        planner.plan("llama-3-8b", "8xMI355X", {"precision": "mxfp4"}, framework="fsdp", top=1)
