"""What would make something fit: smallest change first, and only what a search confirms."""

from typing import Any

import pytest

from planner import api
from planner.answer.remedies import find_remedies, larger_sizes, search_once
from planner.question.request import Options, resolve_request
from planner.ranking import Priced
from planner.results import RISKY, PlanEstimate, PlanResult, Request
from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec
from profiles.units import GIB

MODEL, CLUSTER = "llama-2-7b", "8xA100-80GB"
JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64, "precision": "bf16"}


def likely(answer: PlanResult) -> PlanEstimate:
    """The best plan that is likely to live."""
    return next(plan for plan in answer.plans if plan.oom_probability < RISKY)


def test_remedies_lift_what_was_fixed() -> None:
    """Without recomputation the micro-batch of 32 does not fit; letting go of either helps."""
    pins = {"tp": 1, "pp": 1, "zero": 3, "mbs": 8, "recompute": "none"}
    answer = api.plan(MODEL, CLUSTER, JOB | {"sequence_length": 4096}, pins=pins)
    assert not answer.fits
    assert answer.infeasible is not None
    codes = [remedy.code for remedy in answer.infeasible.remedies]
    assert codes[:2] == ["more_recompute", "smaller_micro_batch"]
    kept = answer.infeasible.remedies[0].plan
    assert (kept.tensor_parallel, kept.micro_batch_size) == (1, 8)


def test_recomputation_is_let_go_of_with_the_modules_that_were_named() -> None:
    pins = {"tp": 8, "mbs": 4, "recompute": "selective:mlp"}
    answer = api.plan("llama-2-13b", CLUSTER, {"sequence_length": 32768}, pins=pins)
    assert answer.infeasible is not None
    remedy = answer.infeasible.remedies[0]
    assert (remedy.code, remedy.fits) == ("more_recompute", True)


def test_more_memory_is_enough_memory() -> None:
    answer = api.plan("llama-3-70b", "8xA100-40GB", {"global_batch_size": 64})
    assert answer.infeasible is not None
    nearest = answer.infeasible.nearest
    assert nearest is not None
    (remedy,) = (item for item in answer.infeasible.remedies if item.code == "more_memory")
    device = default_catalog().devices[remedy.device]
    assert device.usable_memory_bytes >= nearest.peak_memory_bytes
    assert (remedy.num_devices, remedy.fits) == (8, True)
    assert api.plan("llama-3-70b", f"8x{device.name}", {"global_batch_size": 64}).fits


@pytest.mark.parametrize(("cluster", "gib"), [("16xA100", 45), ("16xA100", 20), ("8xA100", 79)])
def test_other_devices_and_less_left_free_leave_what_they_say_free(cluster: str, gib: float) -> None:
    """What is told to fit does, asked again with as much left free; no smaller card is offered for a larger one."""
    model = "llama-3-70b" if cluster == "16xA100" else MODEL
    answer = api.plan(model, cluster, {"global_batch_size": 64}, memory_reserve_bytes=gib * GIB)
    assert answer.infeasible is not None
    told = {remedy.code: remedy for remedy in answer.infeasible.remedies}
    other = told["more_memory"]
    again = f"{other.num_devices}x{other.device}"
    assert api.plan(model, again, {"global_batch_size": 64}, memory_reserve_bytes=gib * GIB).fits
    if gib == 45:  # 70B on 16 A100 leaves next to nothing
        return
    less = told["smaller_reserve"]
    left = float(less.message.split("leave ")[1].split(" GiB")[0])
    assert 0 <= left < gib
    assert f"instead of {gib} (--reserve-gib {left:g})" in less.message
    assert api.plan(model, cluster, {"global_batch_size": 64}, memory_reserve_bytes=left * GIB).fits
    assert less.peak_memory_bytes <= default_catalog().devices[less.device].usable_memory_bytes - left * GIB


