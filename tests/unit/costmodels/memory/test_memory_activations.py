"""Activations of one layer, tensor by tensor: what each option adds to or takes from the bytes kept."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.memory.activations import (
    LayerActivations,
    embedding_activations,
    layer_activations,
    output_activations,
)
from costmodels.memory.logits import logits_bytes
from costmodels.memory.stage_activations import stage_activations
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from costmodels.stages.table import stage_table
from costmodels.workload import LoraSpec, TrainingJob
from profiles.model import ModelSpec
from profiles.stack import StackSpec
from profiles.stacks import load_stacks
from tests.fakes import context, gpt, job, latent, llama, mixture, stack

H, A, F, S = 1024, 16, 4096, 2048
TOKENS = 2 * S


def one(
    plan: ExecutionPlan | None = None,
    *,
    model: ModelSpec | None = None,
    on: TrainingJob | None = None,
    using: StackSpec | None = None,
    moe: bool = False,
) -> LayerActivations:
    batch = PlanBatch.from_plans([plan or ExecutionPlan(micro_batch_size=2)])
    return layer_activations(batch, model or gpt(), on or job(), using or stack(), moe=moe)


def whole(plan: ExecutionPlan | None = None, **options) -> float:
    return float(one(plan, **options).whole[0])


def test_gpt_layer_with_flash_attention():
    # Two norm inputs, two linear inputs, q, k, v and the attention output, twice the MLP's 4h; one logsumexp.
    assert whole() == pytest.approx(TOKENS * (2 * 8 * H + 2 * 2 * F + 4 * A))


def test_unfused_attention_keeps_scores_instead_of_the_logsumexp():
    plain = whole(on=job(attention="unfused"))
    assert plain - whole() == pytest.approx(TOKENS * (2 * A * S - 4 * A))


def test_repeated_keys_and_values_are_kept_as_wide_as_queries() -> None:
    """Four of sixteen heads: 2 x 16-bit keys and values of h/4 become such of h, split like queries."""
    model = llama(num_key_value_heads=4)
    once, repeated = (whole(model=model, using=stack(repeats_key_values=flag)) for flag in (False, True))
    assert repeated - once == pytest.approx(TOKENS * 2 * 2 * (H - H / 4))
    split = ExecutionPlan(micro_batch_size=2, tensor_parallel=8)  # a head a rank at least, of four two copies each
    once, repeated = (whole(split, model=model, using=stack(repeats_key_values=flag)) for flag in (False, True))
    assert repeated - once == pytest.approx(TOKENS * 2 * 2 * (H / 8 - H / 16))


@pytest.mark.parametrize(("model", "copies"), [(gpt(), 2), (llama(), 3)])
def test_products_of_their_own_keep_copies_of_their_input_under_tensor_parallelism(model, copies) -> None:
    """Three of attention's input in place of one, two of a gated MLP's; none where nothing is split by columns."""
    for plan, more in (
        (ExecutionPlan(micro_batch_size=2, tensor_parallel=2), copies),
        (ExecutionPlan(micro_batch_size=2, tensor_parallel=2, sequence_parallel=True), 0),
        (ExecutionPlan(micro_batch_size=2), 0),
    ):
        apart, joint = (whole(plan, model=model, using=stack(separate_products=flag)) for flag in (True, False))
        assert apart - joint == pytest.approx(more * TOKENS * 2 * H)


def test_fp32_softmax_doubles_the_scores() -> None:
    plain = job(attention="unfused")
    wider = whole(on=plain, using=stack(score_bytes=4)) - whole(on=plain)
    assert wider == pytest.approx(TOKENS * 2 * A * S)
    assert whole(using=stack(score_bytes=4)) == whole()  # flash attention keeps none


def test_sharded_logits_may_take_other_copies() -> None:
    using = stack(logits_fp32_copies=1, sharded_logits_fp32_copies=4)
    batch = PlanBatch.from_columns(2, tensor_parallel=[1, 4], micro_batch_size=2)
    assert logits_bytes(batch, gpt(), job(), using) == pytest.approx([TOKENS * 32768 * 6, TOKENS * 32768 * 18 / 4])


def test_dropout_adds_masks_and_the_dropped_scores():
    unfused, dropped = (job(attention="unfused", dropout=flag) for flag in (False, True))
    assert whole(on=dropped) - whole(on=unfused) == pytest.approx(TOKENS * (3 * A * S + 2 * H))


def test_an_fp32_softmax_with_a_cast_has_two_gradients_in_fp32_and_no_cast_any_more():
    plain = job(attention="unfused", sequence_length=4 * S)
    more = one(on=plain, using=stack(score_bytes=6)).backward - one(on=plain).backward
    assert more == pytest.approx(4 * TOKENS * (2 * 4 - 2 - 2) * A * 4 * S)
    assert one(on=plain, using=stack(score_bytes=4)).backward == one(on=plain).backward  # a compiler casts on the way


def test_gated_mlp_keeps_three_inner_tensors_and_an_unfused_gate_a_fourth():
    gated = whole(model=gpt(gated_mlp=True))
    assert gated - whole() == pytest.approx(TOKENS * 2 * F)
    unfused = whole(model=gpt(gated_mlp=True), using=stack(fused_gate=False))
    assert unfused - gated == pytest.approx(TOKENS * 2 * F)


def test_unfused_norms_keep_an_fp32_copy_and_the_normalised_tensor():
    model, using = gpt(rms_norm=True), stack(fused_norm=False)
    assert whole(model=model, using=using) - whole(model=model) == pytest.approx(TOKENS * 2 * 4 * H)
    assert whole(using=using) == whole()  # LayerNorm is one kernel everywhere


def test_values_that_are_a_view_keep_queries_and_keys_before_rotation():
    joint = stack(joint_projection=True)
    assert whole(using=joint) - whole() == pytest.approx(TOKENS * 2 * 2 * H)
    assert whole(model=gpt(learned_positions=S), using=joint) == whole()
    grouped, copied = llama(), stack(repeats_key_values=True)
    assert whole(model=grouped, using=stack(repeats_key_values=True, joint_projection=True)) == whole(
        model=grouped, using=copied
    )


def test_unfused_attention_has_a_gradient_as_large_as_its_scores():
    """By then the MLP's tensors are gone: input and output of its activation, 2 x 2 bytes of 4h."""
    plain = one(on=job(attention="unfused")).backward - TOKENS * 2 * 2 * H
    assert plain[0] == pytest.approx(TOKENS * (2 * A * S - 2 * 2 * F))
    short = one(on=job(attention="unfused", sequence_length=64)).backward - 2 * 64 * 2 * 2 * H
    assert short[0] == pytest.approx(2 * 64 * 2 * 2 * F)  # the MLP's own gradients


