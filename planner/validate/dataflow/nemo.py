"""NeMo-RL's published steps, priced call by call: generation, training, two passes of log-probabilities, weights.

Each row names its layouts (``docs/about/performance-summary.md`` of NVIDIA-NeMo/RL); the rest is from its recipes
(``examples/configs/recipes/llm/performance``, over ``examples/configs/grpo_math_1B.yaml``): sequences packed into
micro-batches of the longest length, or of a few times that for log-probabilities, 32 samples per prompt, half of the
nodes for either side where generation runs one step ahead, vLLM without expert parallelism in 60 % of the device
memory, and in 80 % where it runs ahead. Prompts are what the throughput counts beyond the generated tokens. Spreads of
the lengths are not published: log-normal, with the 99.9th percentile ten times the median that arXiv:2409.13221 quotes
for LMSYS-Chat-1M.
"""

import json
import re
from dataclasses import dataclass, replace
from math import log2
from pathlib import Path

import numpy as np

from costmodels.lengths import OutputLengths, log_normal_lengths
from costmodels.model_calls import CallKind, CallTable, ModelCall
from costmodels.plan import ExecutionPlan, FloatArray, PlanBatch, Recompute
from planner.dataflow.call_costs import CallSetting, price_generation, price_plans
from planner.dataflow.engine_strategies import engine_strategies
from planner.dataflow.strategies import strategies
from planner.rules.base import MEGATRON
from planner.validate.dataflow.setups import cluster_of, model_named
from planner.validate.tables.published import rows_of
from profiles.engines import find_engine
from profiles.model import ModelSpec
from profiles.parameters import checkpoint_tensors, total_parameters
from profiles.stacks import find_stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the recipes of one model set beside its layouts.

    Attributes:
        model: Catalogue name.
        logprob_sequences: ``logprob_batch_size``: micro-batches of log-probabilities hold so many longest sequences.
        checkpointing: ``activation_checkpointing``: whole layers are recomputed.
    """

    model: str
    logprob_sequences: int = 4
    checkpointing: bool = False


RECIPES = {
    "LLAMA3.1_8B": Recipe(model="llama-3.1-8b", logprob_sequences=2, checkpointing=True),
    "DeepSeek V3": Recipe(model="deepseek-v3", logprob_sequences=1, checkpointing=True),
    "Qwen3-235B": Recipe(model="qwen3-235b-a22b", logprob_sequences=1, checkpointing=True),
    "Qwen3-30B3A": Recipe(model="qwen3-30b-a3b"),
    "Qwen3-32B": Recipe(model="qwen3-32b"),
    "Llama-3.1-8B of 0.3": Recipe(model="llama-3.1-8b"),
    "Llama-3.1-8B of 0.3, DTensor": Recipe(model="llama-3.1-8b", logprob_sequences=2),
    "Llama-3.1-70B of 0.3": Recipe(model="llama-3.1-70b"),
}
_PROBE_S = 1e-3  # more of it, to count steps
_FILE = "nemo_rl_performance_summary.csv"
SIGMA = 0.745  # log-normal whose 99.9th percentile is ten times the median: ln 10 / 3.09
_MEMORY_SHARE = {False: 0.6, True: 0.8}  # gpu_memory_utilization of the recipes, together and ahead
_ON_GRACE = "GB200"  # systems whose hosts are Grace CPUs
_LARGEST_PROMPT = 512  # tokens; more than the data sets have means that the row counts something else


@dataclass(frozen=True, slots=True, kw_only=True)
class NemoStep:
    """One published step and the predicted seconds of its parts, before any scale.

    Attributes:
        label: Release, system, model and number of GPUs.
        model: As the table names it.
        system: GPU and format.
        num_devices: GPUs in all.
        on_grace: Whether the hosts are Grace CPUs.
        ahead: Whether generation runs one step ahead of training, on half of the GPUs each.
        measured_s: Seconds per step.
        generation_s: Predicted seconds of generation, kernels and links alone.
        serving_s: Host time beside them, as vLLM serves on an x86 host.
        passes: Steps of generation, prompts included: what further host time per step multiplies.
        train_s: Predicted seconds of training.
        logprobs_s: Predicted seconds of log-probabilities, of the policy and of the reference model.
        expert_passes: Passes through layers with experts that they take on one device: forward, backward, and again
            forward where layers are recomputed.
        tensors, weight_bytes: What a weight update moves.
    """

    label: str
    model: str
    system: str
    num_devices: int
    on_grace: bool
    ahead: bool
    measured_s: float
    generation_s: float
    serving_s: float
    passes: float
    train_s: float
    logprobs_s: float
    expert_passes: float
    tensors: int
    weight_bytes: float

    @property
    def training_s(self) -> float:
        """Predicted seconds of the training side."""
        return self.train_s + self.logprobs_s


def nemo_steps(folder: Path) -> tuple[list[NemoStep], list[str]]:
    """Every row that can be priced, and why the others cannot."""
    steps, left_out = [], []
    for row in rows_of(folder / _FILE):
        found = priced_step(row)
        if isinstance(found, str):
            left_out.append(f"{row['release']} {row['model']} on {row['gpus']} {row['system']}: {found}")
        else:
            steps.append(found)
    return steps, left_out


def priced_step(row: dict[str, str], stack: str = "megatron") -> NemoStep | str:
    """One row priced, trained by that stack, or what stands against it."""
    if row["model"] not in RECIPES:
        return "not a transformer throughout"
    if "FP8" in row["system"]:
        return "weights of 8 bits in the engine are not planned"
    if row["algorithm"] == "DAPO":
        return "how many batches its dynamic sampling draws per step is not published"
    model, ahead = model_named(RECIPES[row["model"]].model), "Off" in row["policy"]
    devices = int(row["gpus"]) // (2 if ahead else 1)
    device, per_node = ("H100", 8) if row["system"].startswith("H100") else ("GB200", 4)
    cluster = cluster_of(devices, device, per_node)
    as_on_x86 = replace(cluster, node=replace(cluster.node, host_time_scale=1.0))  # what Grace adds is fitted
    # What layers with experts take on the host is fitted too.
    unwaiting = replace(find_stack(stack), expert_layer_s=0.0, expert_issue_s=0.0)
    setting = CallSetting(cluster=as_on_x86, stack=unwaiting)
    generation = _generation(row, model, setting, devices)
    train, infer = (_train_side(row, kind, model, setting, devices) for kind in (CallKind.TRAIN, CallKind.INFERENCE))
    if generation is None or train is None or infer is None:
        return "its layout is none the planner has"
    tensors, weight_bytes = update_size(model)
    return NemoStep(
        label=f"{row['release']} {row['system']} {row['model']}, {row['gpus']} GPUs, {row['policy']}",
        model=row["model"],
        system=row["system"],
        num_devices=int(row["gpus"]),
        on_grace=row["system"].startswith(_ON_GRACE),
        ahead=ahead,
        measured_s=float(row["step_time_s"]),
        generation_s=generation.generation_s,
        serving_s=generation.serving_s,
        passes=generation.passes,
        train_s=train[0],
        logprobs_s=2 * infer[0],
        expert_passes=train[1] + 2 * infer[1],
        tensors=tensors,
        weight_bytes=weight_bytes,
    )


def update_size(model: ModelSpec) -> tuple[int, float]:
    """Tensors and bytes of a weight update in 16 bits."""
    return checkpoint_tensors(model), 2.0 * total_parameters(model)


def _lengths(row: dict[str, str]) -> tuple[int, OutputLengths]:
    """Prompt tokens and output lengths of a row."""
    generated = float(row["G_avg_seqlen"])
    rate = float(row["tokens_per_s_per_gpu"]) * int(row["gpus"])
    counted = rate * float(row["step_time_s"]) / int(row["G_GBS"])
    prompt = int(np.clip(round(counted - generated), 16, _LARGEST_PROMPT))
    most = int(row["T_max_seqlen"]) - prompt
    return prompt, log_normal_lengths(mean=min(generated, 0.98 * most), sigma=SIGMA, most=most)


def _call(row: dict[str, str], kind: CallKind) -> ModelCall:
    prompt, output = _lengths(row)
    batch = int(row["G_GBS"])
    return ModelCall(
        kind=kind,
        num_sequences=batch,
        prompt_tokens=prompt,
        output=output,
        mini_batches=max(batch // int(row["T_GBS"]), 1) if kind is CallKind.TRAIN else 1,
        samples_per_prompt=32 if batch % 32 == 0 else 1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Generation:
    """Seconds of kernels and links, of the host as it serves, and steps."""

    generation_s: float
    serving_s: float
    passes: float


def _generation(row: dict[str, str], model: ModelSpec, setting: CallSetting, devices: int) -> _Generation | None:
    """Generation with the published layout, by vLLM."""
    tensor, stages = json.loads(row["gen_[TP,PP]"])
    call = _call(row, CallKind.GENERATE)
    share = _MEMORY_SHARE["Off" in row["policy"]]
    # The host time between steps that a framework adds is what these steps are to tell.
    serving = replace(find_engine("vllm"), memory_utilization=share, rollout_step_s=0.0).between_training()
    plans = engine_strategies(
        model,
        call,
        [devices],
        serving,
        stack=setting.stack,
        domain_devices=setting.cluster.domain_devices,
    )
    published = (plans.tensor_parallel == tensor) & (plans.pipeline_parallel == stages) & (plans.expert_parallel == 1)
    plans = plans.take(np.flatnonzero(published))
    alone = replace(serving, step_overhead_s=0.0, sequence_overhead_s=0.0)
    tables = [
        price_generation(plans, call, model, setting, engine)
        for engine in (serving, alone, replace(alone, step_overhead_s=_PROBE_S))
    ]
    if not len(tables[0]):
        return None
    best = int(np.argmin(tables[0].time_s))
    served_s, alone_s, probed_s = (float(table.time_s[best]) for table in tables)
    return _Generation(generation_s=alone_s, serving_s=served_s - alone_s, passes=(probed_s - alone_s) / _PROBE_S)


def _train_side(
    row: dict[str, str], kind: CallKind, model: ModelSpec, setting: CallSetting, devices: int
) -> tuple[float, float] | None:
    """Seconds of the fastest row with the published degrees that fits, else of the smallest, and its expert passes."""
    numbers = [int(number) for number in re.findall(r"\d+", row["train_[TP,CP,EP,PP,VPP]"])]
    call, recipe = _call(row, kind), RECIPES[row["model"]]
    packed = sequences_per_micro_batch(row, kind)
    plans = strategies(model, call, devices, stack=setting.stack, domain_devices=setting.cluster.domain_devices)
    wanted = (
        (plans.tensor_parallel == numbers[0])
        & (plans.expert_parallel == numbers[2])
        & (plans.pipeline_parallel == numbers[-1])
        & (plans.micro_batch_size == min(1 << int(log2(packed)), int(plans.micro_batch_size.max(initial=1))))
    )
    if setting.stack.framework == MEGATRON:
        # None of the recipes interleaves stages, numbers their ends, or shards more than optimizer states.
        wanted &= (plans.virtual_stages == 1) & (plans.first_stage_layers == 0) & (plans.zero_stage <= 1)
        wanted &= plans.sequence_parallel | (plans.tensor_parallel == 1)
    if kind is CallKind.TRAIN:
        wanted &= plans.recompute == int(Recompute.FULL if recipe.checkpointing else Recompute.NONE)
    # Shorter sequences than 8192 tokens are not split here unasked; their ranks then hold copies.
    split = wanted & (plans.context_parallel == numbers[1])
    chosen = np.flatnonzero(split if split.any() else wanted)
    if not len(chosen):
        return None
    chosen_plans, share = packed_evenly(plans.take(chosen), call, packed)
    table = price_plans(chosen_plans, call, model, setting)
    place = _fastest_that_fits(table, setting.cluster.device.usable_memory_bytes)
    return float(table.time_s[place] * share[place]), _expert_passes(table.plans.plan(place), call, model)


def packed_evenly(plans: PlanBatch, call: ModelCall, packed: float) -> tuple[PlanBatch, FloatArray]:
    """The plans with as many micro-batches as packing makes, and what of their time the sequences in them take.

    Packed sequences fill no whole number of places: a rank's sequences are spread evenly over the fewest micro-batches
    that hold them, rounded up to whole ones, and a pass takes as long as it has tokens.
    """
    per_rank = call.num_sequences / call.mini_batches / plans.data_parallel
    rounds = np.ceil(per_rank / packed).astype(np.int64)
    sequences = np.ceil(per_rank / rounds).astype(np.int64)
    return replace(plans, micro_batch_size=sequences, num_microbatches=rounds), per_rank / (sequences * rounds)


def sequences_per_micro_batch(row: dict[str, str], kind: CallKind) -> float:
    """How many sequences are packed into a micro-batch: those of more than half its tokens need one each."""
    prompt, output = _lengths(row)
    longest = int(row["T_max_seqlen"])
    halves = output.longer_than(np.asarray([max(longest / 2 - prompt, 0.0)]))
    times = RECIPES[row["model"]].logprob_sequences if kind is CallKind.INFERENCE else 1
    return times / max((prompt + output.mean) / longest, float(halves[0]))


def _expert_passes(plan: ExecutionPlan, call: ModelCall, model: ModelSpec) -> float:
    """Passes of micro-batches through layers with experts, the pipeline's filling included."""
    layers = -(-model.num_layers // plan.pipeline_parallel) * model.num_moe_layers / model.num_layers
    turns = plan.num_microbatches + plan.pipeline_parallel - 1
    passes = 1 if call.kind is CallKind.INFERENCE else 3 if plan.recompute == Recompute.FULL else 2
    return layers * turns * call.mini_batches * passes


def _fastest_that_fits(table: CallTable, usable_bytes: float) -> int:
    fitting = np.flatnonzero(table.peak_bytes <= usable_bytes)
    return int(fitting[np.argmin(table.time_s[fitting])] if len(fitting) else np.argmin(table.peak_bytes))
