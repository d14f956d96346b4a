"""Model and hardware FLOPs against published formulas and figures, written out independently."""

import numpy as np
import pytest

from costmodels.flops import (
    attention_core_flops_per_token,
    hardware_flops_per_step,
    matmul_parameters,
    model_flops_per_step,
)
from costmodels.plan import Recompute, RecomputeModule
from costmodels.workload import LoraSpec
from profiles.model import LatentAttention, ModelSpec
from profiles.moe import MoESpec
from tests.fakes import GPT3, gpt, job, llama, mixture, stack

# Rows of arXiv:2104.04473 table 1: layers, hidden, heads, batch, TFLOP/s per GPU, GPUs.
MEGATRON_TABLE = [(24, 2304, 24, 512), (96, 12288, 96, 1536), (128, 25600, 160, 3072)]
V, S = 51200, 2048


def plain_gpt(layers: int, hidden: int, heads: int) -> ModelSpec:
    return gpt(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        ffn_hidden_size=4 * hidden,
        vocab_size=V,
    )


def hardware(model, task, recompute: Recompute, share: float = 0.0, modules: int = RecomputeModule.CORE_ATTN) -> float:
    flops = hardware_flops_per_step(
        model,
        task,
        stack(),
        recompute=np.array([recompute]),
        recompute_modules=np.array([modules]),
        recomputed_layer_share=np.array([share]),
    )
    return float(flops[0])


@pytest.mark.parametrize(("layers", "hidden", "heads", "batch"), MEGATRON_TABLE)
def test_step_with_full_recomputation_is_equation_3(layers, hidden, heads, batch):
    """96 B s l h^2 (1 + s / 6h + V / 16 l h), arXiv:2104.04473 equation 3, full score matrix counted.

    The head's forward is not repeated; our hardware FLOPs count half the scores, so these are added.
    """
    model, task = plain_gpt(layers, hidden, heads), job(sequence_length=S, global_batch_size=batch)
    published = 96 * batch * S * layers * hidden**2 * (1 + S / (6 * hidden) + V / (16 * layers * hidden))
    forward_core = 4 * batch * S * S * hidden * layers
    assert hardware(model, task, Recompute.FULL, 1.0) + 4 * forward_core / 2 == pytest.approx(published, rel=1e-12)


def test_model_flops_are_72_b_l_s_h2():
    """72 B L s h^2 (1 + s / 6h + V / 12 h L), arXiv:2205.05198 appendix A equation 7."""
    published = 72 * 1536 * 96 * S * 12288**2 * (1 + S / (6 * 12288) + V / (12 * 12288 * 96))
    model = plain_gpt(96, 12288, 96)
    assert model_flops_per_step(model, job(sequence_length=S, global_batch_size=1536), causal=False) == pytest.approx(
        published, rel=1e-12
    )


def test_gpt3_utilisation_of_the_megatron_paper():
    """140 TFLOP/s on each of 1024 A100 takes 34 days for 300 B tokens (arXiv:2104.04473 section 5.1)."""
    task = job(sequence_length=S, global_batch_size=1536)
    core = attention_core_flops_per_token(GPT3, S, causal=True) * task.tokens_per_step
    step = hardware(GPT3, task, Recompute.FULL, 1.0) + 4 * core
    days = 300e9 / task.tokens_per_step * step / (1024 * 140e12) / 86400
    assert days == pytest.approx(34, rel=0.03)


@pytest.mark.parametrize(
    ("recompute", "share", "forwards_of_weights", "forwards_of_core"),
    [
        (Recompute.NONE, 0.0, 3, 3),
        (Recompute.SELECTIVE, 0.0, 3, 4),  # arXiv:2205.05198 section 5: only the core is repeated
        (Recompute.FULL, 1.0, 4, 4),
        (Recompute.BLOCK, 0.25, 3.25, 3.25),
    ],
)
def test_recomputation_repeats_what_it_drops(recompute, share, forwards_of_weights, forwards_of_core):
    model, task = llama(), job()
    head = model.vocab_size * model.hidden_size
    layers = matmul_parameters(model) - head
    core = attention_core_flops_per_token(model, task.sequence_length, causal=True)
    per_token = 2 * layers * forwards_of_weights + 6 * head + core * forwards_of_core
    assert hardware(model, task, recompute, share) == pytest.approx(per_token * task.tokens_per_step, rel=1e-12)


def test_weights_of_a_gated_grouped_query_layer():
    # h 1024; q and o 1024 x 1024, k and v 1024 x 256, three MLP matrices 1024 x 2816; head 32768 x 1024.
    per_layer = 2 * 1024 * 1024 + 2 * 1024 * 256 + 3 * 1024 * 2816
    assert matmul_parameters(llama()) == pytest.approx(8 * per_layer + 32768 * 1024, rel=1e-12)


def test_a_token_visits_k_experts():
    # Two of eight routed experts (1408 wide), the shared one (2816), the router; all in every layer.
    attention = 2 * 1024 * 1024 + 2 * 1024 * 256
    mlp = 3 * 1024 * (2 * 1408 + 2816) + 8 * 1024
    assert matmul_parameters(mixture()) == pytest.approx(8 * (attention + mlp) + 32768 * 1024, rel=1e-12)