def test_grouped_queries_shrink_keys_and_values():
    grouped = gpt(num_key_value_heads=4)
    assert whole() - whole(model=grouped) == pytest.approx(TOKENS * 2 * 2 * (16 - 4) * 64)


def test_tensor_parallel_splits_keys_only_down_to_one_head():
    grouped = gpt(num_key_value_heads=2)
    plan = ExecutionPlan(micro_batch_size=2, tensor_parallel=8, sequence_parallel=True)
    sharded = (2 * 4 * H + 2 * 2 * H + 2 * 2 * F + 4 * A) / 8  # residual stream and norms, q and out, MLP
    assert whole(plan, model=grouped) == pytest.approx(TOKENS * (sharded + 2 * 2 * 2 * 64 / 2))


def test_sequence_parallel_splits_norms_and_context_parallel_everything():
    tensor = ExecutionPlan(micro_batch_size=2, tensor_parallel=4)
    sequence = replace(tensor, sequence_parallel=True)
    assert whole(tensor) - whole(sequence) == pytest.approx(TOKENS * 8 * H * 3 / 4)
    assert whole(sequence) == pytest.approx(whole() / 4)
    assert whole(ExecutionPlan(micro_batch_size=2, context_parallel=4)) == pytest.approx(whole() / 4)


def test_fp8_keeps_quantised_linear_inputs_beside_the_attention_output():
    # Inputs of both first linears and of the second MLP matrix shrink; a copy of the output is added.
    assert whole() - whole(on=job(precision="fp8")) == pytest.approx(TOKENS * (2 * H + F - H))


def test_inputs_of_activations_kept_in_8_bits_halve() -> None:
    """Gate and up, or the one input of an ungated MLP; what the second matrix keeps stays in 16 bits."""
    for model, inputs in ((gpt(), 1), (llama(), 2)):
        saved = whole(model=model) - whole(model=model, on=job(fp8_activation=True))
        assert saved == pytest.approx(TOKENS * inputs * model.ffn_hidden_size)
    plain, small = (job(precision="fp32", fp8_activation=flag) for flag in (False, True))
    assert whole(on=plain) - whole(on=small) == pytest.approx(TOKENS * 3 * F)


