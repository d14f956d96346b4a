"""E16: engines of early 2024 against what vLLM's own pull requests measured, of which nothing was fitted.

Pull request 2221 (which 0.3.0 came with): 512 sequences of 1031 + 317 tokens at 3.48 requests per second with
Llama-70B on eight A100-40GB. Pull request 2192 (the same release): batches of 64 sequences of 256 + 256 tokens with
Llama-70B on four and Llama-33B on two A100-80GB, from ``benchmark_latency.py``.
"""

from dataclasses import dataclass

from costmodels.lengths import fixed_length
from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import PlanBatch
from planner.dataflow.call_costs import CallSetting, price_generation
from planner.validate.dataflow_setups import cluster_of, model_named
from planner.validate.experiment import Experiment, mean_and_worst
from profiles.engines import find_engine
from profiles.stacks import find_stack

ENGINE, LATER = "vllm-0.3", "vllm-2024"
LARGEST_MEAN_ERROR, LARGEST_ERROR = 0.15, 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One published run of an engine on one machine.

    Attributes:
        model: Catalogue name.
        device: GPU.
        tensor: GPUs, all in one replica.
        sequences: Requests, all there from the start.
        prompt_tokens, output_tokens: Of every one.
        time_s: Measured seconds.
        source: Pull request of vLLM.
    """

    model: str
    device: str
    tensor: int
    sequences: int
    prompt_tokens: int
    output_tokens: int
    time_s: float
    source: int


BENCHMARKS = (
    Benchmark(
        model="llama-2-70b",
        device="A100-SXM-40GB",
        tensor=8,
        sequences=512,
        prompt_tokens=1031,
        output_tokens=317,
        time_s=512 / 3.48,
        source=2221,
    ),
    Benchmark(
        model="llama-2-70b",
        device="A100-SXM-80GB",
        tensor=4,
        sequences=64,
        prompt_tokens=256,
        output_tokens=256,
        time_s=14.57,
        source=2192,
    ),
    Benchmark(
        model="llama-30b",
        device="A100-SXM-80GB",
        tensor=2,
        sequences=64,
        prompt_tokens=256,
        output_tokens=256,
        time_s=14.38,
        source=2192,
    ),
)


def predicted_s(run: Benchmark, name: str = ENGINE) -> float:
    """Seconds of one run by the cost path of generation.

    Args:
        run: What ran.
        name: Engine.
    """
    engine, cluster = find_engine(name), cluster_of(run.tensor, run.device)
    call = ModelCall(
        kind=CallKind.GENERATE,
        num_sequences=run.sequences,
        prompt_tokens=run.prompt_tokens,
        output=fixed_length(run.output_tokens),
    )
    plans = PlanBatch.from_columns(
        1,
        tensor_parallel=run.tensor,
        micro_batch_size=max(engine.prefill_tokens // run.prompt_tokens, 1),
    )
    table = price_generation(
        plans,
        call,
        model_named(run.model),
        CallSetting(cluster=cluster, stack=find_stack("megatron")),
        engine,
        room_bytes=engine.memory_utilization * cluster.device.memory_bytes,
    )
    return float(table.time_s.min())


def engine_benchmarks() -> Experiment:
    """Seconds of every run by the engine of its time, and by the one after it."""
    found = {run: (predicted_s(run), predicted_s(run, LATER)) for run in BENCHMARKS}
    mean, worst = mean_and_worst([seconds / run.time_s - 1 for run, (seconds, _) in found.items()])
    later, _ = mean_and_worst([seconds / run.time_s - 1 for run, (_, seconds) in found.items()])
    return Experiment(
        name="E16",
        title="vLLM 0.3.0 in its own pull requests",
        criterion=f"mean error at most {LARGEST_MEAN_ERROR:.0%}, none above {LARGEST_ERROR:.0%}; nothing fitted",
        passed=mean <= LARGEST_MEAN_ERROR and worst <= LARGEST_ERROR,
        findings=(
            f"Mean error {mean:.0%}, worst {worst:.0%}; with the host times of vLLM 0.5 ({LATER}) {later:.0%}.",
            "Host times are Vidur's, measured in a fork of vLLM. Attention is priced as FlashAttention decodes; vLLM's "
            "kernel of that time read the cache once per query head (its issue 1880), up to three times slower with "
            "grouped heads and large batches (issue 2767), which is not priced.",
        ),
        header=("model", "GPUs", "sequences", "tokens", "pull request", "measured s", "predicted s", f"{LATER} s"),
        rows=tuple(
            (
                run.model,
                f"{run.tensor} {run.device}",
                str(run.sequences),
                f"{run.prompt_tokens} + {run.output_tokens}",
                str(run.source),
                f"{run.time_s:.1f}",
                f"{ours:.1f}",
                f"{theirs:.1f}",
            )
            for run, (ours, theirs) in found.items()
        ),
    )
