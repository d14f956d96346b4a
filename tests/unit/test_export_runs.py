"""What exports say of how kernels run: optimizers, attention, queues."""

from typing import Any

import pytest

from planner.exporters.trainer import script_notes
from tests.exported import export, options, plan_of, request_of, script_words

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}


@pytest.mark.parametrize(
    ("format", "zero", "name"),
    [("accelerate", 3, "adamw_torch_8bit"), ("accelerate", 0, "adamw_bnb_8bit"), ("deepspeed", 3, "adamw_bnb_8bit")],
)
def test_eight_bit_states_are_of_who_can_shard_them(format: str, zero: int, name: str) -> None:
    """bitsandbytes' kernels do not take the tensors of FSDP2 (its issue 1633)."""
    job = JOB | {"task": "full", "optimizer": "adamw8bit"}
    exported = export(
        format, plan_of(request := request_of("llama-3-8b", "8xA100-80GB", "huggingface", **job), zero=zero), request
    )
    assert options(script_words(exported))["--optim"] == [name]
    loads = any("from_pretrained(dtype=torch.float32)" in words for words in exported.left_to_you)
    assert loads is (format == "accelerate")


@pytest.mark.parametrize(
    ("library", "backend"), [("", "auto"), ("flash_2", "flash"), ("flash_3", "flash"), ("cudnn", "fused")]
)
def test_the_attention_that_was_priced_is_named(library: str, backend: str) -> None:
    job = JOB | ({"attention_library": library} if library else {})
    request = request_of("llama-3-8b", "8xH100", "megatron", **job)
    exported = export("megatron_lm", plan_of(request, tp=2), request)
    assert options(script_words(exported))["--attention-backend"] == [backend]
    trainer = request_of("llama-3-8b", "8xH100", "huggingface", task="full", **job)
    (words,) = (words for words in script_notes(trainer) if words.startswith("attention"))
    assert ("flash_attention_3" in words) is (library == "flash_3")


@pytest.mark.parametrize(("stack", "connections"), [("megatron-core", "1"), ("megatron-core-ep-overlap", None)])
def test_an_exchange_beside_kernels_has_a_queue_of_its_own(stack: str, connections: str | None) -> None:
    request = request_of("qwen3-30b-a3b", "8xH100", stack, **JOB)
    exported = export("megatron_lm", plan_of(request, tp=2, sp=True, ep=4, zero=1), request)
    assert exported.environment.get("CUDA_DEVICE_MAX_CONNECTIONS") == connections