def test_attention_kept_in_8_bits_shares_no_output_with_the_layer_behind() -> None:
    """Queries, keys, values and output take a byte less each; the projection's 16-bit input was the output before."""
    assert whole() - whole(on=job(fp8_attention=True)) == pytest.approx(TOKENS * (4 * H - 2 * H))
    frozen, small = (job(task="lora", lora=LoraSpec(targets=("q",)), fp8_attention=flag) for flag in (False, True))
    assert whole(on=frozen) - whole(on=small) == pytest.approx(TOKENS * 4 * H)  # no adapter, no input


def test_adapters_beside_8_bit_products_keep_16_bit_inputs() -> None:
    lora = LoraSpec(targets=("q", "k", "v", "gate"))
    plain, small = (job(task="lora", lora=lora, precision=name) for name in ("bf16", "fp8"))
    assert whole(on=small) == whole(on=plain)


def test_fp32_doubles_all_but_the_logsumexp():
    assert whole(on=job(precision="fp32")) == pytest.approx(2 * whole() - TOKENS * 4 * A)


@pytest.mark.parametrize(
    ("targets", "dropped_per_token"),
    [(("q", "v"), 2 * H + 2 * F), (("q", "gate"), 2 * F), (("down",), 2 * 2 * H), (("q", "up", "down"), 0)],
    ids=str,
)
def test_frozen_linears_keep_only_what_an_adapter_needs(targets, dropped_per_token):
    lora = job(task="lora", lora=LoraSpec(targets=targets))
    assert whole() - whole(on=lora) == pytest.approx(TOKENS * dropped_per_token)


@pytest.mark.parametrize(
    ("targets", "copies", "joint"), [(("q", "v"), 2, False), (("q", "v"), 1, True), (("q", "gate", "up"), 3, False)]
)
def test_adapters_with_dropout_keep_copies_and_masks_of_their_inputs(targets, copies, joint):
    dropped, shared = (job(task="lora", lora=LoraSpec(targets=targets, dropout=flag)) for flag in (True, False))
    using = stack(joint_projection=joint)
    inputs = 2 if "gate" in targets else 1
    added = whole(on=dropped, using=using) - whole(on=shared, using=using)
    assert added == pytest.approx(TOKENS * H * (copies * (2 + 1) - inputs * 2))


def test_dropout_before_the_last_matrix_keeps_a_copy_of_mlp_width():
    dropped, shared = (job(task="lora", lora=LoraSpec(targets=("down",), dropout=flag)) for flag in (True, False))
    assert whole(on=dropped) - whole(on=shared) == pytest.approx(TOKENS * F)


def test_adapters_on_some_of_a_joint_projection_keep_what_they_add():
    def more(*targets: str) -> float:
        on = job(task="lora", lora=LoraSpec(targets=targets))
        return whole(on=on, using=stack(joint_projection=True)) - whole(on=on) - TOKENS * 2 * 2 * H

    assert more("q", "v") == pytest.approx(TOKENS * 2 * 2 * H)
    assert more("q", "k", "v") == pytest.approx(0)


def test_quantised_layers_may_keep_inputs_of_two_micro_batches():
    lora = LoraSpec(targets=("q",))
    keeps, once = stack(keeps_quantised_inputs=2), stack(keeps_quantised_inputs=1)
    added = whole(on=job(task="qlora", lora=lora), using=once) - whole(on=job(task="qlora", lora=lora))
    assert added == pytest.approx(TOKENS * 2 * (H + F))  # the output of attention is kept anyway
    before = whole(on=job(task="qlora", lora=lora), using=keeps) - whole(on=job(task="qlora", lora=lora), using=once)
    assert before == pytest.approx(TOKENS * 2 * (2 * H + H + F))
    assert whole(on=job(task="lora", lora=lora), using=keeps) == whole(on=job(task="lora", lora=lora))


def test_unfused_attention_of_a_frozen_output_projection_keeps_no_output():
    lora = job(task="lora", lora=LoraSpec(targets=("q",)), attention="unfused")
    with_output = replace(lora, lora=LoraSpec(targets=("q", "o")))
    assert whole(on=with_output) - whole(on=lora) == pytest.approx(TOKENS * 2 * H)


