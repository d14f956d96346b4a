"""What waiting for every kernel costs, as BigScience measured it: 200B parameters on Jean Zay's A100 nodes.

Its chronicles (bigscience, train/tr11-176B-ml/chronicles-prequel.md) give TFLOP/s in proportion to the inverse of the
step time. 80 GPUs, 512 sequences: 97.20 without CUDA_LAUNCH_BLOCKING, 91.04 with it; 2048 sequences take 844.81 s at
98.87. 160 GPUs, 2048 sequences: 97.07, or 430.21 s, on February 17 without, 90.29 with it. (Its table gives 90.25 for
another run on these without it, as if that had been set all the same.)
"""

from dataclasses import replace

import pytest

from planner.validate.predict import predict_rows
from profiles.stacks import load_stacks
from tests.published import mapped

ROW = {
    "source": "BigScience tr11 prequel (Jean Zay A100)", "framework": "Megatron-DeepSpeed", "notes": "date 02-20",
    "model": "GPT 200B", "layers": "80", "hidden": "14400", "heads": "96", "vocab": "250880",
    "inter_node": "Omni-Path", "tp": "8", "sp": "no", "pp": "10", "micro_batch": "1", "recompute": "full",
    "zero_stage": "1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("num_gpus", "sequences", "without_s", "with_s"),
    [
        (80, 512, 844.81 / 4 * 98.87 / 97.20, 844.81 / 4 * 98.87 / 91.04),
        (160, 2048, 430.21, 430.21 * 97.07 / 90.29),
    ],
)
def test_waiting_for_every_kernel_costs_what_was_measured(
    num_gpus: int, sequences: int, without_s: float, with_s: float
) -> None:
    sizes = {"num_gpus": str(num_gpus), "dp": str(num_gpus // 80), "global_batch_seqs": str(sequences)}
    waits = mapped(**ROW, **sizes)
    assert waits.stack == "megatron-deepspeed-blocking"
    times_s = predict_rows([waits, replace(waits, stack="megatron-deepspeed")], load_stacks()).step_time_s
    assert times_s[0] - times_s[1] == pytest.approx(with_s - without_s, rel=0.3)
