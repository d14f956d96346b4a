"""Rules about the model, the sequence and number formats."""

from dataclasses import replace

import pytest

from costmodels.plan import ContextKind, ExecutionPlan
from tests.fakes import gpt, job, latent, llama, mixture
from tests.legal import DEEPSPEED, FSDP, MEGATRON, NANOTRON, TRAINER, broken, setting, split, violations


@pytest.mark.parametrize(
    ("model", "plan", "framework", "expected"),
    [
        pytest.param(llama(), split(t=8), MEGATRON, set(), id="megatron replicates key/value heads"),
        pytest.param(llama(), split(t=8), NANOTRON, {"tensor_parallel_divides_kv_heads"}, id="nanotron does not"),
        pytest.param(latent(), split(t=8), NANOTRON, set(), id="latent attention expands to all heads"),
        pytest.param(
            llama(num_key_value_heads=1, ffn_hidden_size=2820),
            split(t=8),
            MEGATRON,
            {"tensor_parallel_divides_mlp"},
            id="mlp width",
        ),
        pytest.param(gpt(num_layers=6), split(p=4, d=2), MEGATRON, {"pipeline_divides_layers"}, id="layers"),
        pytest.param(gpt(num_layers=6), split(p=4, d=2), DEEPSPEED, set(), id="uneven stages elsewhere"),
        pytest.param(
            gpt(num_layers=6),
            split(p=4, d=2, first_stage_layers=1, last_stage_layers=1),
            MEGATRON,
            set(),
            id="fixed first and last stage",
        ),
        pytest.param(
            gpt(num_layers=6), split(p=4, d=2, stage_layers=(1, 2, 2, 1)), MEGATRON, set(), id="hand-laid stages"
        ),
        pytest.param(
            gpt(num_layers=6),
            split(p=4, d=2, stage_layers=(1, 2, 2, 2)),
            MEGATRON,
            {"pipeline_divides_layers", "stage_layers_complete"},
            id="one layer too many",
        ),
        pytest.param(mixture(), split(t=2, d=4), MEGATRON, {"experts_need_sequence_parallel"}, id="moe tp"),
        pytest.param(
            mixture(),
            split(d=8, expert_parallel=3),
            MEGATRON,
            {"expert_parallel_divides_experts", "expert_ranks"},
            id="3",
        ),
        pytest.param(mixture(), split(d=8, expert_parallel=8), MEGATRON, set(), id="one expert per rank"),
        pytest.param(
            mixture(),
            split(d=8, expert_parallel=4, zero_stage=1, zero_shard_degree=2),
            MEGATRON,
            {"shard_sets_divide_expert_replicas"},
            id="four sets of two replicas",
        ),
        pytest.param(
            mixture(),
            split(d=8, expert_parallel=4, zero_stage=1, zero_shard_degree=4),
            MEGATRON,
            set(),
            id="two of two",
        ),
        pytest.param(
            mixture(moe={"num_experts": 16}), split(d=8, expert_parallel=16), MEGATRON, {"expert_ranks"}, id="too few"
        ),
        pytest.param(
            mixture(),
            split(p=2, d=4, expert_parallel=8),
            DEEPSPEED,
            {"expert_ranks_in_data_ranks"},
            id="experts live on data ranks",
        ),
        pytest.param(
            mixture(),
            split(t=2, d=4, sequence_parallel=True, zero_stage=3, expert_parallel=4, expert_tensor_parallel=2),
            FSDP,
            set(),
            id="torchtitan etp = tp",
        ),
        pytest.param(
            mixture(),
            split(d=8, expert_parallel=8),
            FSDP,
            {"expert_ranks_in_sharded_ranks"},
            id="ddp shards nothing for experts",
        ),
        pytest.param(
            mixture(),
            split(t=4, d=2, sequence_parallel=True, zero_stage=3, expert_parallel=2, expert_tensor_parallel=2),
            FSDP,
            {"expert_tensor_parallel_one_or_tp", "expert_ranks_in_sharded_ranks"},
            id="torchtitan etp is 1 or tp",
        ),
        pytest.param(
            mixture(),
            split(d=8, expert_parallel=2, zero_stage=3),
            DEEPSPEED,
            {"deepspeed_experts_exclude_zero_3"},
            id="deepspeed moe zero 3",
        ),
        pytest.param(
            mixture(), split(d=8, expert_parallel=2), TRAINER, {"trainer_keeps_experts_whole"}, id="trainer ep"
        ),
    ],
)
def test_rules_about_the_model(model: object, plan: ExecutionPlan, framework: str, expected: set[str]) -> None:
    assert broken(plan, setting(framework, model=model)) == expected


