"""Published memory tables: formulas reproduced exactly, measured peaks within the stated error."""

from dataclasses import replace

import pytest

from costmodels.context import CostContext
from costmodels.memory.activations import embedding_activations, layer_activations, output_activations
from costmodels.memory.model_state import model_state
from costmodels.memory.peaks import ALLOCATED_PARTS
from costmodels.memory.stage_activations import stage_activations
from costmodels.plan import ExecutionPlan, PlanBatch, Recompute
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from profiles.model import ModelSpec
from profiles.moe import MoESpec
from profiles.parameters import total_parameters
from tests.fakes import context, gpt, job, latent, stack, stage_memory

pytestmark = pytest.mark.accuracy

GIB = 2**30
PAPER = job(attention="unfused", dropout=True, precision="fp16")  # the GPT recipe of arXiv:2205.05198


def paper_model(layers: int, hidden: int, heads: int) -> ModelSpec:
    return gpt(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        ffn_hidden_size=4 * hidden,
        vocab_size=51200,
    )


# arXiv:2205.05198 table 3: model to (layers, hidden, heads, t, p, v, micro-batch, devices).
KORTHIKANTI = {
    "22B": (48, 6144, 64, 8, 1, 1, 4),
    "175B": (96, 12288, 96, 8, 8, 3, 1),
    "530B": (105, 20480, 128, 8, 35, 3, 1),
    "1T": (128, 25600, 160, 8, 64, 1, 1),
}


def layer_bytes(name: str, *, sequence_parallel: bool, recompute: Recompute) -> float:
    layers, hidden, heads, t, _, _, b = KORTHIKANTI[name]
    plan = ExecutionPlan(
        tensor_parallel=t, micro_batch_size=b, sequence_parallel=sequence_parallel, recompute=recompute
    )
    batch = PlanBatch.from_plans([plan])
    layer = layer_activations(batch, paper_model(layers, hidden, heads), PAPER, stack(), moe=False)
    if recompute == Recompute.FULL:
        return float(layer.layer_input[0])
    return float(layer.whole[0] - (layer.modules[0, 0] if recompute == Recompute.SELECTIVE else 0.0))


@pytest.mark.parametrize("name", KORTHIKANTI)
@pytest.mark.parametrize(
    ("sequence_parallel", "recompute", "formula"),
    [
        (False, Recompute.NONE, lambda h, a, s, t: 10 + 24 / t + 5 * a * s / (h * t)),
        (True, Recompute.NONE, lambda h, a, s, t: 34 / t + 5 * a * s / (h * t)),
        (False, Recompute.SELECTIVE, lambda h, a, s, t: 10 + 24 / t),
        (True, Recompute.SELECTIVE, lambda h, a, s, t: 34 / t),
        (False, Recompute.FULL, lambda h, a, s, t: 2),
    ],
    ids=["tensor", "sequence", "selective", "sequence-selective", "full"],
)
def test_korthikanti_table_2(name, sequence_parallel, recompute, formula):
    _, hidden, heads, t, _, _, b = KORTHIKANTI[name]
    expected = 2048 * b * hidden * formula(hidden, heads, 2048, t)
    assert layer_bytes(name, sequence_parallel=sequence_parallel, recompute=recompute) == pytest.approx(expected)


def test_korthikanti_section_5_gpt3_layer():
    # "2.87 GB of memory per layer" with t = 8, sequence parallelism and micro-batch 8, of which
    # selective recomputation removes 70 %; MT-NLG 65 %.
    model = paper_model(96, 12288, 96)
    batch = PlanBatch.from_columns(1, tensor_parallel=8, micro_batch_size=8, sequence_parallel=True)
    layer = layer_activations(batch, model, PAPER, stack(), moe=False)
    assert layer.whole[0] == pytest.approx(2.87e9, rel=2e-3)
    assert layer.modules[0, 0] / layer.whole[0] == pytest.approx(0.70, abs=0.01)
    nlg = layer_activations(batch, paper_model(105, 20480, 128), PAPER, stack(), moe=False)
    assert nlg.modules[0, 0] / nlg.whole[0] == pytest.approx(0.65, abs=0.01)


# arXiv:2205.05198 figure 7, read off the plot: percent of the tensor-parallel baseline.
FIGURE_7 = {
    "22B": (66.84, 49.42, 16.18, 7.64),
    "175B": (62.04, 56.53, 18.49, 8.71),
    "530B": (58.31, 62.04, 20.27, 9.42),
    "1T": (58.31, 62.04, 20.27, 9.42),
}


