"""The plan and the job of a published row, with what its stack does by default where the row is silent."""

import re
from dataclasses import dataclass, field

from costmodels.plan import AxisOrder, ContextKind, ExecutionPlan, Recompute, RecomputeModule, Schedule
from costmodels.stages.balance import balanced_stage_layers
from costmodels.workload import ADAPTER_TASKS, TrainingJob
from planner.question.attention import default_attention
from planner.validate.tables import recipes, wording
from planner.validate.tables.reader import Row
from planner.validate.tables.rows import CannotScore, Contradiction
from planner.validate.tables.stack_choice import StackDefaults
from profiles.errors import SpecError
from profiles.hardware import ClusterSpec
from profiles.model import ModelSpec
from profiles.stacks import find_stack, load_priors

# A global batch this close to a multiple of micro-batch and replicas was rounded by hand.
_ROUNDED_BATCH = 0.02
# From here on nobody packs two sequences into a micro-batch.
_LONG_SEQUENCE = 16384
# Nodes over which NVIDIA's Paxml recipes shard one replica (FSDP in paxml/configure.sh of dgxc-benchmarking).
_PAXML_SHARD_NODES = (("5B (", 1), ("", 16))
BATCH_CHOSEN = "batch size = best of"  # in the notes: not every row ran with the one in its column
RECOMPUTE_ASSUMED = "recomputation not printed"


@dataclass(slots=True)
class Reading:
    """A row being read: what is known so far, the assumptions made, and whether it is of a user's own table."""

    row: Row
    model: ModelSpec
    cluster: ClusterSpec
    defaults: StackDefaults
    assumptions: list[str] = field(default_factory=list)
    users_own: bool = False

    @property
    def published_on(self) -> str:
        """Stack of a published row, whose habits fill in what it leaves out; empty for a user's own."""
        return "" if self.users_own else self.defaults.stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Degrees:
    """Parallel degrees of a row."""

    tensor: int
    pipeline: int
    data: int
    context: int
    expert: int


def degrees_of(row: Row, num_devices: int) -> Degrees:
    """The degrees; the data-parallel one is derived when only it is missing.

    Raises:
        CannotScore: If a degree is not stated, or they do not multiply to the device count.
    """
    cells = {column: row.integer(column) for column in ("tp", "pp", "dp", "cp", "ep")}
    if num_devices == 1:
        return Degrees(tensor=1, pipeline=1, data=1, context=1, expert=1)
    tensor, pipeline, context = cells["tp"], cells["pp"], cells["cp"] or 1
    if not tensor or not pipeline:
        missing = " and ".join(word for word, value in (("tensor", tensor), ("pipeline", pipeline)) if not value)
        raise CannotScore(f"plan not stated: {missing} parallel degree missing")
    rest = tensor * pipeline * context
    if num_devices % rest:
        raise Contradiction(f"tp x pp x cp = {rest} does not divide {num_devices} GPUs")
    data = cells["dp"] or num_devices // rest
    if data * rest != num_devices:
        raise Contradiction(f"tp x pp x cp x dp = {data * rest}, not {num_devices} GPUs")
    expert = cells["ep"] or wording.noted_experts(row) or 1
    return Degrees(tensor=tensor, pipeline=pipeline, data=data, context=context, expert=expert)