@pytest.mark.parametrize(
    ("length", "plan", "framework", "expected"),
    [
        pytest.param(2050, split(c=2, d=4), MEGATRON, {"context_parallel_divides_sequence"}, id="2 x cp"),
        pytest.param(2050, split(c=2, d=4, context_kind=ContextKind.ULYSSES), DEEPSPEED, set(), id="cp is enough"),
        pytest.param(
            2049, split(t=2, d=4, sequence_parallel=True), MEGATRON, {"sequence_divides_over_ranks"}, id="odd length"
        ),
    ],
)
def test_rules_about_the_sequence(length: int, plan: ExecutionPlan, framework: str, expected: set[str]) -> None:
    assert broken(plan, setting(framework, job=job(sequence_length=length))) == expected


@pytest.mark.parametrize(
    ("changes", "zero", "framework", "expected"),
    [
        ({"state_dtype": "int8"}, 1, MEGATRON, {"moments_have_a_known_format"}),
        ({"state_dtype": "fp8"}, 1, MEGATRON, set()),
        ({"state_dtype": "bf16"}, 0, MEGATRON, {"short_states_need_sharding"}),
        ({"state_dtype": "bf16", "optimizer": "sgd"}, 1, MEGATRON, {"moments_have_a_known_format"}),
        ({"optimizer": "adamw8bit", "state_dtype": "fp32"}, 1, MEGATRON, {"optimizer_exists"}),
        ({"optimizer": "adafactor"}, 1, MEGATRON, {"optimizer_exists"}),
        ({"master_dtype": "none"}, 1, MEGATRON, {"master_weights_have_a_known_format"}),
        ({"master_dtype": "none", "precision": "fp32"}, 1, MEGATRON, set()),
        ({"master_dtype": "fp16"}, 1, MEGATRON, set()),
        ({"master_dtype": "bf16"}, 1, MEGATRON, {"short_states_need_sharding"}),
        ({"master_dtype": "bf16"}, 2, MEGATRON, set()),
        ({"gradient_dtype": "fp16"}, 0, MEGATRON, {"gradients_have_a_known_format"}),
        ({"gradient_dtype": "fp16", "precision": "fp16"}, 0, MEGATRON, set()),
        ({"gradient_dtype": "bf16", "precision": "fp8"}, 0, MEGATRON, set()),
        ({"state_dtype": "bf16"}, 3, FSDP, set()),
        ({"state_dtype": "int8"}, 3, FSDP, {"moments_have_a_known_format"}),
        ({"state_dtype": "int8", "optimizer": "adamw8bit"}, 3, FSDP, set()),
        ({"gradient_dtype": "bf16"}, 3, FSDP, set()),
        ({"gradient_dtype": "bf16", "master_dtype": "none", "state_dtype": "bf16"}, 3, FSDP, set()),
        ({"gradient_dtype": "fp16", "master_dtype": "none"}, 3, FSDP, {"gradients_have_a_known_format"}),
        ({"master_dtype": "bf16"}, 3, FSDP, {"master_weights_have_a_known_format"}),
        ({"master_dtype": "bf16", "state_dtype": "bf16"}, 0, DEEPSPEED, {"short_states_need_sharding"}),
        ({"master_dtype": "bf16", "state_dtype": "bf16"}, 2, DEEPSPEED, set()),
        ({"state_dtype": "bf16"}, 2, DEEPSPEED, {"moments_have_a_known_format"}),
        ({"gradient_dtype": "bf16"}, 2, DEEPSPEED, set()),
        ({"master_dtype": "none", "state_dtype": "bf16"}, 0, TRAINER, set()),
        ({"state_dtype": "fp8"}, 0, TRAINER, {"moments_have_a_known_format"}),
        ({"state_dtype": "int8", "optimizer": "adamw8bit"}, 0, TRAINER, set()),
        ({"state_dtype": "int8"}, 0, NANOTRON, {"moments_have_a_known_format"}),
    ],
)
def test_rules_about_number_formats(changes: dict[str, str], zero: int, framework: str, expected: set[str]) -> None:
    where = setting(framework, job=job(**changes))
    plan = split(d=8, zero_stage=zero)
    assert broken(plan, where) == expected
    for error in violations(plan, where):
        assert error.problem
        assert error.hint


