"""Jobs: what is filled in is documented and reported, and any two of three give the third."""

from dataclasses import replace
from typing import Any

import pytest

import planner
from costmodels.workload import LoraSpec, TrainingJob
from planner.question.jobs import (
    expert_notes,
    gradient_notes,
    resolve_job,
    rounded_batch,
    wide_experts,
    with_attention,
)
from planner.question.machines import resolve_cluster
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec
from profiles.model_presets import resolve_model
from profiles.stacks import find_stack, fitted_stacks
from tests.fakes import device, gpt, mixture, node

PRECISION = "precision bf16 (not given)"


def cluster(nodes: int = 1, **changes: Any) -> ClusterSpec:
    return ClusterSpec(name="fake", node=node(device=device(**changes)), num_nodes=nodes)


def resolved(given: Any = None, *, pins: dict[str, int] | None = None, nodes: int = 1, **changes: Any) -> TrainingJob:
    return resolve_job(given, gpt(max_sequence_length=8192), cluster(nodes, **changes), pins or {})[0]


def test_defaults_are_reported() -> None:
    job, notes = resolve_job(None, gpt(max_sequence_length=2048), cluster(), {})
    assert (job.sequence_length, job.global_batch_size, job.precision, job.task) == (2048, 2048, "bf16", "pretrain")
    assert [note.message for note in notes] == [
        PRECISION,
        "sequences of 2048 tokens (not given)",
        "a global batch of 2048 sequences (not given: 4 Mi tokens, rounded to the devices)",
    ]
    assert {note.code for note in notes} == {"assumed_default"}


def test_a_default_batch_that_not_every_device_has_a_share_of_says_so() -> None:
    few, notes = resolve_job({"sequence_length": 4096}, gpt(), cluster(256), {})
    assert (few.global_batch_size, cluster(256).num_devices) == (1024, 2048)
    assert "fewer than 2048 replicas, which rules out data parallelism alone" in notes[-1].message
    many, notes = resolve_job({"sequence_length": 4096}, gpt(), cluster(12_500), {})
    assert many.global_batch_size == 12_500
    assert "not given: one sequence for 8 devices; fewer than 100000 replicas" in notes[-1].message
    split, notes = resolve_job({"sequence_length": 4096}, gpt(), cluster(256), {"tensor_parallel": 2})
    assert split.global_batch_size == 1024
    assert "replicas" not in notes[-1].message


@pytest.mark.parametrize(("nodes", "pins", "batch"), [(1, {}, 128), (32, {}, 256), (32, {"micro_batch_size": 4}, 1024)])
def test_fine_tuning_has_a_micro_batch_for_every_device(nodes: int, pins: dict[str, int], batch: int) -> None:
    assert resolved({"task": "lora"}, nodes=nodes, pins=pins).global_batch_size == batch


def test_a_complete_job_assumes_nothing() -> None:
    given = {"precision": "fp16", "sequence_length": 1024, "global_batch_size": 16}
    job, notes = resolve_job(given, gpt(), cluster(), {})
    assert (job.precision, job.sequence_length, job.global_batch_size) == ("fp16", 1024, 16)
    assert notes == ()


def test_a_job_object_is_taken_as_it_is() -> None:
    job = TrainingJob(sequence_length=77, global_batch_size=3)
    assert resolved(job) is job


def test_devices_without_bf16_train_in_fp16_or_else_fp32() -> None:
    assert resolved(peak_flops_per_s={"fp16": 125e12, "fp32": 15e12}).precision == "fp16"
    assert resolved(peak_flops_per_s={"fp32": 5e12}).precision == "fp32"


def test_fine_tuning_takes_small_batches() -> None:
    assert resolved({"task": "full"}).global_batch_size == 128
    assert resolved({"task": "lora"}).lora == LoraSpec(rank=16)


