from itertools import product

import numpy as np
import pytest

from costmodels.plan import ExecutionPlan, PlanBatch, Schedule
from costmodels.stages.parameters import StageParameters, stage_parameters
from costmodels.stages.table import StageTable, stage_table
from costmodels.workload import LoraSpec
from profiles.adapter_parameters import total_lora_parameters
from profiles.parameters import embedding_parameters, layer_parameters, total_parameters
from tests.fakes import GPT3, gpt, hybrid, job, latent, llama, mixture

MODELS = {
    "gpt": gpt(),
    "biased": gpt(qkv_bias=True, attention_out_bias=True, mlp_bias=True),
    "gpt3": GPT3,
    "bloom": gpt(embedding_norm=True, head_bias=True),
    "llama": llama(),
    "latent": latent(),
    "mixture": mixture(),
    "deepseek": mixture(moe={"first_dense_layers": 3}),
    "hybrid": hybrid(),
    "mixed hybrid": hybrid(moe=mixture().moe),
    "kimi": hybrid(linear={"kind": "kimi_delta", "num_key_heads": 16}),
    "maverick": mixture(moe={"layer_interval": 2}),
}


def counted(
    plans: list[ExecutionPlan], model, task=None, *, full=True
) -> tuple[PlanBatch, StageTable, StageParameters]:
    batch = PlanBatch.from_plans(plans)
    table = stage_table(batch, model, full=full)
    return batch, table, stage_parameters(batch, table, model, task or job())


@pytest.mark.parametrize("name", MODELS)
def test_unsharded_stages_add_up_to_the_model(name):
    model = MODELS[name]
    plans = [
        ExecutionPlan(pipeline_parallel=p, virtual_stages=v, schedule=how)
        for p, v, how in product((1, 2, 4), (1, 2), (Schedule.ONE_F_ONE_B, Schedule.ZERO_BUBBLE_V))
    ]
    _, table, held = counted(plans, model)
    total = ((held.dense + held.expert) * table.count).sum(axis=1)
    # A tied head is a copy of the embedding unless both are on one stage.
    apart = table.has_head & ~table.has_embedding
    copies = apart.any(axis=1) * embedding_parameters(model) * model.tie_word_embeddings
    assert total == pytest.approx(total_parameters(model) + copies, rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("t", "e", "etp"), [(2, 1, 1), (4, 4, 1), (4, 8, 4), (2, 2, 2)])
def test_sharding_conserves_parameters(name, t, e, etp):
    """Summed over ranks, every sharded weight counts once and every replicated one t times."""
    model = MODELS[name]
    plan = ExecutionPlan(tensor_parallel=t, expert_parallel=e, expert_tensor_parallel=etp, data_parallel=8)
    _, _, held = counted([plan], model)
    dense_layers = model.num_layers - model.num_moe_layers
    replicated = dense_layers * layer_parameters(model, moe=False).replicated
    if model.num_moe_layers:
        mixed = layer_parameters(model, moe=True)
        replicated += model.num_moe_layers * mixed.replicated
        assert held.expert * e * etp == pytest.approx(model.num_moe_layers * mixed.routed_experts)
    norms = 2 if model.embedding_norm else 1
    replicated += norms * model.hidden_size * (1 if model.rms_norm else 2) + model.learned_positions * model.hidden_size
    total = held.dense * t - (t - 1) * replicated + held.expert * e * etp
    assert total == pytest.approx(total_parameters(model), rel=1e-12)


def test_ranks_beyond_the_key_value_heads_hold_a_whole_one():
    model = llama(num_key_value_heads=2)
    _, _, held = counted([ExecutionPlan(tensor_parallel=t) for t in (1, 2, 8)], model)
    h, f, vocabulary, norms = 1024, 2816, 32768, (8 * 2 + 1) * 1024
    per_rank = [
        norms + 2 * vocabulary * h / t + 8 * (2 * h * h / t + 3 * h * f / t + 2 * h * 64 * max(2 / t, 1))
        for t in (1, 2, 8)
    ]
    assert held.dense[:, 0] == pytest.approx(per_rank, rel=1e-12)


