"""NeMo-RL's published steps, priced call by call: generation, training, two passes of log-probabilities, weights.

Each row names its layouts (``docs/about/performance-summary.md`` of NVIDIA-NeMo/RL); the rest is from its recipes:
micro-batches of one sequence in training and four for log-probabilities, 32 samples per prompt, half of the nodes for
either side where generation runs one step ahead, vLLM without expert parallelism in 60 % of the device memory, and in
80 % where it runs ahead. Prompts are what the throughput counts beyond the generated
tokens. Spreads of the lengths are not published: log-normal, with the 99.9th percentile ten times the median that
arXiv:2409.13221 quotes for LMSYS-Chat-1M.
"""

import csv
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from costmodels.lengths import OutputLengths, log_normal_lengths
from costmodels.model_calls import CallKind, CallTable, ModelCall
from costmodels.plan import ExecutionPlan
from planner.dataflow.call_costs import CallSetting, price_generation, price_plans
from planner.dataflow.engine_strategies import engine_strategies
from planner.dataflow.strategies import strategies
from planner.validate.dataflow_setups import cluster_of, model_named
from profiles.engines import find_engine
from profiles.model import ModelSpec
from profiles.parameters import total_parameters
from profiles.stacks import find_stack

MODELS = {
    "LLAMA3.1_8B": "llama-3.1-8b",
    "DeepSeek V3": "deepseek-v3",
    "Qwen3-235B": "qwen3-235b-a22b",
    "Qwen3-30B3A": "qwen3-30b-a3b",
    "Qwen3-32B": "qwen3-32b",
}
# Host time of vLLM between two steps when it serves one sequence: vLLM pull request 17866, see data/engines.
SERVING_STEP_S = 1.8e-3
_PROBE_S = 1e-3  # more of it, to count steps
_FILE = "nemo_rl_performance_summary.csv"
_SIGMA = 0.745  # log-normal whose 99.9th percentile is ten times the median: ln 10 / 3.09
_MEMORY_SHARE = {False: 0.6, True: 0.8}  # gpu_memory_utilization of the recipes, together and ahead
_PASSES = {CallKind.TRAIN: 2, CallKind.INFERENCE: 1}  # forward, and backward
_MICRO_BATCH = {CallKind.TRAIN: 1, CallKind.INFERENCE: 4}
_LARGEST_PROMPT = 512  # tokens; more than the data sets have means that the row counts something else
_TENSORS_PER_LAYER = 9  # norms, attention and dense matrices of a checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class NemoStep:
    """One published step and the predicted seconds of its parts, before any scale.

    Attributes:
        label: Release, system, model and number of GPUs.
        model: As the table names it.
        system: GPU and format.
        num_devices: GPUs in all.
        ahead: Whether generation runs one step ahead of training, on half of the GPUs each.
        measured_s: Seconds per step.
        generation_s: Predicted seconds of generation.
        passes: Steps of it, prompts included: what host time per step multiplies.
        training_s: Predicted seconds of training and log-probabilities.
        expert_passes: Forward and backward passes through layers with experts that they take on one device.
        tensors, weight_bytes: What a weight update moves.
    """

    label: str
    model: str
    system: str
    num_devices: int
    ahead: bool
    measured_s: float
    generation_s: float
    passes: float
    training_s: float
    expert_passes: float
    tensors: int
    weight_bytes: float


def nemo_steps(folder: Path) -> tuple[list[NemoStep], list[str]]:
    """Every row that can be priced, and why the others cannot."""
    with (folder / _FILE).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    steps, left_out = [], []
    for row in rows:
        found = priced_step(row)
        if isinstance(found, str):
            left_out.append(f"{row['release']} {row['model']} on {row['gpus']} {row['system']}: {found}")
        else:
            steps.append(found)
    return steps, left_out


def priced_step(row: dict[str, str]) -> NemoStep | str:
    """One row priced, or what stands against it."""
    if row["model"] not in MODELS:
        return "not a transformer throughout"
    if "FP8" in row["system"]:
        return "weights of 8 bits in the engine are not planned"
    if row["algorithm"] == "DAPO":
        return "how many batches its dynamic sampling draws per step is not published"
    model, ahead = model_named(MODELS[row["model"]]), "Off" in row["policy"]
    devices = int(row["gpus"]) // (2 if ahead else 1)
    device, per_node = ("H100", 8) if row["system"].startswith("H100") else ("GB200", 4)
    setting = CallSetting(cluster=cluster_of(devices, device, per_node), stack=find_stack("megatron"))
    generation = _generation(row, model, setting, devices)
    train, infer = (_train_side(row, kind, model, setting, devices) for kind in (CallKind.TRAIN, CallKind.INFERENCE))
    if generation is None or train is None or infer is None:
        return "its layout is none the planner has"
    experts = 0 if model.moe is None else model.num_moe_layers * model.moe.num_experts * model.mlp_matrices
    return NemoStep(
        label=f"{row['release']} {row['system']} {row['model']}, {row['gpus']} GPUs, {row['policy']}",
        model=row["model"],
        system=row["system"],
        num_devices=int(row["gpus"]),
        ahead=ahead,
        measured_s=float(row["step_time_s"]),
        generation_s=generation[0],
        passes=generation[1],
        training_s=train[0] + 2 * infer[0],
        expert_passes=train[1] + 2 * infer[1],
        tensors=experts + _TENSORS_PER_LAYER * model.num_layers,
        weight_bytes=2.0 * total_parameters(model),
    )