@pytest.mark.parametrize("name", FIGURE_7)
def test_korthikanti_figure_7(name):
    baseline = layer_bytes(name, sequence_parallel=False, recompute=Recompute.NONE)
    found = [
        layer_bytes(name, sequence_parallel=True, recompute=Recompute.NONE),
        layer_bytes(name, sequence_parallel=False, recompute=Recompute.SELECTIVE),
        layer_bytes(name, sequence_parallel=True, recompute=Recompute.SELECTIVE),
        layer_bytes(name, sequence_parallel=False, recompute=Recompute.FULL),
    ]
    assert [100 * part / baseline for part in found] == pytest.approx(FIGURE_7[name], abs=0.15)


# arXiv:2205.05198 figure 1: GiB of parameters and optimizer states (18 bytes each over the layers),
# of activations without recomputation, and of them with sequence parallelism and selective one.
FIGURE_1 = {
    "22B": (45.5625, 59.25, 9.5625),
    "175B": (45.5625, 66.84375, 12.3515625),
    "530B": (31.640625, 114.0234375, 23.076171875),
    "1T": (32.958984375, 131.25, 26.5625),
}


@pytest.mark.parametrize("name", FIGURE_1)
def test_korthikanti_figure_1(name):
    layers, hidden, heads, t, p, v, b = KORTHIKANTI[name]
    # The figure's share of one rank: its layers' 12h^2 weights, and activations of p(1 + (p-1)/(pv))
    # micro-batch layers, i.e. of L layers times (1 + (p-1)/(pv)); without the ends of the model.
    model = replace(paper_model(layers, hidden, heads), vocab_size=1, rms_norm=True)
    plan = ExecutionPlan(
        tensor_parallel=t, pipeline_parallel=p, virtual_stages=v, micro_batch_size=b, num_microbatches=4 * p
    )
    where = context(model=model, job=PAPER, stack=stack())
    batch = PlanBatch.from_plans([plan, replace(plan, sequence_parallel=True, recompute=Recompute.SELECTIVE)])
    stages = stage_table(batch, model, full=True)
    state = model_state(batch, stages, stage_parameters(batch, stages, model, where.job), where)
    states = float((state.weights + state.gradients + state.optimizer)[0, 0])
    masks = stages.in_flight[:, 0] * embedding_activations(batch, model, PAPER)  # left out of the figure
    kept = stage_activations(batch, stages, where).kept[:, 0] - masks
    if p == 1:
        kept -= output_activations(batch, model, PAPER)
    found = (states / GIB, *(kept / GIB))
    assert found == pytest.approx(FIGURE_1[name], rel=2e-3)


