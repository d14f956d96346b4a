"""ReaLHF's published iterations: what its Megatron heuristic takes, call by call, through the one cost path.

The heuristic runs all six calls of PPO one after the other on all GPUs, tensor-parallel inside nodes and pipelined
across them (profiler/search.py of ReaLHF in April 2024). Hence an iteration is the sum of six calls, nothing is
moved, and differences between output lengths are decode steps. Settings as its paper's first version has them: 2^17
tokens per iteration, fixed output lengths, four mini-batches, full recomputation, ZeRO-1 (arXiv:2406.14088v1).

The GPU is not named beyond 80 GB; an A100 is assumed, and what it does not explain goes into the fitted constants. The
network is that of its own cost model (profiler/param_sync_cost.py and profiler/estimate.py of April 2024): InfiniBand
of 200 Gb/s that the GPUs of a node share, so that only one of them sends at a time, at 20 GB/s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from costmodels.lengths import fixed_length
from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import PlanBatch, Recompute
from planner.dataflow.call_costs import CallSetting, price_generation, price_plans
from planner.validate.tables.published import rows_of
from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.engines import find_engine
from profiles.hardware import ClusterSpec
from profiles.model import ModelSpec
from profiles.model_presets import resolve_model
from profiles.stack import StackSpec
from profiles.stacks import find_stack

DEVICE = "A100-80GB"  # assumed, see above
MINI_BATCHES = 4  # arXiv:2406.14088v1 section 8
_MODELS = {7: "llama-2-7b", 13: "llama-2-13b", 34: "codellama-34b", 70: "llama-2-70b"}
_FILE = "real_v1_throughput_vws.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class RealRow:
    """One published iteration.

    Attributes:
        mode: ``scale_actor``, ``scale_critic`` or ``scale_both``.
        system: Who ran it, as the file names it.
        num_devices: GPUs.
        actor, critic: Billions of parameters; the reference model is like the actor, the reward model like the
        critic. prompt_tokens, output_tokens: Per sequence, fixed.
        num_sequences: Per iteration.
        time_s: Seconds per iteration.
    """

    mode: str
    system: str
    num_devices: int
    actor: int
    critic: int
    prompt_tokens: int
    output_tokens: int
    num_sequences: int
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RealConstants:
    """The three constants of the heuristic's time.

    Attributes:
        gemm_time_scale: Measured over listed GEMM time.
        collective_launch_s: Host time of one collective in a decode step; with the kernels' own this is c(8).
        overhead_s: Per call: data transfer, reallocation, logging.
    """

    gemm_time_scale: float = 1.0
    collective_launch_s: float = 0.0
    overhead_s: float = 0.0


def read_real(folder: Path, system: str = "ReaL-Heuristic") -> list[RealRow]:
    """Rows of one system with a result, in the order of the file."""
    return [
        RealRow(
            mode=row["scale_mode"],
            system=row["system"],
            num_devices=int(row["n_gpus"]),
            actor=int(row["actor_B"]),
            critic=int(row["critic_B"]),
            prompt_tokens=int(row["prompt_len"]),
            output_tokens=int(row["gen_len"]),
            num_sequences=int(row["batch_seqs"]),
            time_s=float(row["iter_time_s_derived"]),
        )
        for row in rows_of(folder / _FILE)
        if row["system"] == system and row["status"] == "ok"
    ]


def heuristic_s(row: RealRow, constants: RealConstants) -> float:
    """Predicted seconds of one iteration under the heuristic."""
    return sum(heuristic_calls_s(row, constants).values())


def heuristic_calls_s(row: RealRow, constants: RealConstants) -> dict[str, float]:
    """Predicted seconds of each call of one iteration under the heuristic, and of the overhead of all."""
    setting = CallSetting(cluster=real_cluster(row.num_devices), stack=real_stack(constants))
    parts: dict[str, float] = {"actor_generate": generation_s(row, constants)}
    for name, billions, kind, value_head in (
        ("reward_inference", row.critic, CallKind.INFERENCE, True),
        ("reference_inference", row.actor, CallKind.INFERENCE, False),
        ("critic_inference", row.critic, CallKind.INFERENCE, True),
        ("actor_train", row.actor, CallKind.TRAIN, False),
        ("critic_train", row.critic, CallKind.TRAIN, True),
    ):
        call = real_call(row, kind, value_head=value_head)
        plans = _plans(row, call)
        parts[name] = float(price_plans(plans, call, call.model(real_model(billions)), setting).time_s[0])
    return parts | {"overhead": constants.overhead_s}


def generation_s(row: RealRow, constants: RealConstants) -> float:
    """Predicted seconds of the generation call."""
    setting = CallSetting(cluster=real_cluster(row.num_devices), stack=real_stack(constants))
    engine = replace(find_engine("trainer"), collective_launch_s=constants.collective_launch_s)
    call = real_call(row, CallKind.GENERATE)
    stages = row.num_devices // 8
    plans = PlanBatch.from_columns(
        1, tensor_parallel=8, pipeline_parallel=stages, micro_batch_size=max(row.num_sequences // stages, 1)
    )
    table = price_generation(plans, call, real_model(row.actor), setting, engine, room_bytes=np.inf)
    return float(table.time_s.min())


def slopes_s(rows: Sequence[RealRow], times_s: Sequence[float]) -> dict[tuple[str, int, int, int], float]:
    """(mode, GPUs, actor, longer output) to seconds per token and actor layer, between neighbouring lengths."""
    found: dict[tuple[str, int, int, int], float] = {}
    for row, seconds in zip(rows, times_s, strict=True):
        shorter = [
            (other.output_tokens, value)
            for other, value in zip(rows, times_s, strict=True)
            if (other.mode, other.num_devices, other.actor, other.critic)
            == (row.mode, row.num_devices, row.actor, row.critic)
            and other.output_tokens < row.output_tokens
        ]
        if shorter:
            tokens, before = max(shorter)
            layers = real_model(row.actor).num_layers
            key = (row.mode, row.num_devices, row.actor, row.output_tokens)
            found[key] = (seconds - before) / (row.output_tokens - tokens) / layers
    return found


def real_call(row: RealRow, kind: CallKind, *, value_head: bool = False) -> ModelCall:
    """What one call of an iteration computes."""
    return ModelCall(
        kind=kind,
        num_sequences=row.num_sequences,
        prompt_tokens=row.prompt_tokens,
        output=fixed_length(row.output_tokens),
        mini_batches=MINI_BATCHES if kind is CallKind.TRAIN else 1,
        value_head=value_head,
        precision="fp16",
    )


def _plans(row: RealRow, call: ModelCall) -> PlanBatch:
    """Micro-batches by ReaLHF's defaults: one without a pipeline, else 2p to train and p to infer."""
    stages = row.num_devices // 8
    rounds = 1 if stages == 1 else 2 * stages if call.kind is CallKind.TRAIN else stages
    batch = call.num_sequences // call.mini_batches
    rounds = min(rounds, batch)
    return PlanBatch.from_columns(
        1,
        tensor_parallel=8,
        pipeline_parallel=stages,
        micro_batch_size=batch // rounds,
        num_microbatches=rounds,
        zero_stage=1,
        recompute=int(Recompute.FULL),
        sequence_parallel=True,
    )


@lru_cache(maxsize=8)
def real_model(billions: int) -> ModelSpec:
    """The model of so many billion parameters that was used."""
    return resolve_model(_MODELS[billions], default_catalog(), allow_paths=False).spec


@lru_cache(maxsize=8)
def real_cluster(num_devices: int) -> ClusterSpec:
    """Whole nodes of the device assumed, with one adapter each."""
    text = f"{num_devices // 8}x8x{DEVICE}"
    return parse_cluster(text, default_catalog(), fabric="ib-hdr-200", nics_per_node=1)


def real_stack(constants: RealConstants) -> StackSpec:
    """Megatron-Core's kernels with the constant in place of what was fitted on its own runs."""
    return replace(find_stack("megatron"), gemm_time_scale=constants.gemm_time_scale)