def test_parallel_residual_shares_one_input():
    parallel = gpt(parallel_residual=True, norms_per_layer=1)
    assert whole() - whole(model=parallel) == pytest.approx(TOKENS * 2 * 2 * H)


def test_query_and_key_norms_keep_their_inputs():
    assert whole(model=gpt(qk_norm=True)) - whole() == pytest.approx(TOKENS * 2 * 2 * H)


def test_latent_attention_keeps_compressed_and_expanded_tensors():
    compressed = 2 * 2 * (384 + 256) + 2 * 32
    expanded = 2 * A * ((64 + 32) + (64 + 32) + 64 + 64) + 4 * A  # queries, keys, values, output
    expected = 2 * 4 * H + compressed + expanded + 2 * 2 * F
    assert whole(model=latent()) == pytest.approx(TOKENS * expected)


def test_experts_keep_routed_copies():
    # llama() attention; two copies of every token in experts of width 1408, a shared expert of 2816.
    attention = 2 * (6 * H + 2 * 4 * 64) + 4 * A
    experts = 2 * (2 * 2 * H + 3 * 2 * 1408) + 3 * 2 * 2816 + 2 * 4 * 8
    assert whole(model=mixture(), moe=True) == pytest.approx(TOKENS * (attention + experts))


def test_probabilities_applied_inside_experts_leave_their_outputs_unkept():
    inside = whole(model=mixture(), moe=True, using=stack(weighs_expert_outputs=False))
    assert whole(model=mixture(), moe=True) - inside == pytest.approx(TOKENS * 2 * 2 * H)


def test_expert_tensor_parallel_gathers_tokens_and_splits_widths():
    plan = ExecutionPlan(micro_batch_size=2, tensor_parallel=4, sequence_parallel=True)
    spread = whole(plan, model=mixture(), moe=True)
    split = whole(replace(plan, expert_tensor_parallel=4), model=mixture(), moe=True)
    # Whole experts on each rank: 2/4 copies per token. Split ones: all copies, inner tensors by 4.
    assert split - spread == pytest.approx(TOKENS * 2 * (1 - 1 / 4) * 2 * 2 * H)


def test_layer_input_is_what_full_recomputation_keeps():
    assert one().layer_input[0] == TOKENS * 2 * H
    sharded = one(ExecutionPlan(micro_batch_size=2, tensor_parallel=2, sequence_parallel=True))
    assert sharded.layer_input[0] == TOKENS * H


def test_ends_of_the_model():
    batch = PlanBatch.from_plans([ExecutionPlan(micro_batch_size=2, tensor_parallel=4, sequence_parallel=True)])
    assert output_activations(batch, gpt(), job())[0] == TOKENS * 4 * H / 4
    assert embedding_activations(batch, gpt(), job(dropout=True))[0] == TOKENS * H / 4
    assert embedding_activations(batch, gpt(), job())[0] == 0
    logits = logits_bytes(batch, gpt(), job(), stack(logits_fp32_copies=2))
    assert logits[0] == TOKENS * 32768 * (2 + 2 * 4) / 4
    assert logits_bytes(batch, gpt(), job(fused_cross_entropy=True), stack())[0] == TOKENS * 32768 * 2 / 4


@pytest.mark.parametrize(
    ("name", "bytes_per_logit"),
    # Three fp32 tensors: log-probabilities, their gradient, that of the logits. Before transformers 4.49 they are those
    # of a shifted copy. Published peaks of the Trainer of then take four, and the 16-bit logits.
    [("deepspeed", 12), ("hf-trainer", 12), ("deepspeed-2024", 12), ("xtuner", 12), ("hf-trainer-2024", 18)],
)
def test_logits_of_hugging_face_are_three_times_in_fp32_at_the_loss(name, bytes_per_logit):
    plan = PlanBatch.from_plans([ExecutionPlan(micro_batch_size=2, zero_stage=3, data_parallel=2)])
    logits = logits_bytes(plan, gpt(), job(), load_stacks()[name])
    assert logits[0] == TOKENS * 32768 * bytes_per_logit


def kept(plan: ExecutionPlan, *, stage: int = 0, model: ModelSpec | None = None, **options) -> float:
    where = context(model=model or gpt(), **options)
    batch = PlanBatch.from_plans([plan])
    stages = stage_table(batch, where.model, full=True)
    return float(stage_activations(batch, stages, where).kept[0, stage])