@pytest.mark.parametrize(
    ("given", "sequence", "batch"),
    [
        ({"sequence_length": 2048, "global_batch_tokens": 1 << 20}, 2048, 512),
        ({"global_batch_size": 512, "global_batch_tokens": 1 << 20}, 2048, 512),
        ({"sequence_length": 2048, "global_batch_size": 512}, 2048, 512),
        ({"sequence_length": 2048, "global_batch_size": 512, "global_batch_tokens": 1 << 20}, 2048, 512),
        ({"sequence_length": 4096, "global_batch_tokens": 4e6}, 4096, 960),  # 120 for each of 8 devices, not 122
    ],
    ids=str,
)
def test_two_of_tokens_sequence_and_batch(given: dict[str, Any], sequence: int, batch: int) -> None:
    job = resolved(given)
    assert (job.sequence_length, job.global_batch_size) == (sequence, batch)


def test_rounded_tokens_are_reported() -> None:
    _, notes = resolve_job({"sequence_length": 4096, "global_batch_tokens": 4e6}, gpt(), cluster(), {})
    told = (
        "a batch of 4,000,000 tokens is taken as 960 sequences of 4096, rounded to the devices and their micro-batches"
    )
    assert notes[-1].message == told


def test_sequences_that_tokens_and_a_batch_leave_are_told() -> None:
    job, notes = resolve_job({"global_batch_size": 8, "global_batch_tokens": 4e6}, gpt(), cluster(), {})
    assert job.sequence_length == 500_000
    (told,) = [note.message for note in notes if note.field == "job.sequence_length"]
    assert told == "sequences of 500000 tokens (not given: 4,000,000 tokens a batch over 8 sequences)"


@pytest.mark.parametrize(
    ("pins", "batch"),
    [
        ({"data_parallel": 4, "micro_batch_size": 2, "num_microbatches": 8}, 64),
        ({"tensor_parallel": 2, "pipeline_parallel": 2, "micro_batch_size": 1, "num_microbatches": 8}, 16),
        ({"tensor_parallel": 2, "pipeline_parallel": 1, "context_parallel": 2, "micro_batch_size": 1}, 1024),
    ],
    ids=str,
)
def test_micro_batches_imply_the_batch(pins: dict[str, int], batch: int) -> None:
    assert resolved(pins=pins).global_batch_size == batch


@pytest.mark.parametrize(
    ("target", "devices", "pins", "batch"),
    [
        (1024, 8, {}, 1024),
        (1024, 24, {}, 1008),  # 42 each, not 43: a prime number has no micro-batches
        (1024, 16384, {}, 1024),
        (1024, 3000, {}, 1000),
        (100, 8, {"micro_batch_size": 16}, 128),
        (1024, 3000, {"data_parallel": 3000}, 3000),
        (1, 8, {"tensor_parallel": 8}, 1),
    ],
    ids=str,
)
def test_default_batches_divide_over_the_devices(target: int, devices: int, pins: dict[str, int], batch: int) -> None:
    assert rounded_batch(target, devices, pins) == batch