def batch_of(reading: Reading, degrees: Degrees) -> tuple[int, int, int]:
    """Micro-batch size, micro-batches per step and replica, and global batch.

    Raises:
        CannotScore: If the micro-batch is neither stated nor implied, or the batch does not divide.
    """
    row = reading.row
    try:
        micro = row.integer("micro_batch")
    except SpecError:
        raise CannotScore(f"micro-batch {row.text('micro_batch')!r} is not a whole number of sequences") from None
    batch, accumulation = row.integer("global_batch_seqs"), recipes.preset_accumulation(row)
    accumulation = accumulation or wording.accumulation_of(row)
    micro = wording.bracketed_micro_batch(row, degrees.data) or micro
    if not micro:
        micro = _implied_micro_batch(reading, degrees, batch, accumulation)
    if BATCH_CHOSEN in row.text("notes"):
        reading.assumptions.append("micro-batch printed as the best of several")
    if not batch:
        if not accumulation:
            reading.assumptions.append("global batch not printed: one micro-batch per pipeline stage and step")
            accumulation = degrees.pipeline
        batch = micro * degrees.data * accumulation
    per_micro = micro * degrees.data
    count = max(1, round(batch / per_micro))
    if abs(count * per_micro / batch - 1) > _ROUNDED_BATCH:
        raise Contradiction(f"batch {batch} is not a multiple of micro-batch x replicas = {per_micro}")
    return micro, count, count * per_micro


def _implied_micro_batch(reading: Reading, degrees: Degrees, batch: int | None, accumulation: int | None) -> int:
    if batch and accumulation and batch % (degrees.data * accumulation) == 0:
        return batch // (degrees.data * accumulation)
    if batch == degrees.data:
        return 1
    if "torchtitan" in reading.row.text("framework").lower() and batch and degrees.pipeline > 1:
        # torchtitan of 2024 splits the local batch into as many micro-batches as pipeline stages.
        local = batch // degrees.data
        if local % degrees.pipeline == 0:
            reading.assumptions.append("micro-batch not printed: local batch over pipeline stages")
            return local // degrees.pipeline
    if "default: batch 1" in reading.row.text("notes"):
        reading.assumptions.append("micro-batch not printed: the framework's default of 1")
        return 1
    if (reading.row.integer("seq_len") or 0) >= _LONG_SEQUENCE or "megascale" in reading.row.text("source").lower():
        reading.assumptions.append("micro-batch not printed: 1")
        return 1
    raise CannotScore("micro-batch not stated")


def plan_of(reading: Reading, degrees: Degrees, batch: tuple[int, int, int]) -> ExecutionPlan:
    """The execution plan.

    Raises:
        CannotScore: If a cell is not something the planner prices.
    """
    row, defaults = reading.row, reading.defaults
    recompute, layers, modules = _recompute(reading, degrees)
    zero, shard = _zero(reading, degrees)
    offload_optimizer, offload_activations, offload_parameters = wording.offload_of(row)
    sequence_parallel = row.flag("sp")
    if sequence_parallel is None:
        sequence_parallel = defaults.sequence_parallel and not recipes.omits_sequence_parallel(row)
    first, last = _uneven_stages(row, reading.model.num_layers, degrees.pipeline)
    stages = _stage_layers(row, reading.model.num_layers, degrees.pipeline)
    stages = stages or recipes.preset_stage_layers(row, reading.model, degrees.pipeline)
    if reading.published_on == "nanotron" and degrees.pipeline > 1:
        stages = balanced_stage_layers(reading.model, degrees.pipeline)
    notes = row.text("notes").lower()
    overlap = not re.search("no comm(/compute)? overlap", notes)
    return ExecutionPlan(
        tensor_parallel=degrees.tensor,
        pipeline_parallel=degrees.pipeline,
        data_parallel=degrees.data,
        context_parallel=degrees.context,
        expert_parallel=degrees.expert,
        expert_tensor_parallel=_expert_tensor(reading, degrees),
        virtual_stages=_virtual_stages(reading, degrees),
        zero_stage=zero,
        zero_shard_degree=shard,
        micro_batch_size=batch[0],
        num_microbatches=batch[1],
        recompute=recompute,
        recompute_layers=layers,
        recompute_modules=modules,
        schedule=_schedule(row),
        context_kind=_context_kind(row),
        axis_order=AxisOrder.TP_CP_PP_DP if "use_tp_pp_dp_mapping=true" in notes else AxisOrder.TP_CP_DP_PP,
        first_stage_layers=0 if stages else first,
        last_stage_layers=0 if stages else last,
        sequence_parallel=sequence_parallel and degrees.tensor > 1,
        offload_optimizer=offload_optimizer,
        offload_activations=offload_activations,
        offload_parameters=offload_parameters,
        overlap_grad_reduce=defaults.overlap_grad_reduce and overlap,
        overlap_param_gather=defaults.overlap_param_gather and overlap,
        tensor_parallel_overlap=_tensor_overlap(row, defaults.tensor_parallel_overlap and overlap, degrees.tensor),
        stage_layers=stages,
    )


