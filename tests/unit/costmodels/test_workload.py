import pytest

from costmodels.workload import LoraSpec, TrainingJob
from profiles.errors import SpecError
from tests.fakes import job


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 0}, "job.sequence_length: must be between 1 and 16777216; got 0. Hint: 1"),
        ({"global_batch_size": 0}, "job.global_batch_size: must be between 1 and 4194304; got 0. Hint: 1"),
        (
            {"global_batch_size": 1 << 23},
            "job.global_batch_size: must be between 1 and 4194304; got 8388608. Hint: 4194304",
        ),
        ({"task": "dream"}, "job.task: unknown value 'dream'. Hint: use one of pretrain, full, lora, qlora"),
        (
            {"optimizer": "lion"},
            "job.optimizer: unknown value 'lion'. Hint: use one of adamw, adamw8bit, adafactor, sgd, none",
        ),
        ({"attention": "linear"}, "job.attention: unknown value 'linear'. Hint: use one of flash, unfused"),
        (
            {"master_dtype": "int8"},
            "job.master_dtype: unknown value 'int8'. Hint: use one of none, fp32, bf16, fp16",
        ),
        (
            {"state_dtype": "none"},
            "job.state_dtype: unknown value 'none'. Hint: use one of fp32, bf16, fp16, fp8, int8",
        ),
        (
            {"gradient_dtype": "none"},
            "job.gradient_dtype: unknown value 'none'. Hint: use one of fp32, bf16, fp16",
        ),
        (
            {"padding_efficiency": 0.0},
            "job.padding_efficiency: must be from 0.000488, one token of a sequence, to 1; got 0.0. "
            "Hint: 1 where nothing is padded",
        ),
        (
            {"padding_efficiency": 1.5},
            "job.padding_efficiency: must be from 0.000488, one token of a sequence, to 1; got 1.5. "
            "Hint: 1 where nothing is padded",
        ),
        ({"lora": LoraSpec()}, "job.lora: must be given exactly when task is lora or qlora; task is 'pretrain'"),
        ({"task": "qlora"}, "job.lora: must be given exactly when task is lora or qlora; task is 'qlora'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_job_that_cannot_exist_says_why(changes, message):
    with pytest.raises(SpecError) as caught:
        job(**changes)
    assert str(caught.value) == message


def test_an_unknown_precision_is_refused():
    with pytest.raises(SpecError, match=r"^job\.precision: unknown precision 'fp7'"):
        job(precision="fp7")


def test_long_words_are_cut_before_they_are_shown():
    with pytest.raises(SpecError) as caught:
        job(task="x" * 1000)
    assert "x" * 40 in str(caught.value)
    assert "x" * 41 not in str(caught.value)


def test_tokens_per_step_count_padding():
    # GPT-3 trains on 3.2 M tokens per step (arXiv:2005.14165 table 2.1): 1536 sequences of 2048.
    assert TrainingJob(sequence_length=2048, global_batch_size=1536, padding_efficiency=0.5).tokens_per_step == 3145728


@pytest.mark.parametrize(("task", "frozen"), [("pretrain", False), ("full", False), ("lora", True), ("qlora", True)])
def test_only_adapter_jobs_freeze_the_base(task, frozen):
    assert job(task=task, lora=LoraSpec() if frozen else None).trains_adapters_only is frozen


def test_numerics_follow_the_recipe():
    assert job(precision="fp8").numerics.gemm_format == "fp8"
    assert job(precision="BF16").numerics.storage_bytes == 2


@pytest.mark.parametrize(("name", "value"), [("fp8_attention", True), ("attention_library", "cudnn")])
def test_what_is_said_of_fused_attention_needs_it(name, value):
    assert getattr(job(**{name: value}), name) == value
    with pytest.raises(SpecError, match=f"^job.{name}: needs flash attention"):
        job(**{name: value}, attention="unfused")


@pytest.mark.parametrize("task", ["pretrain", "full", "qlora"])
def test_only_unquantised_adapters_have_fp32_weights_beside_them(task):
    assert job(task="lora", lora=LoraSpec(), frozen_dtype="fp32").frozen_dtype == "fp32"
    with pytest.raises(SpecError, match=r"^job.frozen_dtype: is of the weights beside unquantised adapters"):
        job(task=task, lora=LoraSpec() if task == "qlora" else None, frozen_dtype="fp32")
    with pytest.raises(SpecError, match=r"^job.frozen_dtype: unknown value 'bf16'. Hint: fp32, or leave it out$"):
        job(frozen_dtype="bf16")


@pytest.mark.parametrize("name", ["fused_cross_entropy", "linear_cross_entropy"])
def test_either_way_to_fuse_a_loss_counts(name):
    assert not job().fuses_loss
    assert job(**{name: True}).fuses_loss