def test_stage_holds_its_layers_for_every_micro_batch_in_flight():
    plan = ExecutionPlan(pipeline_parallel=4, num_microbatches=16)
    layer = whole(ExecutionPlan())
    assert kept(plan) == pytest.approx(4 * 2 * layer)
    assert kept(plan, stage=3) == pytest.approx(1 * 2 * layer + S * 4 * H)
    assert kept(replace(plan, num_microbatches=2)) == pytest.approx(2 * 2 * layer)


def test_recomputation_of_whole_layers():
    full = ExecutionPlan(recompute=Recompute.FULL, micro_batch_size=2)
    inputs = 8 * 2 * H * TOKENS + output_activations(PlanBatch.from_plans([full]), gpt(), job())[0]
    assert kept(full) == pytest.approx(inputs)
    block = replace(full, recompute=Recompute.BLOCK, recompute_layers=3)
    assert kept(block) == pytest.approx(inputs + 5 * (whole() - 2 * H * TOKENS))
    assert kept(replace(block, recompute_layers=99)) == pytest.approx(inputs)


def test_selective_recomputation_drops_the_attention_core():
    on = job(attention="unfused", dropout=True)
    plan = ExecutionPlan(micro_batch_size=2)
    saved = kept(plan, job=on) - kept(replace(plan, recompute=Recompute.SELECTIVE), job=on)
    assert saved == pytest.approx(8 * TOKENS * 5 * A * S)


def test_working_set_recomputes_one_layer():
    batch = PlanBatch.from_columns(3, recompute=[0, 2, 3], recompute_layers=[0, 0, 1], micro_batch_size=2)
    where = context()
    working = stage_activations(batch, stage_table(batch, where.model), where).working
    again = whole() - 2 * H * TOKENS
    np.testing.assert_allclose(working[1:] - working[0], again)


def test_mixed_layers_recompute_in_proportion():
    model = mixture(moe={"first_dense_layers": 4})
    plan = ExecutionPlan(micro_batch_size=2)
    dense, sparse = whole(model=model), whole(model=model, moe=True)
    ends = output_activations(PlanBatch.from_plans([plan]), model, job())[0]
    assert kept(plan, model=model) == pytest.approx(4 * dense + 4 * sparse + ends)
    half = replace(plan, recompute=Recompute.BLOCK, recompute_layers=4)
    both = dense + sparse
    assert kept(half, model=model) == pytest.approx(4 * both - 2 * (both - 2 * 2 * H * TOKENS) + ends)


def offloaded(plan: ExecutionPlan) -> tuple[float, float, float]:
    """Bytes on the device, on the host, and moved per micro-batch, on one stage."""
    where, batch = context(), PlanBatch.from_plans([plan])
    held = stage_activations(batch, stage_table(batch, where.model, full=True), where)
    assert held.offloaded is not None
    assert held.moved is not None
    return float(held.kept[0, 0]), float(held.offloaded[0, 0]), float(held.moved[0, 0])


OUTPUT = 2 * 2 * H * S  # final norm and head of one sequence, which stay


def test_offloaded_checkpoints_leave_two_on_the_device():
    checkpoint = 2 * H * S
    plan = ExecutionPlan(offload_activations=True, recompute=Recompute.FULL)
    assert offloaded(plan) == pytest.approx((2 * checkpoint + OUTPUT, 6 * checkpoint, 8 * checkpoint))


def test_only_checkpoints_leave_where_some_layers_are_recomputed():
    checkpoint = 2 * H * S
    plan = ExecutionPlan(offload_activations=True, recompute=Recompute.BLOCK, recompute_layers=3)
    everything = kept(replace(plan, offload_activations=False))
    assert offloaded(plan) == pytest.approx((everything - checkpoint, checkpoint, 3 * checkpoint))


def test_whole_layers_leave_where_nothing_is_recomputed():
    layer = (kept(ExecutionPlan()) - OUTPUT) / 8
    assert offloaded(ExecutionPlan(offload_activations=True)) == pytest.approx(
        (2 * layer + OUTPUT, 6 * layer, 8 * layer)
    )


def test_llama_layer_matches_its_parts():
    f = 2816
    assert whole(model=llama()) == pytest.approx(TOKENS * (2 * 6 * H + 4 * 4 * 64 + 4 * A + 3 * 2 * f))