def test_an_optimizer_of_another_s_has_its_own_formats() -> None:
    """Alpa has optax's, Megatron-DeepSpeed bitsandbytes' too; adapters are not what those formats are about."""
    from costmodels.workload import LoraSpec

    halves = job(master_dtype="none", state_dtype="fp16", gradient_dtype="fp16")
    assert broken(split(d=8), setting(job=halves, own_optimizer=True)) == set()
    assert len(broken(split(d=8), setting(job=halves))) == 3
    assert broken(split(d=8, offload_optimizer=True), setting(own_optimizer=True)) == set()
    adapters = replace(halves, task="lora", lora=LoraSpec())
    assert broken(split(d=8), setting(job=adapters)) == set()


def test_ulysses_needs_heads_for_every_rank() -> None:
    plan = split(t=4, c=2, context_kind=ContextKind.ULYSSES)
    assert broken(plan, setting(MEGATRON, model=gpt())) == set()
    assert broken(plan, setting(MEGATRON, model=llama())) == {"ulysses_divides_heads"}


def test_qlora_is_data_parallel() -> None:
    from costmodels.workload import LoraSpec

    where = setting(FSDP, job=job(task="qlora", lora=LoraSpec()))
    assert "qlora_not_model_parallel" in broken(split(t=2, d=4, sequence_parallel=True, zero_stage=3), where)
    mixed = setting(FSDP, model=mixture(), job=job(task="qlora", lora=LoraSpec()))
    assert "qlora_not_model_parallel" in broken(split(d=8, expert_parallel=2, zero_stage=3), mixed)


def test_megatron_trains_adapters_on_sixteen_bits_alone() -> None:
    from costmodels.workload import LoraSpec

    adapters = job(task="qlora", lora=LoraSpec())
    assert broken(split(d=8), setting(MEGATRON, job=replace(adapters, task="lora"))) == set()
    (error,) = violations(split(d=8), setting(MEGATRON, job=adapters))
    assert error.field == "job.task"
    assert error.hint == "task lora, or framework hf-trainer"


def test_nanotron_trains_all_weights_with_adamw_or_sgd() -> None:
    from costmodels.workload import LoraSpec

    plan = split(d=8)
    for task in ("lora", "qlora"):
        (error,) = violations(plan, setting(NANOTRON, job=job(task=task, lora=LoraSpec())))
        assert (error.field, error.hint) == ("job.task", "task full, or framework hf-trainer")
    for optimizer, known in (("adamw", True), ("sgd", True), ("adafactor", False)):
        found = broken(plan, setting(NANOTRON, job=job(optimizer=optimizer)))
        assert ("nanotron_optimizer_exists" in found) != known


# The message a user reads, verbatim.