def test_where_nothing_is_left_free_nothing_less_can_be() -> None:
    infeasible = api.plan("llama-3-70b", "8xA100-40GB", {"global_batch_size": 64}).infeasible
    assert infeasible is not None
    assert "smaller_reserve" not in {remedy.code for remedy in infeasible.remedies}


@pytest.mark.parametrize(
    ("model", "given", "precision", "attention", "newer"),
    [
        ("llama-2-13b", {}, "bf16", "flash", {"ampere"}),
        ("llama-2-70b", {}, "bf16", "flash", {"blackwell"}),
        ("llama-2-70b", {"precision": "fp16"}, "fp16", "flash", {"hopper", "blackwell"}),
        ("llama-2-70b", {"precision": "fp16", "attention": "unfused"}, "fp16", "unfused", {"hopper", "blackwell"}),
    ],
)
def test_what_was_assumed_for_old_devices_is_assumed_anew_for_others(
    model: str, given: dict[str, str], precision: str, attention: str, newer: set[str]
) -> None:
    """The smallest devices that hold such plans are of these architectures; at most three are tried."""
    request = resolve_request(model, "8xV100", {"global_batch_size": 64} | given, None, Options())
    assert (request.job.precision, request.job.attention) == ("fp16", "unfused")
    tried: set[tuple[str, str, str]] = set()

    def note(trial: Request, cluster: ClusterSpec) -> Priced:
        tried.add((cluster.device.architecture, trial.job.precision, trial.job.attention))
        raise SpecError("cluster", "only looked at")

    find_remedies(request, needed_bytes=130 * GIB, searcher=note)
    assert newer <= {trial[0] for trial in tried}
    assert {trial for trial in tried if trial[0] == "volta"} == {("volta", "fp16", "unfused")}
    others = {trial[1:] for trial in tried if trial[0] != "volta"}
    assert others == {(precision, attention)}


def test_another_device_is_priced_as_if_it_had_been_asked_about() -> None:
    job = {"global_batch_size": 64}
    answer = api.plan("llama-2-70b", "8xV100", job)
    assert answer.infeasible is not None
    (remedy,) = (item for item in answer.infeasible.remedies if item.code == "more_memory")
    asked = api.plan("llama-2-70b", f"8x{remedy.device}", job, variants=True, top=100)
    assert likely(asked).step_time_s == pytest.approx(remedy.step_time_s)


def looked_at(cluster: str, needed_gib: float) -> list[str]:
    """Devices that are tried in place of given ones which lack memory, in order."""
    request = resolve_request("llama-2-13b", cluster, {"global_batch_size": 64}, None, Options())
    tried: list[str] = []

    def note(_: Request, cluster: ClusterSpec) -> Priced:
        tried.append(cluster.device.name)
        raise SpecError("cluster", "only looked at")

    find_remedies(request, needed_bytes=needed_gib * GIB, searcher=note)
    return [name for name in dict.fromkeys(tried) if name != request.cluster.device.name]


def test_of_devices_with_as_much_memory_the_fastest_is_told() -> None:
    """H20 and H200 have 141 GB at 4.8 TB/s, and 148 and 989 TFLOP/s."""
    assert looked_at("8xH100", 120)[0] == "H200-SXM-141GB"
    assert "H20-SXM-141GB" not in looked_at("8xH100", 120)


def test_devices_with_links_of_their_own_are_replaced_by_such_devices() -> None:
    assert looked_at("8xA100-80GB", 90) == ["H200-SXM-141GB", "B200-SXM-180GB", "GB200-186GB"]
    assert looked_at("8xMI300X", 200)[0] == "MI325X"


def test_boards_in_slots_are_replaced_by_boards_in_slots() -> None:
    assert looked_at("4xL40S", 60)[:2] == ["H100-PCIe-80GB", "H100-NVL-94GB"]
    assert looked_at("2xRTX-PRO-6000-WS-96GB", 110)[0] == "H200-SXM-141GB"  # no larger ones; a GB10 is a computer


