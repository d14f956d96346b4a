"""4-bit weights that PyTorch unpacks, one operation after another: what is moved and kept, counted by hand."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelOp
from costmodels.lowering.attention import lower_attention
from costmodels.lowering.boundary import lower_head
from costmodels.lowering.calls import PartCosts, Phase
from costmodels.lowering.prices import price_parts
from costmodels.lowering.shapes import rank_shapes
from costmodels.memory.activations import layer_activations
from costmodels.memory.logits import logits_bytes
from costmodels.memory.model_state import dequantised_bytes
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.stages.table import stage_table
from costmodels.workload import LoraSpec
from profiles.parameters import layer_parameters
from profiles.precision import NF4_BYTES
from profiles.stacks import load_stacks
from tests.fakes import UnitKernels, context, job, llama, stack
from tests.published import mapped

MODEL = llama()
H, V = MODEL.hidden_size, MODEL.vocab_size
QLORA = job(task="qlora", lora=LoraSpec(rank=8, targets=("q",)))
PLANS = PlanBatch.from_plans([ExecutionPlan()])
PACKED, UNPACKED = stack(), stack(unpacks_weights=True)
BYTES = UnitKernels(ops=(KernelOp.MEMORY,), quantity="bytes")


def lowered(lower, using) -> PartCosts:
    where: CostContext = context(model=MODEL, job=QLORA, stack=using, kernels=BYTES)
    return price_parts([lower(rank_shapes(PLANS, where, experts=True)[0], where)])[0]


def test_a_weight_is_unpacked_in_the_forward_pass_alone() -> None:
    """Into 32 bits, 8, masked, less its zero, scaled: sixteen and a half bytes a weight."""
    matrices = (2 + 2 * MODEL.num_key_value_heads / MODEL.num_attention_heads) * H * H
    one, many = (lowered(lower_attention, using).kernel_s[:, 0] for using in (PACKED, UNPACKED))
    assert many[Phase.FORWARD] - one[Phase.FORWARD] == pytest.approx((16.5 - 2 - NF4_BYTES) * matrices)
    assert one[Phase.INPUT_GRADIENT] - many[Phase.INPUT_GRADIENT] == pytest.approx((2 + NF4_BYTES) * matrices)


def test_unpacking_a_weight_takes_nine_kernels() -> None:
    one, many = (lowered(lower_attention, using).launches[:, 0] for using in (PACKED, UNPACKED))
    products = 2  # queries, keys and values together, and the output
    assert many[Phase.FORWARD] - one[Phase.FORWARD] == (9 - 3) * products  # bitsandbytes takes three
    assert one[Phase.INPUT_GRADIENT] - many[Phase.INPUT_GRADIENT] == 3 * products


@pytest.mark.parametrize("using", [PACKED, UNPACKED], ids=("packed", "unpacked"))
def test_a_head_in_16_bits_is_not_restored(using) -> None:
    plain, restored = (
        lowered(lower_head, replace(using, quantises_head=quantised)).kernel_s[:, 0] for quantised in (False, True)
    )
    more = 16.5 if using.unpacks_weights else 2 + NF4_BYTES
    assert restored[Phase.FORWARD] - plain[Phase.FORWARD] == pytest.approx(more * H * V)


def test_unpacked_weights_stay_until_their_backward_product() -> None:
    """Those of a layer in 16 bits, while it is differentiated; and one matrix in 32 bits and in 8 on its way there."""
    one, many = (layer_activations(PLANS, MODEL, QLORA, using, moe=False) for using in (PACKED, UNPACKED))
    assert many.whole - one.whole == pytest.approx([2 * layer_parameters(MODEL, moe=False).total])
    assert many.layer_input == pytest.approx(one.layer_input)
    lora = job(task="lora", lora=LoraSpec(rank=8))
    plain, same = (layer_activations(PLANS, MODEL, lora, using, moe=False) for using in (PACKED, UNPACKED))
    assert plain.whole == pytest.approx(same.whole)
    stages = stage_table(PLANS, MODEL)
    one, many = (
        dequantised_bytes(PLANS, stages, context(model=MODEL, job=QLORA, stack=using)) for using in (PACKED, UNPACKED)
    )
    np.testing.assert_allclose(many / one, 5 / 2)


def test_qwen_s_qlora_runs_under_deepspeed_on_unpacked_weights() -> None:
    """Adapters have fp32 masters there, and a loss of 16-bit logits holds three of them."""
    notes = "lora r=64, DeepSpeed ZeRO-2 for its fp16 loss scaling"
    cells = {"framework": "transformers + PEFT (Qwen finetune.py)", "precision": "fp16, gptq int4 weights"}
    row = mapped(**cells, task="lora", notes=notes)
    assert (row.stack, row.job.task, row.job.master_dtype) == ("deepspeed-gptq", "qlora", "fp32")
    using = load_stacks()[row.stack]
    assert using.unpacks_weights
    tokens = QLORA.sequence_length
    assert logits_bytes(PLANS, MODEL, QLORA, using) == pytest.approx([3 * 2 * V * tokens])
    assert mapped(**cells, task="lora", notes="lora r=64").stack == "hf-trainer-2024"