@pytest.mark.parametrize(("target", "devices", "batch"), [(488.28125, 8, 480), (1024, 24, 1032), (2000, 8, 2000)])
def test_a_batch_that_was_asked_for_is_hardly_changed(target: float, devices: int, batch: int) -> None:
    """Of 42 and 43 sequences for each of 24 devices only 43 lies within 2 % of what was asked for."""
    assert rounded_batch(target, devices, {}, near=0.02) == batch


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sequence_lenght": 1}, "job.sequence_lenght: unknown field. Hint: did you mean 'sequence_length'"),
        ({"sequence_length": "2k"}, "job.sequence_length: must be a whole number; got '2k'"),
        ({"sequence_length": 2048.5}, "job.sequence_length: must be a whole number; got 2048.5"),
        ({"sequence_length": float("nan")}, "job.sequence_length: must be a whole number; got nan"),
        ({"sequence_length": True}, "job.sequence_length: must be a whole number; got True"),
        ({"sequence_length": 0}, "job.sequence_length: must be between 1 and 16777216; got 0"),
        ({"dropout": 1}, "job.dropout: must be true or false; got 1"),
        ({"padding_efficiency": "most"}, "job.padding_efficiency: must be a number; got 'most'"),
        ({"task": "sft"}, "job.task: unknown value 'sft'. Hint: full, where all weights are trained; lora or qlora"),
        ({"task": "dpo"}, "job.task: unknown value 'dpo'. Hint: use one of pretrain, full, lora, qlora; ppo, dpo and"),
        ({"global_batch_tokens": 0}, "job.global_batch_tokens: must be between 1 and 1e+18; got 0"),
        (
            {"sequence_length": 10, "global_batch_size": 10, "global_batch_tokens": 101},
            "job.global_batch_tokens: 101 contradicts 10 sequences of 10 tokens. Hint: give two of",
        ),
        (
            {"global_batch_size": 7, "global_batch_tokens": 100},
            "job.global_batch_tokens: 100 is not a multiple of global_batch_size=7",
        ),
        ({"train_tokens": 0.0}, "job.train_tokens: must be above 0 and at most 1e+18; got 0.0"),
        ({"lora_rank": 8}, "job.lora_rank: is given, but the task does not train adapters. Hint: task lora or qlora"),
        ({"task": "lora", "lora_rank": 0}, "job.lora_rank: must be a whole number from 1 to 16384; got 0"),
        ({"task": "lora", "lora_targets": "q,z"}, "job.lora_targets: unknown value 'z'. Hint: a list of q, k, v"),
        ({"task": "lora", "lora_targets": "q,,v"}, "job.lora_targets: unknown value ''. Hint: a list of q, k, v"),
        ({"task": "lora", "lora_targets": 3}, "job.lora_targets: must name layers; got 3. Hint: q, k, v"),
        ({"task": "lora", "lora": {"rnk": 8}}, "job.lora.rnk: unknown field. Hint: did you mean 'rank'?"),
        ({"task": "lora", "lora": {"rank": 8}, "lora_rank": 4}, "job.lora: says what lora_rank or lora_targets says"),
        (
            {"fp32_unquantised": False},
            "job.fp32_unquantised: is given, but pretrain quantises no weights. Hint: task q",
        ),
        ({"task": "LoRA", "fp32_unquantised": False}, "job.fp32_unquantised: is given, but lora quantises no weights"),
        ({"task": "lora", "lora": 8}, "job.lora: must be a mapping with rank, targets and dropout; got 8"),
        ({"precision": "fp8"}, "job.precision: fake-80GB has no fp8 arithmetic"),
        ({"fp8_attention": True}, "job.fp8_attention: fake-80GB has no fp8 arithmetic. Hint: leave it out"),
    ],
    ids=str,
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        resolved(given)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "mxfp8", "fp8", "nvfp4"])
def test_attention_in_8_bits_takes_a_recipe_with_scales(precision: str) -> None:
    given = {"precision": precision, "fp8_attention": True, "fp8_activation": True}
    machines = resolve_cluster("8xB200", None)
    if precision in ("bf16", "fp16"):
        with pytest.raises(SpecError, match=f"needs a precision of 8 bits or fewer.* is '{precision}'") as error:
            resolve_job(given, gpt(), machines, {})
        assert (error.value.field, error.value.hint) == ("job.fp8_attention", "precision fp8, or leave it out")
        given["fp8_attention"] = False  # inputs of activation functions are only kept in 8 bits
    assert resolve_job(given, gpt(), machines, {})[0].fp8_activation


def test_words_may_be_written_large() -> None:
    given = {"task": "QLoRA", "precision": " BF16", "optimizer": "AdamW", "attention": "Flash", "state_dtype": "FP32"}
    job = resolved(given)
    assert (job.task, job.precision, job.optimizer, job.attention) == ("qlora", "bf16", "adamw", "flash")
    assert job == resolved({name: word.strip().lower() for name, word in given.items()})


def test_learned_positions_bound_the_sequence() -> None:
    with pytest.raises(SpecError, match=r"job.sequence_length: gpt has 2048 learned positions; got 4096. Hint: 2048"):
        resolve_job({"sequence_length": 4096}, gpt(learned_positions=2048), cluster(), {})


def test_micro_batches_without_degrees_need_a_batch() -> None:
    with pytest.raises(SpecError, match=r"job.global_batch_size: is needed: .* Hint: give the global batch"):
        resolved(pins={"micro_batch_size": 1, "num_microbatches": 8})


def test_adapters_in_one_piece() -> None:
    given = {"rank": 4, "targets": ["q"], "dropout": True}
    assert resolved({"task": "lora", "lora": given}).lora == LoraSpec(rank=4, targets=("q",), dropout=True)
    with pytest.raises(SpecError, match=r"job.lora.dropout: must be true or false"):
        resolved({"task": "lora", "lora": given | {"dropout": 0.1}})


