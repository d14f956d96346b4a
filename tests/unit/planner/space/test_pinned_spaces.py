"""Pins that leave no plan: the error names what was given, and its hint leads to plans."""

import re
from typing import Any

import pytest

from costmodels.workload import LoraSpec
from planner.question.pins import parse_pins
from profiles.errors import SpecError
from tests.fakes import job
from tests.legal import setting, space


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ({"tp": 3}, "plan.tensor_parallel: must divide num_attention_heads=16; got 3. Hint: 1, 2, 4 or 8"),
        ({"dp": 3}, "plan.data_parallel: must divide global_batch_size=64; got 3. Hint: 1, 2, 4 or 8"),
        ({"tp": 16}, "plan.tensor_parallel: tensor_parallel 16 must divide the 8 devices. Hint: 1, 2, 4 or 8"),
        ({"tp": 4, "pp": 4}, "tensor_parallel 4 x pipeline_parallel 4 must divide the 8 devices"),
        ({"tp": 2, "pp": 1, "dp": 2, "cp": 1}, "plan.data_parallel: 2 x 1 x 2 x 1 .* must equal the 8 devices"),
        ({"mbs": 3}, "plan.micro_batch_size: micro-batch 3 x dp .* must equal the global batch of 64 sequences"),
        (
            {"dp": 8, "tp": 2},
            "plan.data_parallel: tensor_parallel 2 x data_parallel 8 .* 8 devices. Hint: data_parallel 1, 2 or 4$",
        ),
        (
            {"tp": 8, "dp": 4},
            "plan.tensor_parallel: tensor_parallel 8 x data_parallel 4 .* 8 devices. Hint: tensor_parallel 1 or 2$",
        ),
        (
            {"tp": 16, "dp": 16},
            "plan.tensor_parallel: .* the 8 devices. Hint: tensor_parallel 1, 2, 4 or 8, the others 1$",
        ),
        (
            {"ga": 3},
            "plan.num_microbatches: .* x 3 micro-batches must .*. Hint: num_microbatches 1, 2, 4 or 8",
        ),
        ({"ga": 4, "mbs": 4, "dp": 8}, "plan.micro_batch_size: micro-batch 4 x dp 8 x 4 .*. Hint: micro-batch 2$"),
        ({"ga": 3, "mbs": 4, "dp": 8}, "plan.num_microbatches: .*. Hint: num_microbatches 2$"),
        ({"ga": 3, "mbs": 3, "dp": 8}, "plan.num_microbatches: .*. Hint: num_microbatches 4, and micro-batch 2$"),
        ({"vpp": 3, "pp": 2}, "plan.virtual_stages: must divide the 4 layers of a stage; got 3. Hint: 1, 2 or 4"),
        ({"ep": 2}, "plan.expert_parallel: gpt has no experts. Hint: ep 1 and etp 1"),
        ({"schedule": "zb-v"}, "plan.schedule: 'zb-v' is not implemented by megatron. Hint: 1f1b"),
        ({"sp": True, "tp": 1}, "plan.sequence_parallel: needs tensor_parallel > 1"),
        ({"zero": 3, "pp": 2}, "plan.zero_stage: 3 is not combined with pipeline_parallel=2"),
        ({"recompute": "block:9", "pp": 1}, "plan.recompute_layers: must be between 1 and the 8 layers of a stage"),
    ],
    ids=str,
)
def test_a_pin_that_nothing_can_satisfy_is_an_error_about_it(pins: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        space(setting(), **pins)


@pytest.mark.parametrize(
    ("framework", "task", "pins", "field"),
    [
        ("huggingface", "full", {"pp": 2}, "plan.pipeline_parallel"),
        ("huggingface", "full", {"tp": 1, "cp": 2}, "plan.context_parallel"),
        ("huggingface", "full", {"tp": 2, "cp": 2}, "plan.tensor_parallel"),
        ("huggingface", "full", {"ga": 64}, "plan.num_microbatches"),
        ("fsdp", "qlora", {"pp": 2}, "plan.pipeline_parallel"),
        ("nanotron", "pretrain", {"offload_activations": True}, "plan.offload_activations"),
        ("megatron", "pretrain", {"last_stage_layers": 3, "tp": 8}, "plan.last_stage_layers"),
        ("megatron", "pretrain", {"first_stage_layers": 2, "last_stage_layers": 3, "pp": 2}, "plan.pipeline_parallel"),
    ],
)
def test_of_the_dimensions_a_rule_reads_the_one_that_was_given_is_named(
    framework: str, task: str, pins: dict[str, Any], field: str
) -> None:
    adapters = LoraSpec(rank=16) if task == "qlora" else None
    with pytest.raises(SpecError) as caught:
        space(setting(framework=framework, job=job(task=task, lora=adapters)), **pins)
    assert caught.value.field == field


@pytest.mark.parametrize("pins", [{"ga": 3, "dp": 8}, {"ga": 3, "mbs": 4, "dp": 8}, {"ga": 4, "mbs": 4, "dp": 8}])
def test_what_a_batch_is_told_to_change_fits_what_else_is_given(pins: dict[str, int]) -> None:
    """The change of the hint, made, leaves plans: no hint sends to the next error."""
    with pytest.raises(SpecError) as caught:
        space(setting(), **pins)
    name = caught.value.field.removeprefix("plan.")
    for value in map(int, re.findall(r"\d+", caught.value.hint)):
        kept = {key: each for key, each in parse_pins(pins).items() if key != name}
        assert len(space(setting(), **kept, **{name: value}).plans) > 0