def test_gpt3_on_the_megatron_layout():
    """175 B over t = 8, p = 16: 6 layers of 12 h^2 / 8 on a middle stage (arXiv:2104.04473 section 5.1)."""
    _, _, held = counted([ExecutionPlan(tensor_parallel=8, pipeline_parallel=16)], GPT3)
    assert held.dense[0, 1] == pytest.approx(6 * 12 * 12288**2 / 8, rel=1e-3)
    assert held.dense[0, 0] - held.dense[0, 1] == pytest.approx(51200 * 12288 / 8 + 2048 * 12288)
    assert held.dense[0, -1] - held.dense[0, 1] == pytest.approx(51200 * 12288 / 8 + 2 * 12288)


def test_row_parallel_biases_of_experts_are_whole_on_each_expert_tensor_rank():
    model = mixture(mlp_bias=True, moe={"shared_ffn_hidden_size": 0})
    _, _, held = counted([ExecutionPlan(expert_parallel=2, expert_tensor_parallel=4, tensor_parallel=4)], model)
    # Four experts here, each with a quarter of three matrices and of two biases, and one bias in full.
    assert held.expert[0, 0] == pytest.approx(8 * 4 * ((3 * 1024 * 1408 + 2 * 1408) / 4 + 1024))


def test_replicas():
    plans = [
        ExecutionPlan(tensor_parallel=4, data_parallel=8, context_parallel=2),
        ExecutionPlan(tensor_parallel=4, data_parallel=8, context_parallel=2, expert_parallel=8),
        ExecutionPlan(
            tensor_parallel=4, data_parallel=8, context_parallel=2, expert_parallel=8, expert_tensor_parallel=4
        ),
    ]
    _, _, held = counted(plans, mixture())
    assert held.dense_replicas.tolist() == [16, 16, 16]
    assert held.expert_replicas.tolist() == [64, 8, 2]


def test_published_adapter_count():
    """PEFT prints 4194304 trainable parameters for Llama-7B, rank 8 on q and v (ymcui/Chinese-LLaMA-Alpaca #189)."""
    model = llama(
        num_layers=32,
        hidden_size=4096,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        ffn_hidden_size=11008,
        vocab_size=32000,
    )
    _, _, held = counted([ExecutionPlan()], model, job(task="lora", lora=LoraSpec(rank=8, targets=("q", "v"))))
    assert held.trained_dense.tolist() == [[4194304]]
    assert not held.trained_expert.any()
    assert held.dense[0, 0] == total_parameters(model)


@pytest.mark.parametrize("name", ["llama", "mixture", "deepseek", "maverick"])
def test_adapters_add_up(name):
    model = MODELS[name]
    lora = LoraSpec(rank=4)
    _, table, held = counted([ExecutionPlan(pipeline_parallel=4)], model, job(task="lora", lora=lora))
    total = ((held.trained_dense + held.trained_expert) * table.count).sum()
    assert total == pytest.approx(total_lora_parameters(model, lora.rank, lora.targets))


def test_both_matrices_of_an_adapter_pair_are_sharded():
    """``linear_in`` and ``linear_out`` of Megatron-Bridge's ParallelLinearAdapter are parallel layers both."""
    lora = LoraSpec(rank=4, targets=("up",))
    _, _, held = counted([ExecutionPlan(tensor_parallel=t) for t in (1, 2, 4)], llama(), job(task="lora", lora=lora))
    whole = 8 * 4 * (1024 + 2816)
    assert held.trained_dense[:, 0] == pytest.approx([whole, whole / 2, whole / 4])


def test_only_routed_experts_adapters_are_spread_over_experts_ranks():
    lora = LoraSpec(rank=4, targets=("down",))
    plans = [ExecutionPlan(expert_parallel=e, data_parallel=8) for e in (1, 8)]
    _, _, held = counted(plans, mixture(), job(task="lora", lora=lora))
    assert held.trained_expert[:, 0] == pytest.approx([8 * 8 * 4 * (1024 + 1408), 8 * 4 * (1024 + 1408)])
    assert held.trained_dense[:, 0] == pytest.approx([8 * 4 * (1024 + 2816)] * 2)


def test_full_training_trains_everything_and_unused_columns_hold_nothing():
    _, table, held = counted([ExecutionPlan(), ExecutionPlan(pipeline_parallel=4)], mixture())
    assert held.trained_dense is held.dense
    assert held.trained_expert is held.expert
    unused = np.asarray(table.count == 0)
    assert unused.any()
    assert not held.dense[unused].any()
    assert not held.expert[unused].any()