# arXiv:1910.02054 figure 1: GB of model states per device, 7.5B parameters on 64 devices, K = 12.
@pytest.mark.parametrize(("zero", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_zero_figure_1(zero, gigabytes):
    model = paper_model(1, 64, 1)
    model = replace(model, vocab_size=58_000_000, tie_word_embeddings=True)
    scale = 7.5e9 / total_parameters(model)
    where = context(model=model, stack=stack(gradient_dtype="fp16", master_gradients="none"), job=job(precision="fp16"))
    batch = PlanBatch.from_columns(1, data_parallel=64, zero_stage=zero)
    stages = stage_table(batch, model, full=True)
    state = model_state(batch, stages, stage_parameters(batch, stages, model, where.job), where)
    total = float((state.weights + state.gradients + state.optimizer)[0, 0]) * scale / 1e9
    assert total == pytest.approx(gigabytes, rel=5e-3)


# Megatron-LM documentation, "Distributed optimizer": theoretical bytes per parameter, d ranks.
@pytest.mark.parametrize(
    ("precision", "gradients", "without", "fixed", "divided"),
    [("fp16", "fp16", 20, 4, 16), ("bf16", "fp32", 18, 6, 12), ("fp32", "fp32", 16, 8, 8)],
)
def test_megatron_distributed_optimizer_table(precision, gradients, without, fixed, divided):
    where = context(job=job(precision=precision), stack=stack(gradient_dtype=gradients))
    batch = PlanBatch.from_columns(2, zero_stage=[0, 1], data_parallel=16)
    stages = stage_table(batch, where.model, full=True)
    state = model_state(batch, stages, stage_parameters(batch, stages, where.model, where.job), where)
    each = (state.weights + state.gradients + state.optimizer)[:, 0] / total_parameters(where.model)
    assert each == pytest.approx([without, fixed + divided / 16])


def peak_gib(plan: ExecutionPlan, where: CostContext) -> float:
    batch = PlanBatch.from_plans([plan])
    memory = stage_memory(batch, stage_table(batch, where.model, full=True), where)
    return float(sum(memory[name] for name in ALLOCATED_PARTS).max()) / GIB


def llama3(layers: int, hidden: int, heads: int, kv_heads: int, ffn: int) -> ModelSpec:
    return gpt(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        ffn_hidden_size=ffn,
        vocab_size=128256,
        gated_mlp=True,
        rms_norm=True,
    )


LLAMA_70B = llama3(12, 8192, 64, 8, 28672)
LLAMA_405B = llama3(4, 16384, 128, 16, 53248)

# SimuMax v1.2, B200 release: maximum allocated GiB of Megatron-Core runs, distributed optimizer,
# fused cross-entropy, micro-batch 1: (model, t, p, d, c, sequence, GiB).
SIMUMAX = [
    (LLAMA_70B, 2, 1, 4, 1, 4096, 60.68),
    (LLAMA_70B, 8, 1, 1, 1, 4096, 28.29),
    (LLAMA_70B, 1, 2, 4, 1, 4096, 66.55),
    (LLAMA_70B, 1, 1, 1, 8, 131072, 147.99),
    (LLAMA_405B, 2, 1, 4, 1, 4096, 81.59),
    (LLAMA_405B, 1, 2, 4, 1, 4096, 87.08),
    (LLAMA_405B, 2, 1, 1, 4, 131072, 118.13),
]


@pytest.mark.parametrize(("model", "t", "p", "d", "c", "sequence", "measured"), SIMUMAX)
def test_megatron_core_runs_on_b200(model, t, p, d, c, sequence, measured):
    where = context(model=model, job=job(sequence_length=sequence, fused_cross_entropy=True))
    plan = ExecutionPlan(
        tensor_parallel=t,
        pipeline_parallel=p,
        data_parallel=d,
        context_parallel=c,
        zero_stage=1,
        num_microbatches=8,
        sequence_parallel=t > 1,
    )
    assert peak_gib(plan, where) == pytest.approx(measured, rel=0.04)


def test_megatron_core_deepseek_v2_on_b200():
    # SimuMax v1.2, B200 release: 4 layers of DeepSeek-V2, e 8, d 8: 45.63 GiB allocated.
    dims = replace(
        latent().latent_attention,
        q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
    )  # fmt: skip
    experts = MoESpec(
        num_experts=160, experts_per_token=6, ffn_hidden_size=1536, shared_ffn_hidden_size=3072, first_dense_layers=1
    )
    model = replace(
        gpt(num_layers=4, hidden_size=5120, num_attention_heads=128, num_key_value_heads=128, head_dim=128),
        ffn_hidden_size=12288, vocab_size=102400, gated_mlp=True, rms_norm=True, latent_attention=dims, moe=experts,
    )  # fmt: skip
    where = context(model=model, job=job(sequence_length=4096, fused_cross_entropy=True))
    plan = ExecutionPlan(data_parallel=8, expert_parallel=8, zero_stage=1, num_microbatches=4)
    assert peak_gib(plan, where) == pytest.approx(45.63, rel=0.04)


def test_zero_bubble_tables():
    # arXiv:2401.10241 table 4: GPT 6.2B, p 8, 1F1B, 24 micro-batches of 6: 66 GB; one layer fewer at the ends.
    model = replace(paper_model(30, 4096, 32), vocab_size=50257)
    where = context(model=model, job=replace(PAPER, sequence_length=1024))
    ends = {"first_stage_layers": 3, "last_stage_layers": 3}
    plan = ExecutionPlan(pipeline_parallel=8, micro_batch_size=6, num_microbatches=24, **ends)
    assert peak_gib(plan, where) == pytest.approx(66, rel=0.08)


def test_alpa_static_allocation():
    # Alpa artifact, exp_weak_scaling_model: XLA's total allocation of GPT h 2048, L 10, b 8: 19.19 GiB on one V100.
    model = replace(paper_model(10, 2048, 16), vocab_size=25600, learned_positions=1024, tie_word_embeddings=True)
    xla = stack(gradient_dtype="fp16", master_gradients="none", logits_fp32_copies=2)
    where = context(model=model, job=replace(PAPER, sequence_length=1024, dropout=False), stack=xla)
    assert peak_gib(ExecutionPlan(micro_batch_size=8), where) == pytest.approx(19.19, rel=0.1)