def _recompute(reading: Reading, degrees: Degrees) -> tuple[Recompute, int, RecomputeModule]:
    """Kind of recomputation, layers per stage of ``BLOCK``, modules of ``SELECTIVE``."""
    row, core = reading.row, RecomputeModule.CORE_ATTN
    found = wording.recompute_of(row)
    if found is None and reading.published_on.startswith("litgpt") and wording.task_of(row) in ADAPTER_TASKS:
        # LitGPT's adapter scripts checkpoint every block where FSDP shards the model, and nothing elsewhere.
        return (Recompute.FULL if degrees.data > 1 else Recompute.NONE), 0, core
    preset = recipes.preset_recompute(row, reading.model)
    if preset is not None and (found is None or found[0] is preset[0] is Recompute.SELECTIVE):
        reading.assumptions.append(preset[2])
        return preset[0], 0, preset[1]
    if found is None:
        kind = _assumed_recompute(row, reading.defaults)
        reading.assumptions.append(f"{RECOMPUTE_ASSUMED}: {kind.name.lower()}, or full where that does not fit")
        return kind, 0, core
    kind, layers = found
    if layers < 0:  # half of the layers of a stage
        layers = max(1, round(reading.model.num_layers / degrees.pipeline / 2))
    return kind, layers, wording.recomputed_modules_of(row) if kind is Recompute.SELECTIVE else core


def _assumed_recompute(row: Row, defaults: StackDefaults) -> Recompute:
    notes = row.text("notes").lower()
    if re.search(r"activation checkpointing (?:on|true)", notes) or (
        "fsdp per litgpt defaults" in notes and row.integer("num_gpus") != 1
    ):
        return Recompute.FULL
    return Recompute.FULL if defaults.recompute else Recompute.NONE


def _zero(reading: Reading, degrees: Degrees) -> tuple[int, int]:
    """ZeRO stage and shard degree (0: all replicas)."""
    row = reading.row
    found = wording.zero_stage_of(row)
    if degrees.data * degrees.context == 1:
        # With nothing to shard, DeepSpeed's ZeRO-3 still fetches and releases every module's parameters, any of its
        # stages offloads, and KempnerForge's FSDP keeps whole gradients besides its only shard.
        works = reading.defaults.stack.startswith(("deepspeed", "kempner-forge"))
        return (found[0] if found and works and (found[0] == 3 or wording.offload_of(row)[0]) else 0), 0
    if found is None:
        stage = reading.defaults.zero_stage
        if re.search(r"Megatron-FSDP|use_megatron_fsdp=True", row.text("notes")):
            return 3, 0
        if not reading.defaults.zero_is_known:
            stage = 3 if "FSDP" in row.text("notes") else stage
            reading.assumptions.append(f"ZeRO stage not printed: {stage}")
        return stage, 0
    stage, hybrid, remark = found
    if remark:
        reading.assumptions.append(remark)
    if reading.defaults.stack == "paxml" and "dgxc" in row.text("source").lower():
        nodes = next(nodes for word, nodes in _PAXML_SHARD_NODES if word in row.text("model"))
        degree = nodes * reading.cluster.node.devices_per_node
        return stage, degree if degree < degrees.data else 0
    sharding = re.search(r"sharding degree ([0-9]+)", row.text("notes"))
    degree = int(sharding.group(1)) if sharding else 0
    if hybrid:
        degree = min(degrees.data, reading.cluster.node.devices_per_node)
    return stage, degree if 1 < degree < degrees.data * degrees.context else 0