def test_fewer_devices_are_a_remedy_where_all_of_them_cannot_share_the_batch() -> None:
    answer = api.plan(MODEL, "7xA100-80GB", {"global_batch_size": 48, "sequence_length": 2048}, framework="deepspeed")
    assert answer.infeasible is not None
    (remedy,) = (item for item in answer.infeasible.remedies if item.code == "fewer_devices")
    assert (remedy.message, remedy.fits, remedy.num_devices) == ("use 6 devices", True, 6)


def test_of_a_kind_of_change_the_first_that_is_likely_to_live_is_told() -> None:
    """H200's 141 GB hold llama-3-70b on eight of them, and run out in more runs than one in five."""
    job = {"sequence_length": 8192}
    on_h200 = api.plan("llama-3-70b", "8xH200", job, framework="fsdp", top=100)
    assert on_h200.fits
    assert all(item.risky for item in on_h200.plans)
    answer = api.plan("llama-3-70b", "8xA100-40GB", job, framework="fsdp")
    assert answer.infeasible is not None
    (remedy,) = (item for item in answer.infeasible.remedies if item.code == "more_memory")
    assert (remedy.device, remedy.likely) == ("B200-SXM-180GB", True)


def test_adapters_may_be_of_a_quantised_model_and_on_attention_alone() -> None:
    job = {"sequence_length": 2048, "global_batch_size": 8, "task": "lora"}
    answer = api.plan("llama-3-70b", "1xA100-80GB", job, framework="huggingface")
    assert answer.infeasible is not None
    (remedy,) = (item for item in answer.infeasible.remedies if item.code == "quantised")
    asked = likely(api.plan("llama-3-70b", "1xA100-80GB", job | {"task": "qlora"}, framework="huggingface", top=50))
    assert (remedy.peak_memory_bytes, remedy.step_time_s) == (asked.peak_memory_bytes, asked.step_time_s)
    job = {"sequence_length": 2048, "global_batch_size": 4, "task": "qlora", "lora_targets": "q,k,v,o,gate,up,down"}
    answer = api.plan("qwen3-30b-a3b", "1xRTX-4090", job, framework="unsloth")
    assert answer.infeasible is not None
    (remedy,) = (item for item in answer.infeasible.remedies if item.code == "fewer_adapters")
    assert "--lora-targets q,k,v,o" in remedy.message
    assert remedy.fits


def test_lengths_between_a_half_and_the_whole_are_tried_too() -> None:
    """A quarter of 78475 leaves a third of the device empty."""
    job = {"sequence_length": 78475, "global_batch_size": 1, "task": "qlora", "lora_rank": 32}
    answer = api.plan("llama-3-8b", "1xRTX-4090", job, framework="unsloth")
    assert answer.infeasible is not None
    (remedy,) = (item for item in answer.infeasible.remedies if item.code == "shorter_sequence")
    length = int(remedy.message.split()[3])
    assert length % 128 == 0
    assert 78475 / 4 < length < 78475 / 2
    assert remedy.likely
    asked = api.plan("llama-3-8b", "1xRTX-4090", job | {"sequence_length": length}, framework="unsloth", top=50)
    assert likely(asked).peak_memory_bytes == remedy.peak_memory_bytes


def test_what_updates_in_the_backward_pass_may_train_adapters_instead() -> None:
    job = {"sequence_length": 2048, "global_batch_size": 1, "task": "full", "optimizer_in_backward": True}
    answer = api.plan("llama-3-8b", "1xRTX-4090", job, framework="fsdp")
    assert answer.infeasible is not None
    assert "adapters" in {remedy.code for remedy in answer.infeasible.remedies}


def test_a_plan_that_is_likely_to_live_is_told_before_a_faster_one() -> None:
    job = {"sequence_length": 2048, "global_batch_size": 32, "task": "full"}
    answer = api.plan("llama-3-8b", "1xA100-80GB", job, framework="deepspeed")
    assert answer.infeasible is not None
    found = {remedy.code: remedy for remedy in answer.infeasible.remedies}
    assert found["adapters"].oom_probability < RISKY
    asked = api.plan("llama-3-8b", "1xA100-80GB", job | {"task": "lora"}, framework="deepspeed")
    assert asked.riskier is not None
    assert asked.riskier.step_time_s < asked.plans[0].step_time_s
    assert asked.plans[0].step_time_s == pytest.approx(found["adapters"].step_time_s)