def _lengths(row: dict[str, str]) -> tuple[int, OutputLengths]:
    """Prompt tokens and output lengths of a row."""
    generated = float(row["G_avg_seqlen"])
    rate = float(row["tokens_per_s_per_gpu"]) * int(row["gpus"])
    counted = rate * float(row["step_time_s"]) / int(row["G_GBS"])
    prompt = int(np.clip(round(counted - generated), 16, _LARGEST_PROMPT))
    most = int(row["T_max_seqlen"]) - prompt
    return prompt, log_normal_lengths(mean=min(generated, 0.98 * most), sigma=_SIGMA, most=most)


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


def _generation(
    row: dict[str, str], model: ModelSpec, setting: CallSetting, devices: int
) -> tuple[float, float] | None:
    """Seconds and steps of generation with the published layout, by vLLM as it serves."""
    tensor, stages = json.loads(row["gen_[TP,PP]"])
    call = _call(row, CallKind.GENERATE)
    serving = replace(find_engine("vllm"), step_overhead_s=SERVING_STEP_S)
    plans = engine_strategies(
        model,
        call,
        [devices],
        serving,
        framework=setting.stack.framework,
        domain_devices=setting.cluster.domain_devices,
    )
    published = (plans.tensor_parallel == tensor) & (plans.pipeline_parallel == stages) & (plans.expert_parallel == 1)
    plans = plans.take(np.flatnonzero(published))
    room_bytes = _MEMORY_SHARE["Off" in row["policy"]] * setting.cluster.device.memory_bytes
    slower = replace(serving, step_overhead_s=SERVING_STEP_S + _PROBE_S)
    table, probe = (
        price_generation(plans, call, model, setting, engine, room_bytes=room_bytes) for engine in (serving, slower)
    )
    if not len(table):
        return None
    best = int(np.argmin(table.time_s))
    return float(table.time_s[best]), float((probe.time_s - table.time_s)[best]) / _PROBE_S


def _train_side(
    row: dict[str, str], kind: CallKind, model: ModelSpec, setting: CallSetting, devices: int
) -> tuple[float, float] | None:
    """Seconds of the fastest row with the published degrees that fits, else of the smallest, and its expert passes."""
    numbers = [int(number) for number in re.findall(r"\d+", row["train_[TP,CP,EP,PP,VPP]"])]
    call = _call(row, kind)
    plans = strategies(
        model, call, [devices], framework=setting.stack.framework, domain_devices=setting.cluster.domain_devices
    )
    wanted = (
        (plans.tensor_parallel == numbers[0])
        & (plans.expert_parallel == numbers[2])
        & (plans.pipeline_parallel == numbers[-1])
        & (plans.micro_batch_size == min(_MICRO_BATCH[kind], int(plans.micro_batch_size.max(initial=1))))
    )
    # Shorter sequences than 8192 tokens are not split here unasked; their ranks then hold copies.
    split = wanted & (plans.context_parallel == numbers[1])
    chosen = np.flatnonzero(split if split.any() else wanted)
    if not len(chosen):
        return None
    table = price_plans(plans.take(chosen), call, model, setting)
    place = _fastest_that_fits(table, setting.cluster.device.usable_memory_bytes)
    return float(table.time_s[place]), _expert_passes(table.plans.plan(place), call, model)


def _expert_passes(plan: ExecutionPlan, call: ModelCall, model: ModelSpec) -> float:
    """Passes of micro-batches through layers with experts, the pipeline's filling included."""
    layers = -(-model.num_layers // plan.pipeline_parallel) * model.num_moe_layers / model.num_layers
    turns = plan.num_microbatches + plan.pipeline_parallel - 1
    return layers * turns * call.mini_batches * _PASSES[call.kind]


def _fastest_that_fits(table: CallTable, usable_bytes: float) -> int:
    peak = table.static_bytes + table.active_bytes
    fitting = np.flatnonzero(peak <= usable_bytes)
    return int(fitting[np.argmin(table.time_s[fitting])] if len(fitting) else np.argmin(peak))