@pytest.mark.parametrize("targets", ["q,v", "q_proj, v_proj", "Q_Proj,V", ["q", "v"], ("q", "v")])
def test_adapter_targets(targets: Any) -> None:
    assert resolved({"task": "qlora", "lora_rank": 4, "lora_targets": targets}).lora == LoraSpec(
        rank=4, targets=("q", "v")
    )


@pytest.mark.parametrize(
    ("framework", "architecture", "given", "found"),
    [
        ("megatron", "volta", None, "unfused"),
        ("megatron", "turing", {"attention": None}, "unfused"),
        ("deepspeed", "volta", None, "flash"),
        ("megatron", "volta", {"attention": "flash"}, "flash"),
        ("megatron", "volta", TrainingJob(sequence_length=512, global_batch_size=8), "flash"),
        ("megatron", "ampere", None, "flash"),
        ("deepspeed-megatron", "volta", None, "unfused"),
        ("megatron-2021", "ampere", None, "unfused"),
        ("megatron-2021", "ampere", {"attention": "flash"}, "flash"),
        ("fsdp", "volta", None, "flash"),
        ("huggingface", "volta", None, "flash"),
    ],
)
def test_attention_is_fused_where_the_stack_has_such_a_kernel_for_the_device(
    framework: str, architecture: str, given: Any, found: str
) -> None:
    job = TrainingJob(sequence_length=512, global_batch_size=8)
    answer, notes = with_attention(job, given, find_stack(framework), cluster(architecture=architecture), gpt())
    assert answer.attention == found
    assert [note.field for note in notes] == (["job.attention"] if found == "unfused" else [])


@pytest.mark.parametrize("layout", [{"tp": 4}, {"tp": 4, "pp": 3}, {"dp": 9}])
def test_what_is_fixed_leaves_the_batch_that_was_not_given(layout: dict[str, int]) -> None:
    """144 sequences on 72 devices, which 18, 6 or 9 replicas share as well as 72 do."""
    job = {"sequence_length": 32_768}
    assert planner.plan("llama-3-70b", "72xGB200", job, top=1).request.job.global_batch_size == 144
    pinned = planner.plan("llama-3-70b", "72xGB200", job, top=1, pins=layout)
    assert pinned.request.job.global_batch_size == 144


@pytest.mark.parametrize(("architecture", "trains"), [("hopper", False), ("ada", False), ("blackwell", True)])
def test_mxfp8_needs_units_that_scale_blocks(architecture: str, trains: bool) -> None:
    peaks = {"architecture": architecture, "peak_flops_per_s": {"bf16": 1e15, "fp8": 2e15}}
    assert resolved({"precision": "fp8"}, **peaks).precision == "fp8"
    if trains:
        assert resolved({"precision": "mxfp8"}, **peaks).precision == "mxfp8"
    else:
        with pytest.raises(SpecError, match=r"job.precision: no framework trains in mxfp8 on fake-80GB. Hint: fp8"):
            resolved({"precision": "mxfp8"}, **peaks)


@pytest.mark.parametrize(
    ("architecture", "others"),
    [("ampere", "flash_2 or cudnn, or leave it out"), ("blackwell", "flash_2 or cudnn"), ("volta", "leave it out")],
)
def test_flash_attention_3_is_hopper_s(architecture: str, others: str) -> None:
    given = {"attention_library": "flash_3"}
    assert resolved(given, architecture="hopper").attention_library == "flash_3"
    with pytest.raises(SpecError, match=rf"^job\.attention_library: .* not for fake-80GB\. Hint: {others}"):
        resolved(given, architecture=architecture)


@pytest.mark.parametrize("library", ["flash_2", "cudnn"])
def test_fused_libraries_are_for_ampere_and_newer(library: str) -> None:
    assert resolved({"attention_library": library}, architecture="ampere").attention_library == library
    with pytest.raises(SpecError, match=r"library: .* for Ampere and newer, not for fake-80GB\. Hint: leave it out"):
        resolved({"attention_library": library}, architecture="turing")


