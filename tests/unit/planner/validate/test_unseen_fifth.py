"""What the notes of the fifth round taught to read."""

import pytest

from tests.published import mapped


@pytest.mark.parametrize(
    ("notes", "dropped"),
    [("learned positions, dropout 0.1, no bias", True), ("dropout 0.05 on all; mock data", True),
     ("dropout 0.0", False), ("no dropout 0.1", False), ("lora_dropout 0.1", False), ("", False)],
)  # fmt: skip
def test_notes_give_the_rate_of_dropout(notes, dropped):
    assert mapped(framework="Megatron-Core", notes=notes).job.dropout == dropped
    assert not mapped(framework="Megatron-Core", task="full", notes=notes).job.dropout


def test_moments_may_be_longer_than_weights_that_have_no_copy():
    job = mapped(framework="Megatron-Core", notes="16-bit weights, fp32 moments, no master copy (FusedAdam)").job
    assert (job.master_dtype, job.state_dtype, job.gradient_dtype) == ("none", "fp32", "bf16")


@pytest.mark.parametrize(("notes", "fused"), [("CE fusion", True), ("no recomputation, no CE fusion", False)])
def test_a_fusion_that_is_denied_is_none(notes, fused):
    assert mapped(framework="Megatron-Core", notes=notes).job.fused_cross_entropy == fused