def _virtual_stages(reading: Reading, degrees: Degrees) -> int:
    row = reading.row
    chunks = row.integer("vpp")
    if "interleaved" in row.text("notes").lower() and "torchtitan" in row.text("framework").lower():
        reading.assumptions.append("stages per rank not printed: torchtitan's default of 2")
        return 2
    if degrees.pipeline == 1:
        return 1
    if chunks is None and "mlperf" in row.text("source").lower():
        raise CannotScore("interleaving not printed, in recipes that interleave")
    if "zb-v" in row.text("framework").lower():
        return 1
    preset = recipes.preset_chunks(row, wording.task_of(row)) if chunks is None else None
    if preset is not None:
        reading.assumptions.append(f"{recipes.PRESET_INTERLEAVING}: {preset} per rank")
        return preset
    return chunks or 1


def _schedule(row: Row) -> Schedule:
    framework, notes = row.text("framework").lower(), row.text("notes").lower()
    for word, schedule in (("zb-1p", Schedule.ZERO_BUBBLE_1P), ("zb-2p", Schedule.ZERO_BUBBLE_2P),
                           ("zb-v", Schedule.ZERO_BUBBLE_V)):  # fmt: skip
        if word in framework:
            return schedule
    return Schedule.GPIPE if "allforwardallbackward" in notes or "gpipe" in framework else Schedule.ONE_F_ONE_B


def _context_kind(row: Row) -> ContextKind:
    if "torchtitan" in row.text("framework").lower():
        # _cp_options.rotate_method of torch.distributed.tensor.experimental._attention, unless told otherwise.
        return ContextKind.ALL_GATHER
    text = f"{row.text('framework')} {row.text('notes')}".lower()
    return ContextKind.ULYSSES if re.search(r"ulysses|sequence parallel world size", text) else ContextKind.RING


def _expert_tensor(reading: Reading, degrees: Degrees) -> int:
    if reading.model.moe is None:
        return 1
    printed = re.search(r"\bETP=([0-9]+)", reading.row.text("notes"))
    if printed:
        return int(printed.group(1))
    if degrees.expert > 1 and "megatron-bridge" in reading.row.text("source").lower():
        return 1  # its MoE recipes set expert_tensor_parallel_size=1
    whole = degrees.data * degrees.context * degrees.tensor
    return degrees.tensor if whole % (degrees.expert * degrees.tensor) == 0 else 1


def _tensor_overlap(row: Row, default: bool, tensor: int) -> bool:
    notes = row.text("notes").lower()
    if tensor == 1:
        return False
    if re.search(r"tp_comm_overlap=true|asynctp|async tp comm|\+ tp overlap", notes):
        return True
    return default and "tp_comm_overlap=false" not in notes and not recipes.omits_tensor_overlap(row)


def _uneven_stages(row: Row, layers: int, stages: int) -> tuple[int, int]:
    """Layers of the first and last stage where the notes give them one fewer than the others."""
    if "first and last stage hold one layer fewer" not in row.text("notes") or stages < 3 or (layers + 2) % stages:
        return 0, 0
    each = (layers + 2) // stages
    if "zb-v" in row.text("framework").lower():  # both ends of the V sit on the first stage
        return each - 2, 0
    return each - 1, each - 1


def _stage_layers(row: Row, layers: int, stages: int) -> tuple[int, ...]:
    """Layers of every stage where the notes list them, embedding and head blocks taken off."""
    match = re.search(r"layers per stage \[([0-9, ]+)\]", row.text("notes"))
    if match is None or stages == 1:
        return ()
    listed = [int(item) for item in match.group(1).split(",")]
    if len(listed) != stages:
        return ()
    extra = sum(listed) - layers
    if extra == 2:
        listed[0], listed[-1] = listed[0] - 1, listed[-1] - 1
    return tuple(listed) if sum(listed) == layers and min(listed) > 0 else ()


