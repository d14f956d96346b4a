"""Prefill and decode steps measured on our own GPUs, priced: whole passes, of which nothing was fitted.

Steps are captured and replayed, so that no launch shows; their model is plain PyTorch operations, one after the other,
which is what the engine ``trainer`` runs, its norms PyTorch's own kernels.
"""

import json
from dataclasses import dataclass, replace

import numpy as np

from costmodels.context import CostContext
from costmodels.lengths import fixed_length
from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import PlanBatch
from costmodels.serving.decode import decode_prices
from costmodels.serving.generation import engine_context, prefill_s, prompt_job
from planner.dataflow.call_costs import CallSetting, call_context
from planner.validate.dataflow.setups import cluster_of
from planner.validate.experiment import Experiment, mean_and_worst
from profiles.catalog import default_catalog
from profiles.engines import TRAINER, find_engine
from profiles.model import ModelSpec
from profiles.stacks import find_stack
from profiles.timing_store import TimingStore, store_of

DECODE, PREFILL = "decode_step", "prefill_step"
LARGEST_MEAN_ERROR = 0.2  # of decode steps


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnStep:
    """One measured pass.

    Attributes:
        device: GPU.
        op: ``decode_step`` or ``prefill_step``.
        model: Its dimensions.
        sequences: Prompts, or running sequences.
        context: Tokens of each prompt, or in the cache.
        time_s: Measured seconds.
    """

    device: str
    op: str
    model: ModelSpec
    sequences: int
    context: int
    time_s: float


def own_steps() -> list[OwnStep]:
    """The packaged passes that were captured."""
    packaged = TimingStore(directories=store_of(default_catalog()).directories[:1], writable=False)
    found = []
    for device in sorted(path.name.removesuffix(".parquet") for path in packaged.files()):
        table = packaged.table(device)
        for row in range(len(table.op)):
            if table.op[row] in (DECODE, PREFILL) and table.method[row] == "graph":
                settings = json.loads(table.config[row])
                found.append(
                    OwnStep(
                        device=device,
                        op=str(table.op[row]),
                        model=_model(settings),
                        sequences=int(settings["sequences"]),
                        context=int(settings["context"]),
                        time_s=float(table.time_s[row]),
                    )
                )
    return found


def predicted_s(step: OwnStep) -> float:
    """Seconds of one pass by the cost path of generation."""
    setting = CallSetting(cluster=cluster_of(1, step.device), stack=find_stack("megatron"))
    engine = replace(find_engine(TRAINER), captures_graphs=True)
    call = ModelCall(
        kind=CallKind.GENERATE,
        num_sequences=step.sequences,
        prompt_tokens=step.context,
        output=fixed_length(1),
    )
    base, job = call_context(call, step.model, setting), prompt_job(call)
    plans = PlanBatch.from_columns(1, micro_batch_size=step.sequences)
    if step.op == PREFILL:
        return float(prefill_s(plans, call, engine, _as_written(engine_context(base, engine, job)))[0])
    context = _as_written(engine_context(base, engine, replace(job, sequence_length=1)))
    keys = [float(step.context), 2.0 * step.context]
    prices = decode_prices(plans, context, engine, most_running=step.sequences, keys=keys)
    return float(prices.step_s(np.asarray([[float(step.sequences)]]), np.asarray([keys[0]]))[0, 0])


def _as_written(context: CostContext) -> CostContext:
    """The context with the pointwise work of the measured model: PyTorch's own kernels, one per operation."""
    return replace(context, stack=replace(context.stack, norm="eager", rotary="eager", activation="eager"))


def own_passes() -> Experiment:
    """Mean and worst errors of decode steps and prefills by device and model."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for step in own_steps():
        error = predicted_s(step) / step.time_s - 1
        groups.setdefault((step.device, step.op, step.model.name), []).append(error)
    decodes = [error for key, errors in groups.items() if key[1] == DECODE for error in errors]
    prefills = [error for key, errors in groups.items() if key[1] == PREFILL for error in errors]
    (mean, worst), (mean_prefill, worst_prefill) = mean_and_worst(decodes), mean_and_worst(prefills)
    judged = {key: (len(errors), float(np.mean(errors)), *mean_and_worst(errors)) for key, errors in groups.items()}
    return Experiment(
        name="E5b",
        title="Decode steps and prefills on our own H100 and H200",
        criterion=f"mean error of decode steps at most {LARGEST_MEAN_ERROR:.0%}, nothing fitted",
        passed=mean <= LARGEST_MEAN_ERROR,
        findings=(
            f"{len(decodes)} decode steps: mean error {mean:.1%}, worst {worst:.1%}.",
            f"{len(prefills)} prefills: mean error {mean_prefill:.1%}, worst {worst_prefill:.1%}; smallest models are "
            "farthest off.",
        ),
        header=("GPU", "pass", "model", "passes", "mean error", "bias", "worst"),
        rows=tuple(
            (*key, str(count), f"{error:.1%}", f"{bias:+.1%}", f"{largest:.1%}")
            for key, (count, bias, error, largest) in sorted(judged.items())
        ),
    )


def _model(settings: dict[str, int | str | bool]) -> ModelSpec:
    hidden, heads, gated = int(settings["hidden"]), int(settings["heads"]), bool(settings["gated"])
    return ModelSpec(
        name=str(settings["model"]),
        num_layers=int(settings["layers"]),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=int(settings["kv_heads"]),
        head_dim=hidden // heads,
        ffn_hidden_size=int(settings["ffn"]),
        vocab_size=int(settings["vocab"]),
        gated_mlp=gated,
        rms_norm=gated,
        learned_positions=0 if gated else 1 << 20,
    )