@pytest.mark.parametrize("framework", ["deepspeed", "huggingface"])
def test_a_single_device_may_offload(framework: str) -> None:
    """ZeRO-Offload on one GPU (arXiv:2101.06840); nothing else shards over a single rank."""
    job = {"sequence_length": 2048, "global_batch_size": 16, "task": "full", "linear_cross_entropy": True}
    answer = api.plan("llama-3-8b", "1xRTX-4090", job, framework=framework, offload=True, top=100)
    assert answer.fits
    assert all(plan.plan.offload_optimizer and plan.plan.zero_stage for plan in answer.plans)
    assert {plan.plan.zero_stage for plan in api.plan("llama-3.2-1b", "1xA100", job, framework=framework).plans} == {0}


def test_what_unfused_attention_needs_is_no_bound_on_devices_that_have_a_fused_one() -> None:
    """V100 would keep the scores of every layer; without them a GPU of 40 GB does."""
    pins = {"recompute": "none", "tp": 1, "pp": 1, "cp": 2}
    job = {"global_batch_size": 64, "sequence_length": 8192}
    answer = api.plan(MODEL, "8xV100-32GB", job, pins=pins)
    assert answer.infeasible is not None
    assert answer.infeasible.nearest is not None
    assert answer.infeasible.nearest.peak_memory_bytes > 100 * GIB
    (remedy,) = (item for item in answer.infeasible.remedies if item.code == "more_memory")
    assert remedy.device == "A100-SXM-40GB"
    assert api.plan(MODEL, "8xA100-40GB", job, pins=pins).fits


def test_kin_come_first() -> None:
    others = looked_at("8xA100-40GB", 70)
    assert others[0] == "A100-SXM-80GB"
    assert len(others) == 3


@pytest.mark.parametrize(
    ("cluster", "job", "pins", "batch"),
    [
        ("8xA100-80GB", {"task": "lora", "global_batch_size": 3}, {}, 8),  # the trainer is data parallel only
        ("8xA100-80GB", {"global_batch_size": 100}, {"tp": 1, "pp": 1}, 104),
        ("8xA100-80GB", {"global_batch_size": 100}, {"tp": 1, "pp": 1, "mbs": 4}, 96),
        # 16 ranks per stage and 5 stages share out 80 of 800; 25 stages of 32 layers need a layout to be given.
        ("100x8xH100", {"global_batch_size": 8}, {}, 10),
    ],
)
def test_a_batch_that_ranks_cannot_share_names_the_nearest_that_they_can(
    cluster: str, job: dict[str, Any], pins: dict[str, int], batch: int
) -> None:
    framework = None if job.get("task") == "lora" else "megatron-2024"
    answer = api.plan(MODEL, cluster, {"sequence_length": 512, **job}, pins=pins, framework=framework)
    assert answer.infeasible is not None
    assert answer.considered == 0
    (first, *_) = answer.infeasible.remedies
    assert (first.code, first.fits) == ("other_batch", True)
    assert first.message == f"a global batch of {batch} sequences"
    assert first.plan.data_parallel * first.plan.micro_batch_size * first.plan.num_microbatches == batch
    assert api.plan(MODEL, cluster, {"sequence_length": 512, **job, "global_batch_size": batch}, pins=pins).fits


def test_remedies_find_the_next_size() -> None:
    request = resolve_request("llama-3-70b", "8xH100", {"global_batch_size": 64}, None, Options())
    sizes = {remedy.code: remedy.num_devices for remedy in find_remedies(request)}
    assert sizes["more_devices"] == 24
    assert not api.plan("llama-3-70b", "16xH100", {"global_batch_size": 64}).likely
    assert api.plan("llama-3-70b", f"{sizes['more_devices']}xH100", {"global_batch_size": 64}).fits