def test_causal_attention_is_half_and_a_window_less():
    model = gpt()
    full = attention_core_flops_per_token(model, 4096, causal=False)
    assert full == pytest.approx(8 * 4 * 1024 * 4096)  # two products of 2 h s each per layer
    assert attention_core_flops_per_token(model, 4096, causal=True) == pytest.approx(full / 2)
    # Half of the layers see 1024 tokens: 1024 s - 1024^2 / 2 of s^2 scores.
    windowed = gpt(sliding_window=1024, windowed_layers=4)
    share = 0.5 * 0.5 + 0.5 * (1024 * 4096 - 1024**2 / 2) / 4096**2
    assert attention_core_flops_per_token(windowed, 4096, causal=True) == pytest.approx(full * share)
    assert attention_core_flops_per_token(windowed, 512, causal=True) == pytest.approx(full / 8 / 2)


# Dimensions of the published configurations (config.json).
DEEPSEEK_V2 = gpt(
    num_layers=60,
    hidden_size=5120,
    num_attention_heads=128,
    num_key_value_heads=128,
    head_dim=128,
    ffn_hidden_size=12288,
    vocab_size=102400,
    gated_mlp=True,
    rms_norm=True,
    latent_attention=LatentAttention(
        q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    ),
    moe=MoESpec(
        num_experts=160,
        experts_per_token=6,
        ffn_hidden_size=1536,
        shared_ffn_hidden_size=2 * 1536,
        first_dense_layers=1,
    ),
)
DEEPSEEK_V3 = gpt(
    num_layers=61,
    hidden_size=7168,
    num_attention_heads=128,
    num_key_value_heads=128,
    head_dim=128,
    ffn_hidden_size=18432,
    vocab_size=129280,
    gated_mlp=True,
    rms_norm=True,
    latent_attention=LatentAttention(
        q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    ),
    moe=MoESpec(
        num_experts=256,
        experts_per_token=8,
        ffn_hidden_size=2048,
        shared_ffn_hidden_size=2048,
        first_dense_layers=3,
    ),
)
LLAMA_405B = gpt(
    num_layers=126,
    hidden_size=16384,
    num_attention_heads=128,
    num_key_value_heads=8,
    head_dim=128,
    ffn_hidden_size=53248,
    vocab_size=128256,
    gated_mlp=True,
    rms_norm=True,
)


@pytest.mark.parametrize(
    ("model", "published", "tolerance"),
    [(DEEPSEEK_V2, 155e9, 0.005), (DEEPSEEK_V3, 250e9, 0.002), (LLAMA_405B, 2448e9, 0.011)],
    ids=["deepseek-v2", "deepseek-v3", "llama-3.1-405b"],
)
def test_training_flops_per_token_of_published_models(model, published, tolerance):
    """GFLOPs per token at 4096 tokens, causal attention: arXiv:2505.09343 table 2."""
    task = job(sequence_length=4096)
    per_token = model_flops_per_step(model, task, causal=True) / task.tokens_per_step
    assert per_token == pytest.approx(published, rel=tolerance)


def test_frozen_weights_need_no_weight_gradient():
    """LoRA: two passes through the frozen weights, three through the adapters (arXiv:2106.09685)."""
    model, lora = llama(), LoraSpec(rank=8, targets=("q", "v"))
    task = job(task="lora", lora=lora)
    adapters = 8 * (8 * (1024 + 1024) + 8 * (1024 + 256))
    core = attention_core_flops_per_token(model, task.sequence_length, causal=True)
    per_token = 4 * matmul_parameters(model) + 6 * adapters + 3 * core
    assert model_flops_per_step(model, task, causal=True) == pytest.approx(per_token * task.tokens_per_step, rel=1e-12)


def test_adapters_of_experts_work_on_the_tokens_that_reach_them():
    model, lora = mixture(), LoraSpec(rank=8, targets=("up",))
    task = job(task="lora", lora=lora)
    plain = 4 * matmul_parameters(model) + 3 * attention_core_flops_per_token(model, task.sequence_length, causal=True)
    found = model_flops_per_step(model, task, causal=True) / task.tokens_per_step - plain
    assert found == pytest.approx(6 * 8 * (2 * 8 * (1024 + 1408) + 8 * (1024 + 2816)))


def test_experts_that_are_routed_in_groups_have_the_adapters_of_those_a_token_meets():
    """Routing 8 of 256 experts, in 4 of 8 groups, as DeepSeek-V3: groups leave the number of adapters met alone."""
    experts = {"num_experts": 256, "experts_per_token": 8}
    whole, grouped = mixture(moe=experts), mixture(moe=experts | {"router_groups": 8, "groups_per_token": 4})
    task = job(task="lora", lora=LoraSpec(rank=16))
    assert model_flops_per_step(grouped, task, causal=True) == model_flops_per_step(whole, task, causal=True)
