"""The training job a user means: what was said, and documented defaults for what was not.

Defaults: pre-training in bf16 (fp16, or else fp32, where the device has no bf16 units); sequences of 4096 tokens or
the model's longest; a global batch of 4 Mi tokens to pre-train (Llama 2, arXiv:2307.09288 section 2.2, used 4M; one
sequence for 8 devices where that is more) and of 128 sequences to fine-tune (Stanford Alpaca's recipe; one
micro-batch per device where that is more), rounded so that the devices divide it. Any two of sequence length,
sequences per batch and tokens per batch give the third; any two of micro-batch, micro-batches and global batch too,
once the data-parallel degree is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from costmodels.autocast import sharding_stack
from costmodels.eager_attention import unfused_by_default
from costmodels.gradient_formats import gradient_element_bytes
from costmodels.workload import MAX_GLOBAL_BATCH, TASKS, TrainingJob
from planner.question.attention import asked_attention_notes, attention_notes, check_width, default_attention
from planner.question.field_names import meant_field
from planner.question.job_checks import MAX_TRAIN_TOKENS, check_job, check_quantised
from planner.question.lora import adapters_of
from planner.results import Note
from planner.rules.base import divisors
from profiles.errors import SpecError, check_between, meant_among, shown
from profiles.hardware import ClusterSpec, DeviceSpec
from profiles.model import ModelSpec
from profiles.precision import format_name
from profiles.scalars import plain, without_point
from profiles.stack import StackSpec

DEFAULT_SEQUENCE = 4096  # tokens
PRETRAIN_BATCH_TOKENS = 4 << 20  # arXiv:2307.09288 section 2.2
PRETRAIN_DEVICES_PER_SEQUENCE = 8  # at most: 2,048 sequences on 16,384 GPUs, arXiv:2407.21783 table 4
FINETUNE_BATCH_SEQUENCES = 128  # Stanford Alpaca training recipe

_TYPES: dict[Any, type] = {int: int, str: str, bool: bool, float: float, int | None: int, float | None: float}
_KINDS = {item.name: _TYPES[item.type] for item in fields(TrainingJob) if item.name != "lora"}
_EXTRA: dict[str, type] = {"global_batch_tokens": float, "lora_rank": int, "lora_targets": object, "lora": object}
JOB_FIELDS = (*_KINDS, *_EXTRA)
_FORMATS = ("precision", *(name for name in _KINDS if name.endswith("_dtype")))
_FINE_TUNING = ("sft", "finetune", "finetuning", "fine-tune", "fine-tuning")  # any of three tasks
_NEAR, _MOST_TRIED = 0.05, 64  # of a batch that nobody asked for; and numbers on either side
_MEANT = 0.02  # of one asked for in tokens that are no whole number of sequences: 4M is also said of 4 Mi, 5 % more


def resolve_job(
    given: TrainingJob | Mapping[str, Any] | None, model: ModelSpec, cluster: ClusterSpec, pins: Mapping[str, int]
) -> tuple[TrainingJob, tuple[Note, ...]]:
    """The job in full, and what was assumed.

    Args:
        given: A job, a mapping of its fields (plus ``global_batch_tokens``, ``lora_rank`` and
            ``lora_targets``), or None.
        model: Its longest sequence bounds the default.
        cluster: Its devices shape the default batch and precision.
        pins: Fixed plan columns; micro-batch, micro-batches and degrees may imply the batch.

    Raises:
        SpecError: If a field is unknown, of the wrong type, out of bounds or contradicts another.
    """
    notes: list[Note] = []
    if isinstance(given, TrainingJob):
        name = format_name(given.precision)
        job = given if name == given.precision else replace(given, precision=name)
    else:
        values = _checked({} if given is None else given)
        _fill_precision(values, cluster, notes)
        _fill_sequence(values, model, notes)
        _fill_batch(values, cluster, pins, notes)
        _fill_lora(values, model, notes)
        job = TrainingJob(**values)
    check_job(job, model, cluster)
    return job, tuple(notes)


def default_precision(devices: Sequence[DeviceSpec]) -> str:
    """The number format of a job that names none: the first of bf16, fp16 and fp32 that all the devices have."""
    usual = ("bf16", "fp16", "fp32")
    return next((name for name in usual if all(name in each.peak_flops_per_s for each in devices)), usual[0])


def with_attention(
    job: TrainingJob,
    given: TrainingJob | Mapping[str, Any] | None,
    stack: StackSpec,
    cluster: ClusterSpec,
    model: ModelSpec,
) -> tuple[TrainingJob, tuple[Note, ...]]:
    """The job with the attention that its stack has on such devices, unless it was said, and what was assumed.

    Who names a library wants the fused one that the stack does not pick itself.

    Args:
        job: The job in full.
        given: What was said of it.
        stack: Who runs it.
        cluster: Its device may be too old for the fused kernels.
        model: Its attention may be one that they do not know.

    Raises:
        SpecError: If a kernel was named that does not know it.
    """
    device = cluster.device
    check_width(job, stack, model)
    if said("attention", given) or (job.attention_library and unfused_by_default(model, stack)):
        return job, asked_attention_notes(job, stack, device, model)
    attention = default_attention(stack, device, model)
    return replace(job, attention=attention), attention_notes(attention, stack, device, model)


def with_loss(
    job: TrainingJob, given: TrainingJob | Mapping[str, Any] | None, stack: StackSpec
) -> tuple[TrainingJob, tuple[Note, ...]]:
    """The job with the loss that its stack has, unless it was said, and what was assumed.

    Args:
        job: The job in full.
        given: What was said of it.
        stack: Who runs it.
    """
    if (
        said("linear_cross_entropy", given)
        or said("fused_cross_entropy", given)
        or not stack.joins_loss(job.sequence_length)
    ):
        return job, ()
    message = (
        f"output layer and loss are one, as in {stack.name} beyond {stack.linear_loss_tokens:,} tokens (not given)"
    )
    note = Note(code="assumed_default", field="job.linear_cross_entropy", message=message)
    return replace(job, linear_cross_entropy=True), (note,)


def state_notes(job: TrainingJob, given: TrainingJob | Mapping[str, Any] | None) -> tuple[Note, ...]:
    """What is assumed of the copies in which weights that are fine-tuned are updated: most of what they take."""
    if job.task != "full" or said("master_dtype", given) or said("state_dtype", given):
        return ()
    message = f"master copy of the weights in {job.master_dtype}, optimizer states in {job.state_dtype} (not given)"
    return (Note(code="assumed_default", field="job.master_dtype", message=message),)


def gradient_notes(
    job: TrainingJob, given: TrainingJob | Mapping[str, Any] | None, stack: StackSpec
) -> tuple[Note, ...]:
    """What is assumed of the format in which gradients are summed: what replicas exchange doubles with its bytes."""
    if job.trains_adapters_only or (said("gradient_dtype", given) and job.gradient_dtype):
        return ()
    bits = [8 * gradient_element_bytes(job, each) for each in (stack, sharding_stack(stack, weights=True))]
    sharded = f", in {bits[1]:.0f} where model states are sharded" if bits[1] != bits[0] else ""
    message = f"gradients summed in {bits[0]:.0f} bits{sharded} (not given; the default of {stack.name})"
    return (Note(code="assumed_default", field="job.gradient_dtype", message=message),)


def cast_notes(job: TrainingJob, stack: StackSpec) -> tuple[Note, ...]:
    """That it was said that nothing is cast to fp32, where the stack casts nothing anyway."""
    if job.task != "qlora" or job.fp32_unquantised or stack.casts_unquantised:
        return ()
    message = f"fp32_unquantised has no effect: {stack.name} casts nothing that it does not quantise"
    return (Note(code="no_effect", field="job.fp32_unquantised", message=message),)


def expert_notes(stack: StackSpec, model: ModelSpec) -> tuple[Note, ...]:
    """Of which transformers experts are priced: before 5 it ran them in a loop, several times as slowly."""
    if model.moe is None or not stack.transformers_models or not stack.grouped_experts or stack.name == "unsloth":
        return ()
    older = {"deepspeed": "deepspeed-2024"}.get(stack.framework, "hf-trainer-2024")
    message = f"experts in one grouped product, as transformers 5 runs them; 4 loops over them: framework {older}"
    return (Note(code="assumed_default", field="framework", message=message),)


def wide_experts(task: str, stack: StackSpec, model: ModelSpec) -> str:
    """That QLoRA leaves most of a mixture of experts as it is in a stack that stacks them; empty where it does not."""
    if task != "qlora" or model.moe is None or stack.quantises_experts:
        return ""
    return (
        "experts are not quantised: bitsandbytes leaves those of transformers 5 as they are (its issue 1849); "
        "framework unsloth quantises them, and so does hf-trainer-4bit-experts (axolotl's quantize_moe_experts)"
    )


def on_other_devices(
    job: TrainingJob,
    given: TrainingJob | Mapping[str, Any] | None,
    stack: StackSpec,
    cluster: ClusterSpec,
    model: ModelSpec,
) -> TrainingJob:
    """The job on devices it was not asked about: what was assumed of precision and attention is assumed anew."""
    if not said("precision", given):
        job = replace(job, precision=default_precision([cluster.device]))
    return with_attention(job, given, stack, cluster, model)[0]


def on_another_stack(
    job: TrainingJob,
    given: TrainingJob | Mapping[str, Any] | None,
    stack: StackSpec,
    cluster: ClusterSpec,
    model: ModelSpec,
) -> TrainingJob:
    """The job under a stack it was not asked about: what was assumed of attention and loss is assumed anew."""
    if not said("linear_cross_entropy", given):
        job = replace(job, linear_cross_entropy=False)
    return with_loss(with_attention(job, given, stack, cluster, model)[0], given, stack)[0]


def said(name: str, given: TrainingJob | Mapping[str, Any] | None) -> bool:
    """Whether a field of the job was given: of a whole job each is."""
    return isinstance(given, TrainingJob) or (given is not None and given.get(name) is not None)


def _assume(notes: list[Note], name: str, message: str) -> None:
    notes.append(Note(code="assumed_default", field=f"job.{name}", message=message))


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        task = str(given).strip().lower()
        hint = f"{{'task': '{task}'}}" if task in TASKS else "for example {'sequence_length': 4096}"
        raise SpecError("job", f"must be a mapping of job fields; got {shown(given)}", hint)
    values: dict[str, Any] = {}
    for name, value in given.items():
        kind = _KINDS.get(name, _EXTRA.get(name))
        if kind is None:
            hint = meant_field(str(name), JOB_FIELDS) or meant_among(str(name), JOB_FIELDS)
            raise SpecError(f"job.{str(name)[:40]}", "unknown field", hint)
        if value is None:
            continue
        values[name] = _typed(f"job.{name}", value, kind)
        if kind is str:
            values[name] = format_name(values[name]) if name in _FORMATS else values[name].strip().lower()
    if (task := values.get("task", TASKS[0])) not in TASKS:
        hint = f"use one of {', '.join(TASKS)}; ppo, dpo and the like are workflows: planner plan --job"
        if task in _FINE_TUNING:
            hint = "full, where all weights are trained; lora or qlora, where adapters are"
        raise SpecError("job.task", f"unknown value {task[:40]!r}", hint)
    if values.get("fp32_unquantised") is False:  # True is what documents of every job echo
        check_quantised(task)
    return values


def _typed(name: str, value: Any, kind: type) -> Any:
    value = plain(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e300 else value
    value = without_point(value) if kind is int else value
    if kind is not object and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
        wanted = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
        raise SpecError(name, f"must be {wanted}; got {shown(value)}")
    return value


def _fill_precision(values: dict[str, Any], cluster: ClusterSpec, notes: list[Note]) -> None:
    if "precision" in values:
        return
    values["precision"] = default_precision([cluster.device])
    reason = "" if "bf16" in cluster.device.peak_flops_per_s else f"; {cluster.device.name} has no bf16 units"
    _assume(notes, "precision", f"precision {values['precision']} (not given{reason})")


def _fill_sequence(values: dict[str, Any], model: ModelSpec, notes: list[Note]) -> None:
    tokens, batch = values.get("global_batch_tokens"), values.get("global_batch_size")
    if "sequence_length" in values:
        return
    if tokens is not None and batch is not None:
        length, rest = divmod(tokens, batch) if batch > 0 else (0, 1)
        if rest:
            problem = f"{tokens:g} is not a multiple of global_batch_size={batch}"
            raise SpecError("job.global_batch_tokens", problem, "say how long sequences are, and one of the two")
        values["sequence_length"] = int(length)
        split = f"{tokens:,.0f} tokens a batch over {batch} sequences"
        _assume(notes, "sequence_length", f"sequences of {length:.0f} tokens (not given: {split})")
        return
    longest = model.max_sequence_length or DEFAULT_SEQUENCE
    values["sequence_length"] = min(longest, DEFAULT_SEQUENCE)
    _assume(notes, "sequence_length", f"sequences of {values['sequence_length']} tokens (not given)")


def _fill_batch(values: dict[str, Any], cluster: ClusterSpec, pins: Mapping[str, int], notes: list[Note]) -> None:
    tokens = values.pop("global_batch_tokens", None)
    sequence = values["sequence_length"]
    if tokens is not None:
        _batch_of_tokens(values, tokens, cluster, pins, notes)
    if "global_batch_size" in values:
        return
    implied = _implied_batch(cluster, pins)
    if implied is not None:
        values["global_batch_size"] = implied
        return
    if "micro_batch_size" in pins and "num_microbatches" in pins:
        raise SpecError(
            "job.global_batch_size",
            "is needed: micro-batch and micro-batches alone leave the data-parallel degree open",
            "give the global batch, or all of tp, pp and cp",
        )
    pretrain = values.get("task", "pretrain") == "pretrain"
    target = max(PRETRAIN_BATCH_TOKENS // max(sequence, 1), 1) if pretrain else FINETUNE_BATCH_SEQUENCES
    why = "4 Mi tokens" if pretrain else f"{FINETUNE_BATCH_SEQUENCES} sequences"
    why += ", rounded to the devices"
    ranks, size = _replicas(cluster.num_devices, pins), pins.get("micro_batch_size", 1)
    each, least = ranks * size, cluster.num_devices // PRETRAIN_DEVICES_PER_SEQUENCE
    if values.get("optimizer_in_backward"):  # which accumulates nothing
        target, why = each, "one micro-batch per device, as the optimizer works in the backward pass"
    elif not pretrain and target < each:  # the usual framework, the Trainer, has nothing but replicas
        target, why = each, "one micro-batch per device"
    elif pretrain and target < least:
        target, why = least, f"one sequence for {PRETRAIN_DEVICES_PER_SEQUENCE} devices"
    batch = rounded_batch(target, cluster.num_devices, {})
    if batch % (each * pins.get("num_microbatches", 1)):  # what is fixed cannot share it
        batch = rounded_batch(target, cluster.num_devices, pins)
    if batch < ranks:
        why += f"; fewer than {ranks} replicas, which rules out data parallelism alone: give the batch you train with"
    values["global_batch_size"] = batch
    _assume(notes, "global_batch_size", f"a global batch of {batch} sequences (not given: {why})")


def _batch_of_tokens(
    values: dict[str, Any], tokens: float, cluster: ClusterSpec, pins: Mapping[str, int], notes: list[Note]
) -> None:
    sequence = values["sequence_length"]
    check_between("job.global_batch_tokens", tokens, 1, MAX_TRAIN_TOKENS)
    batch, rest = divmod(tokens, sequence) if sequence > 0 else (0, 1)
    if "global_batch_size" in values:
        if values["global_batch_size"] * sequence != tokens:
            raise SpecError(
                "job.global_batch_tokens",
                f"{tokens:g} contradicts {values['global_batch_size']} sequences of {sequence} tokens",
                "give two of tokens, sequence length and batch",
            )
        return
    values["global_batch_size"] = int(min(batch, MAX_GLOBAL_BATCH + 1))
    if rest:
        batch = max(tokens / max(sequence, 1), 1)
        values["global_batch_size"] = rounded_batch(batch, cluster.num_devices, pins, near=_MEANT)
        near = f"{values['global_batch_size']} sequences of {sequence}, rounded to the devices and their micro-batches"
        _assume(notes, "global_batch_size", f"a batch of {tokens:,.0f} tokens is taken as {near}")


def _implied_batch(cluster: ClusterSpec, pins: Mapping[str, int]) -> int | None:
    """Micro-batch x micro-batches x data-parallel degree, when all three are fixed."""
    d = pins.get("data_parallel")
    degrees = [pins.get(name) for name in ("tensor_parallel", "pipeline_parallel", "context_parallel")]
    if d is None and degrees[0] is not None and degrees[1] is not None:
        d = cluster.num_devices // max(degrees[0] * degrees[1] * (degrees[2] or 1), 1)
    b, m = pins.get("micro_batch_size"), pins.get("num_microbatches")
    return None if d is None or b is None or m is None else max(b * m * d, 1)


def rounded_batch(target: float, num_devices: int, pins: Mapping[str, int], *, near: float = _NEAR) -> int:
    """Sequences near ``target`` that the data-parallel ranks can share.

    With the pinned micro-batch set apart: a multiple of the ranks when there are no more of them than micro-batches
    wanted (the target itself if it is one, else so many each that most micro-batch sizes divide it, within a share
    ``near`` of the target); else the divisor of the ranks nearest to it.
    """
    ranks = _replicas(num_devices, pins)
    unit = pins.get("micro_batch_size", 1) * pins.get("num_microbatches", 1)
    wanted = target / unit
    if ranks <= wanted or "data_parallel" in pins:
        each = int(wanted / ranks) if wanted % ranks == 0 else most_divisible(wanted / ranks, near)
        shared = each * ranks
    else:
        shared = min(divisors(ranks), key=lambda batch: (abs(batch - wanted), batch))
    return min(shared * unit, MAX_GLOBAL_BATCH)


def most_divisible(wanted: float, near: float = _NEAR) -> int:
    """Of the whole numbers within a share ``near`` of what is wanted the one with most divisors, then the nearest."""
    nearest = max(round(wanted), 1)
    reach = min(int(near * wanted), _MOST_TRIED)
    counts = range(nearest - reach, nearest + reach + 1)
    among = [count for count in counts if abs(count - wanted) <= near * wanted]
    return max(among or [nearest], key=lambda count: (len(divisors(count)), -abs(count - wanted)))


def _replicas(num_devices: int, pins: Mapping[str, int]) -> int:
    """Data-parallel ranks that fixed degrees leave."""
    model_degree = 1
    for name in ("tensor_parallel", "pipeline_parallel", "context_parallel"):
        model_degree *= pins.get(name, 1)
    return pins.get("data_parallel", max(num_devices // model_degree, 1))


def _fill_lora(values: dict[str, Any], model: ModelSpec, notes: list[Note]) -> None:
    rank, targets, lora = (values.pop(name, None) for name in ("lora_rank", "lora_targets", "lora"))
    adapters = adapters_of(values.get("task", TASKS[0]), rank=rank, targets=targets, lora=lora, model=model)
    for name, message in adapters.assumed.items():
        _assume(notes, f"lora_{name}", message)
    if adapters.lora is not None:
        values["lora"] = adapters.lora