def test_a_trainer_that_sums_gradients_whole_needs_a_smaller_batch_not_more_devices() -> None:
    """Of 27B parameters in 16 bits the sums over micro-batches are 51 GiB on every rank, however many shard."""
    asked = {"task": "full", "sequence_length": 8192}
    answer = api.plan("gemma-2-27b", "4x8xA100-SXM-80GB", asked)
    assert answer.infeasible is not None
    remedy = next(each for each in answer.infeasible.remedies if each.code == "other_batch")
    assert (remedy.fits, remedy.num_devices, remedy.plan.num_microbatches) == (True, 32, 1)
    assert api.plan("gemma-2-27b", "4x8xA100-SXM-80GB", asked | {"global_batch_size": 32}).fits


def test_larger_sizes_are_whole_nodes() -> None:
    assert larger_sizes(parse_cluster("1xA100"))[:5] == [2, 4, 8, 16, 32]
    assert larger_sizes(parse_cluster("3xA100"))[:3] == [6, 24, 48]
    assert larger_sizes(parse_cluster("8xA100"))[:3] == [16, 32, 64]


def test_where_logits_are_what_is_too_large_a_loss_without_them_is_a_remedy() -> None:
    """64 Ki tokens on each of 8 devices, of a vocabulary of 125 Ki: 17 GB in 16 bits, 34 GB in fp32."""
    job = {"sequence_length": 1 << 19, "global_batch_size": 8}
    answer = api.plan("llama-3.1-8b", "8xH100-SXM-80GB", job)
    assert answer.infeasible is not None
    remedy = next(each for each in answer.infeasible.remedies if each.code == "linear_loss")
    assert (remedy.fits, remedy.num_devices) == (True, 8)
    asked = api.plan("llama-3.1-8b", "8xH100-SXM-80GB", job | {"linear_cross_entropy": True})
    assert asked.best is not None
    assert asked.best.step_time_s == remedy.step_time_s


def test_from_one_device_the_number_is_found_that_the_largest_models_need() -> None:
    answer = api.plan("llama-3-405b", "1xH100-SXM-80GB")
    assert answer.infeasible is not None
    (remedy,) = answer.infeasible.remedies
    assert (remedy.code, remedy.fits, remedy.num_devices) == ("more_devices", True, 112)
    assert remedy.message == "use 112 devices and a global batch of 1008 sequences"  # nobody said how many


def test_who_fine_tunes_all_weights_may_do_without_fp32_or_without_training_them() -> None:
    job = {"sequence_length": 2048, "global_batch_size": 8, "task": "full"}
    answer = api.plan("llama-3-8b", "1xA100-80GB", job, framework="fsdp")
    assert answer.infeasible is not None
    found = {remedy.code: remedy for remedy in answer.infeasible.remedies}
    assert found["sixteen_bits"].fits
    assert found["adapters"].fits
    asked = job | {"master_dtype": "none", "state_dtype": "bf16", "gradient_dtype": "bf16"}
    best = likely(api.plan("llama-3-8b", "1xA100-80GB", asked, framework="fsdp", top=50))
    assert best.peak_memory_bytes == found["sixteen_bits"].peak_memory_bytes
    assert best.oom_probability == pytest.approx(found["sixteen_bits"].oom_probability)
    told = [note.message for note in answer.request.assumptions]
    assert "master copy of the weights in fp32, optimizer states in fp32 (not given)" in told


def test_a_batch_that_no_ranks_share_is_not_told_of_as_too_much_memory() -> None:
    answer = api.plan("llama-3-8b", "7xH100", {"task": "lora", "global_batch_size": 128})
    assert answer.infeasible is not None
    batches = [remedy for remedy in answer.infeasible.remedies if remedy.code == "other_batch"]
    assert [remedy.message for remedy in batches] == ["a global batch of 126 sequences"]