def test_the_format_of_gradients_is_assumed_unless_said() -> None:
    """It doubles what replicas exchange; under autocast it is that of the weights."""
    stacks, plain = fitted_stacks(), TrainingJob(sequence_length=1, global_batch_size=1, task="full")
    (megatron,) = gradient_notes(plain, None, stacks["megatron-core"])
    assert (megatron.field, megatron.code) == ("job.gradient_dtype", "assumed_default")
    assert megatron.message == "gradients summed in 32 bits (not given; the default of megatron-core)"
    assert "summed in 16 bits" in gradient_notes(plain, {}, stacks["deepspeed"])[0].message
    assert "summed in 32 bits" in gradient_notes(plain, {}, stacks["hf-trainer"])[0].message
    assert gradient_notes(replace(plain, gradient_dtype="bf16"), {"gradient_dtype": "bf16"}, stacks["fsdp"]) == ()
    assert gradient_notes(replace(plain, task="lora", lora=LoraSpec()), {}, stacks["fsdp"]) == ()


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        ("llama-3.1-8b", ("q", "k", "v", "o", "gate", "up", "down")),
        ("qwen3-30b-a3b", ("q", "k", "v", "o")),
        ("gpt-oss-20b", ("q", "k", "v", "o")),
    ],
)
def test_experts_have_adapters_only_where_they_are_named(model: str, targets: tuple[str, ...]) -> None:
    """Unsloth trains 3,981,312 parameters of gpt-oss-20b at rank 8: those of attention."""
    asked = {"task": "qlora", "lora_rank": 8}
    spec = resolve_model(model, default_catalog()).spec
    found, notes = resolve_job(asked, spec, cluster(), {})
    assert found.lora is not None
    assert found.lora.targets == targets
    assert any(f"adapters on {', '.join(targets)} (not given" in note.message for note in notes)
    named, _ = resolve_job(asked | {"lora_targets": "q,down"}, spec, cluster(), {})
    assert named.lora is not None
    assert named.lora.targets == ("q", "down")


def test_of_which_transformers_experts_are_priced_is_said() -> None:
    mixtral, llama = (resolve_model(name, default_catalog()).spec for name in ("mixtral-8x7b", "llama-2-7b"))
    for framework, older in (("deepspeed", "deepspeed-2024"), ("hf-trainer", "hf-trainer-2024")):
        (note,) = expert_notes(find_stack(framework), mixtral)
        assert note.message.endswith(f"4 loops over them: framework {older}")
        assert not expert_notes(find_stack(framework), llama)
        assert not find_stack(older).grouped_experts
        assert not expert_notes(find_stack(older), mixtral)
    assert not expert_notes(find_stack("megatron-core"), mixtral)


def test_experts_that_are_not_quantised_are_told_of() -> None:
    mixtral, llama = (resolve_model(name, default_catalog()).spec for name in ("mixtral-8x7b", "llama-2-7b"))
    assert wide_experts("qlora", find_stack("hf-trainer"), mixtral).startswith(
        "experts are not quantised: bitsandbytes leaves those of transformers 5"
    )
    assert not wide_experts("lora", find_stack("hf-trainer"), mixtral)
    assert not wide_experts("qlora", find_stack("hf-trainer"), llama)
    assert not wide_experts("qlora", find_stack("unsloth"), mixtral)
    answer = planner.plan("mixtral-8x7b", "8xH100", {"task": "qlora"})
    assert "wide_experts" in {note.code for note in answer.warnings}


def test_the_name_of_a_task_in_place_of_a_job_is_told_its_field() -> None:
    with pytest.raises(SpecError, match=r"must be a mapping of job fields; got 'LoRA'. Hint: \{'task': 'lora'\}"):
        resolve_job("LoRA", gpt(), cluster(), {})  # type: ignore[arg-type]


@pytest.mark.parametrize("experts", [False, True])
def test_all_linear_layers_are_those_of_no_name_given(experts: bool) -> None:
    """PEFT's ``all-linear`` reaches no stacked experts; the answer says which layers it means."""
    model = mixture() if experts else gpt()
    named, notes = resolve_job({"task": "lora", "lora_targets": "All-Linear"}, model, cluster(), {})
    usual, _ = resolve_job({"task": "lora"}, model, cluster(), {})
    assert named == usual
    assert any("(as all-linear means" in note.message for note in notes)