def job_of(reading: Reading, batch: int) -> TrainingJob:
    """The job.

    Raises:
        CannotScore: If a cell is not something the planner prices.
    """
    row, defaults = reading.row, reading.defaults
    task = wording.task_of(row)
    stack = find_stack(defaults.stack, load_priors())
    adapters = task in ADAPTER_TASKS and stack.adapters == "module"
    sixteen = _sixteen_bit_states(row, defaults.sixteen_bit_states and not adapters, task)
    optimizer = wording.optimizer_of(row)
    precision = _precision(reading)
    attention = default_attention(stack, reading.cluster.device, reading.model)
    fp8_activation, fp8_attention = recipes.kept_in_8_bits(row)
    plain = _without_master_copy(reading)  # optax keeps moments in the format of the parameters they belong to
    attention = recipes.attention_of(row, reading.model, precision=precision, default=attention)
    short = sixteen or wording.keeps_short_moments(row)
    bare = sixteen or wording.keeps_long_moments_alone(row)
    lora = wording.lora_of(row) if task in ADAPTER_TASKS else None
    state = "int8" if optimizer == "adamw8bit" else "bf16" if short else "fp16" if plain else "fp32"
    try:
        return TrainingJob(
            sequence_length=wording.sequence_length_of(row),
            global_batch_size=batch,
            task=task,
            precision=precision,
            gradient_dtype=wording.gradient_dtype_of(row, bare),
            master_dtype="none" if bare or plain else "fp32",
            state_dtype=state,
            optimizer=optimizer,
            optimizer_in_backward=wording.updates_in_backward(row),
            paged_optimizer="paged" in row.text("optimizer").lower(),
            attention=attention,
            attention_library=recipes.attention_library_of(row, attention),
            lora=lora,
            dropout=(defaults.dropout or wording.names_dropout(row)) and task == "pretrain",
            fused_cross_entropy=recipes.fuses_cross_entropy(row, reading.published_on),
            linear_cross_entropy=recipes.projects_in_loss(row, None if reading.published_on else stack),
            varied_lengths=wording.varies_lengths(row),
            fp32_unquantised=wording.casts_unquantised(row),
            frozen_dtype="fp32" if task == "lora" and wording.has_fp32_weights(row) else "",
            fp8_activation=fp8_activation,
            fp8_attention=fp8_attention,
        )
    except SpecError as error:
        raise CannotScore(f"{error.field}: {error.problem}") from None


def _without_master_copy(reading: Reading) -> bool:
    """Alpa's MoE runs: 8.33 GiB for 0.69B parameters leave no room for an fp32 copy."""
    return reading.published_on == "alpa" and reading.model.moe is not None


def _sixteen_bit_states(row: Row, default: bool, task: str) -> bool:
    """NeMo 24.07 fine-tunes with ``optim.dtype: bf16`` (NVIDIA/NeMo-Framework-Launcher, conf/peft/llama/sft.yaml)."""
    text = f"{row.text('precision')} {row.text('notes')} {row.text('source')}".lower()
    sixteen = default or bool(re.search("bf16-true|bf16 optimizer states|nemo docs", text))
    tuned = task != "pretrain" and sixteen and not wording.has_fp32_weights(row)
    return tuned or wording.keeps_no_master_copy(row)


def _precision(reading: Reading) -> str:
    row = reading.row
    found = wording.precision_of(row)
    formats = reading.cluster.device.peak_flops_per_s
    if found is None:
        notes, source = row.text("notes").lower(), row.text("source").lower()
        if "fp8 training" in notes or "mlperf" in source:
            found = "fp8"
        else:
            found = reading.defaults.precision if "bf16" in formats else "fp16"
        reading.assumptions.append(f"precision not printed: {found}")
    if found == "bf16" and "bf16" not in formats:
        raise CannotScore(f"bf16 on {reading.cluster.device.name}, which has no bf16 arithmetic")
    if found == "fp32" and "tf32" in row.text("notes").lower():
        return "tf32"
    return found