@pytest.mark.parametrize(
    ("framework", "optimizer", "states"),
    [("megatron", "adamw", "fp8"), ("fsdp", "adamw8bit", "int8"), ("megatron-deepspeed", "adamw8bit", "int8")],
)
def test_states_in_8_bits_are_those_that_the_framework_has(framework: str, optimizer: str, states: str) -> None:
    """Megatron-LM has no optimizer of bitsandbytes', and the moments of its own in 8 bits."""
    request = resolve_request("llama-3-8b", "4xA100-40GB", JOB, None, Options(framework=framework))
    asked: list[Request] = []

    def search(question: Request, cluster: ClusterSpec) -> Priced:
        asked.append(question)
        return search_once(question, cluster)

    found = find_remedies(request, searcher=search)
    jobs = {(each.job.optimizer, each.job.state_dtype) for each in asked} - {("adamw", "fp32")}
    assert jobs == {(optimizer, states)}
    assert [remedy.fits for remedy in found if remedy.code == "smaller_states"] == [True]


def test_what_the_trainer_cannot_share_out_another_framework_does() -> None:
    """Logits of 64 Ki tokens fill a device of 80 GB; eight that share the sequence hold an eighth each."""
    job = {"task": "full", "sequence_length": 65536, "global_batch_size": 8, "precision": "bf16"}
    answer = api.plan("qwen2.5-3b", CLUSTER, job, framework="huggingface")
    assert answer.infeasible is not None
    (remedy,) = (item for item in answer.infeasible.remedies if item.code == "other_framework")
    assert remedy.fits
    assert "--framework fsdp" in remedy.message
    assert remedy.plan.context_parallel * remedy.plan.pipeline_parallel * remedy.plan.tensor_parallel > 1
    asked = likely(api.plan("qwen2.5-3b", CLUSTER, job, framework="fsdp", top=50))
    assert remedy.step_time_s == pytest.approx(asked.step_time_s)
    assert remedy.peak_memory_bytes == pytest.approx(asked.peak_memory_bytes)


@pytest.mark.parametrize(("cluster", "framework"), [("1xA100-80GB", "huggingface"), (CLUSTER, "fsdp")])
def test_one_device_and_other_frameworks_have_nothing_more_to_share(cluster: str, framework: str) -> None:
    job = {"task": "full", "sequence_length": 1 << 20, "global_batch_size": 8, "precision": "bf16"}
    answer = api.plan("qwen2.5-3b", cluster, job, framework=framework)
    assert answer.infeasible is not None
    assert "other_framework" not in {item.code for item in answer.infeasible.remedies}


def test_of_one_device_nothing_is_said_of_ranks() -> None:
    job = {"task": "full", "sequence_length": 2048, "global_batch_size": 16, "optimizer": "adamw8bit"}
    answer = api.plan("qwen3-1.7b", "1xA10G", job, framework="huggingface")
    assert answer.infeasible is not None
    told = [item.message for item in answer.infeasible.remedies if item.code == "other_batch"]
    assert [message.split(":")[0] for message in told] == ["a global batch of 1 sequence"]
    assert not any("ranks" in message for message in told)


def test_adapters_of_a_mixture_are_those_that_asking_for_adapters_gives() -> None:
    """On attention alone: with some on 128 experts of every layer a step would take five times as long."""
    job = {"task": "full", "sequence_length": 512, "global_batch_size": 16}
    answer = api.plan("qwen3-30b-a3b", "1xA100-80GB", job, framework="deepspeed")
    assert answer.infeasible is not None
    (remedy,) = (item for item in answer.infeasible.remedies if item.code == "adapters")
    asked = likely(api.plan("qwen3-30b-a3b", "1xA100-80GB", job | {"task": "lora"}, framework="deepspeed", top=50))
    assert remedy.step_time_s == pytest.approx(asked.step_time_s)
    assert remedy.peak_memory_bytes == pytest.approx(asked.peak_memory_bytes)
