"""What exports for the Trainer's tools leave to nobody's guess: shards as priced, 4 bits as FSDP shards them, MXFP4."""

from typing import Any

import pytest

import planner
from planner.exporters.exported import Exported
from profiles.errors import SpecError


def exported(
    model: str, gpus: str, target: str, task: str, *, plan: dict[str, Any] | None = None, **more: Any
) -> Exported:
    job = {"task": task, "sequence_length": 2048, "global_batch_size": 64, **more}
    found = planner.export(model, gpus, format=target, job=job, plan=plan).exported
    assert found is not None
    return found


@pytest.mark.parametrize("target", ["trl", "accelerate"])
def test_what_is_priced_as_deepspeed_is_not_written_as_fsdp2_with_whole_weights(target: str) -> None:
    """ZeRO 2 of 7B keeps no fp32 shard beside the 16-bit weights there; FSDP2 without resharding has both."""
    found = exported("qwen2.5-7b", "8xH100-SXM-80GB", target, "full", sequence_length=4096, global_batch_size=256)
    files = "\n".join(found.files.values())
    assert "fsdp_reshard_after_forward: true" in files
    assert "fsdp_reshard_after_forward: false" not in files


@pytest.mark.parametrize(("task", "stages"), [("full", "zero 3"), ("lora", "zero 2 or 3")])
def test_refused_zero_1_names_the_stages_that_accelerate_takes(task: str, stages: str) -> None:
    with pytest.raises(SpecError, match=rf"FSDP2 shards gradients too. Hint: {stages}, or --format deepspeed") as found:
        exported("qwen2.5-7b", "8xH100-SXM-80GB", "accelerate", task, plan={"zero_stage": 1})
    assert found.value.field == "plan.zero_stage"


def test_sharded_four_bits_are_stored_in_what_fsdp_shards() -> None:
    found = exported("llama-3-70b", "4xH100-SXM-80GB", "trl", "qlora")
    files = "\n".join(found.files.values())
    assert "fsdp_version: 2" in files
    assert "bnb_4bit_quant_storage: bfloat16" in files


@pytest.mark.parametrize(("target", "model", "said"), [
    ("trl", "gpt-oss-20b", True), ("axolotl", "gpt-oss-20b", True), ("trl", "qwen2.5-7b", False),
    ("llama-factory", "gpt-oss-20b", False),  # loads it with Mxfp4Config(dequantize=True)
])  # fmt: skip
def test_checkpoints_in_mxfp4_need_a_copy_in_sixteen_bits(target: str, model: str, said: bool) -> None:
    found = exported(model, "8xH100-SXM-80GB", target, "lora")
    assert any("those of the checkpoint are in MXFP4" in words for words in found.left_to_you) is said
