"""E17: generation as its engines publish it, priced before anything was known of the figures.

``data/generation_runs.csv`` holds one published figure a row, with the error of its first price: nothing was fitted on
any of them, before or since. What the first prices taught about mechanisms is in the findings; errors of both times
stand beside each other. Engines that are not in the catalogue are priced as the one nearest to them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from costmodels.lengths import fixed_length, log_normal_lengths
from costmodels.model_calls import CallKind, ModelCall
from planner.validate.dataflow.nemo import SIGMA
from planner.validate.dataflow.setups import cluster_of, model_named, replica
from planner.validate.experiment import Experiment, mean_and_worst
from planner.validate.tables.published import packaged_rows
from profiles.engines import find_engine

LARGEST_MEAN_ERROR, LARGEST_ERROR = 0.15, 0.3
_LONGEST = 2048  # tokens, of lengths that spread
# Source to what it is and where; the commit of the text that was read.
SOURCES: Mapping[str, str] = {
    "trtllm-0.17": "TensorRT-LLM 0.17 (NVIDIA/TensorRT-LLM docs/source/performance/perf-overview.md @258c7540c035)",
    "trtllm-0.6": "TensorRT-LLM 0.6, static batches (the same repository, docs/source/performance.md @138f96d45f90)",
    "lmdeploy-0.1": ("LMDeploy 0.1, priced as SGLang (InternLM/lmdeploy docs/en/benchmark/a100_fp16.md @3e391df46733)"),
    "qwen2.5-vllm-0.6.3": (
        "Qwen2.5 one at a time, vLLM 0.6.3, priced as that of 2024 "
        "(QwenLM/Qwen2.5 docs/source/benchmark/speed_benchmark.rst @010c37c33b13)"
    ),
    "qwen3-sglang-0.4.6": (
        "Qwen3 one at a time, SGLang 0.4.6 "
        "(QwenLM/Qwen2.5 docs/source/getting_started/speed_benchmark.md @ac7272455d45)"
    ),
    "gpustack-vllm-0.11": (
        "vLLM 0.11 (gpustack/gpustack docs/performance-lab, qwen3-14b @7ae332aaf057 and @10e9444a07c7, "
        "qwen3-32b @10e9444a07c7)"
    ),
    "gpustack-sglang-0.5.5": "SGLang 0.5.5 (the same pages)",
}
_TRTLLM = "https://github.com/NVIDIA/TensorRT-LLM/blob"
_QWEN = "https://github.com/QwenLM/Qwen2.5/blob"
_GPUSTACK = "https://github.com/gpustack/gpustack/blob"
_LAB = (
    f"{_GPUSTACK}/7ae332aaf057/docs/performance-lab/qwen3-14b/h100.md",
    f"{_GPUSTACK}/10e9444a07c7/docs/performance-lab/qwen3-14b/a100.md",
    f"{_GPUSTACK}/10e9444a07c7/docs/performance-lab/qwen3-32b/h100.md",
)
# Source to the pages that were read.
ADDRESSES: Mapping[str, tuple[str, ...]] = {
    "trtllm-0.17": (f"{_TRTLLM}/258c7540c035/docs/source/performance/perf-overview.md",),
    "trtllm-0.6": (f"{_TRTLLM}/138f96d45f90/docs/source/performance.md",),
    "lmdeploy-0.1": ("https://github.com/InternLM/lmdeploy/blob/3e391df46733/docs/en/benchmark/a100_fp16.md",),
    "qwen2.5-vllm-0.6.3": (f"{_QWEN}/010c37c33b13/docs/source/benchmark/speed_benchmark.rst",),
    "qwen3-sglang-0.4.6": (f"{_QWEN}/ac7272455d45/docs/source/getting_started/speed_benchmark.md",),
    "gpustack-vllm-0.11": _LAB,
    "gpustack-sglang-0.5.5": _LAB,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRun:
    """One published figure.

    Attributes:
        source: Key of ``SOURCES``.
        engine: Catalogue name.
        model: Catalogue name.
        device: GPU.
        tensor: GPUs, all in one replica.
        sequences: Requests, all there from the start.
        prompt_tokens: Of every request.
        output_tokens: Of every request, or on average.
        spread: Whether lengths spread.
        max_sequences, prefill_tokens, memory_share: Settings of the engine, as published or its defaults then.
        time_s: Measured seconds.
        blind_error: Relative error of the first price.
        blind_inside: Whether the figure lay within the interval of that.
    """

    source: str
    engine: str
    model: str
    device: str
    tensor: int
    sequences: int
    prompt_tokens: int
    output_tokens: int
    spread: bool
    max_sequences: int
    prefill_tokens: int
    memory_share: float
    time_s: float
    blind_error: float
    blind_inside: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPrice:
    """Predicted seconds of a run, and its 90 % interval."""

    run: GenerationRun
    time_s: float
    low_s: float
    high_s: float

    @property
    def error(self) -> float:
        """Relative."""
        return self.time_s / self.run.time_s - 1

    @property
    def inside(self) -> bool:
        """Whether the figure lies within the interval."""
        return self.low_s <= self.run.time_s <= self.high_s


def generation_runs() -> tuple[GenerationRun, ...]:
    """All rows of the packaged table."""
    return tuple(_run(row) for row in packaged_rows("generation_runs.csv"))


def _run(row: Mapping[str, str]) -> GenerationRun:
    sequences, prompt, output = (int(row[name]) for name in ("sequences", "prompt_tokens", "output_tokens"))
    published = float(row["value"])
    counted = {"tok_s": sequences * output, "all_tok_s": sequences * (prompt + output)}
    return GenerationRun(
        source=row["source"],
        engine=row["engine"],
        model=row["model"],
        device=row["device"],
        tensor=int(row["tensor"]),
        sequences=sequences,
        prompt_tokens=prompt,
        output_tokens=output,
        spread=row["lengths"] == "spread",
        max_sequences=int(row["max_sequences"]),
        prefill_tokens=int(row["prefill_tokens"]),
        memory_share=float(row["memory_share"]),
        time_s=published if row["quantity"] == "s" else counted[row["quantity"]] / published,
        blind_error=float(row["blind_error"]),
        blind_inside=row["blind_inside"] == "yes",
    )


def price_of(run: GenerationRun) -> RunPrice:
    """The run by the cost path of generation, by an engine that serves.

    Raises:
        ValueError: If its cache has no room for a sequence.
    """
    engine = replace(
        find_engine(run.engine),
        max_sequences=run.max_sequences,
        prefill_tokens=run.prefill_tokens,
        memory_utilization=run.memory_share,
    )
    mean = run.output_tokens
    call = ModelCall(
        kind=CallKind.GENERATE,
        num_sequences=run.sequences,
        prompt_tokens=run.prompt_tokens,
        output=log_normal_lengths(mean=mean, sigma=SIGMA, most=_LONGEST) if run.spread else fixed_length(mean),
    )
    cluster = cluster_of(run.tensor, run.device)
    table = replica(call, model_named(run.model), cluster, engine)
    if not len(table):
        raise ValueError(f"no room for a sequence of {run}")
    best = int(np.argmin(table.time_s))
    seconds = (float(column[best]) for column in (table.time_s, table.low_s, table.high_s))
    return RunPrice(run=run, **dict(zip(("time_s", "low_s", "high_s"), seconds, strict=True)))


@lru_cache(maxsize=1)
def run_prices() -> tuple[RunPrice, ...]:
    """Every run, priced."""
    return tuple(price_of(run) for run in generation_runs())


def blind_generation() -> Experiment:
    """All runs, their errors now and at first."""
    prices = run_prices()
    mean, worst = mean_and_worst([price.error for price in prices])
    return Experiment(
        name="E17",
        title="Generation as its engines publish it, priced blindly",
        criterion=f"mean error at most {LARGEST_MEAN_ERROR:.0%}, none above {LARGEST_ERROR:.0%}; never fitted",
        passed=mean <= LARGEST_MEAN_ERROR and worst <= LARGEST_ERROR,
        findings=(
            f"All {len(prices)} figures: {_scores(prices)}.",
            *(f"{title}: {_scores(prices_of(source, prices))}." for source, title in SOURCES.items()),
            *_LEARNED,
        ),
        header=(
            "source",
            "engine",
            "model",
            "GPUs",
            "sequences",
            "tokens",
            "measured s",
            "predicted s",
            "error",
            "first",
        ),
        rows=tuple(
            (
                price.run.source,
                price.run.engine,
                price.run.model,
                f"{price.run.tensor} {price.run.device}",
                str(price.run.sequences),
                f"{price.run.prompt_tokens} + {price.run.output_tokens}",
                f"{price.run.time_s:.4g}",
                f"{price.time_s:.4g}",
                f"{price.error:+.0%}",
                f"{price.run.blind_error:+.0%}",
            )
            for price in prices
        ),
    )


_LEARNED = (
    "The first prices charged serving engines with what one waits for under a training framework, 4.7 ms a step, "
    "fitted on NeMo-RL: now only where the workflow trains. TensorRT-LLM was priced as SGLang at first; it starts a "
    "request when there is room for all it may become, and runs kernels of its own. With SGLang's on an A100 instead, "
    "its rows would be at a mean error of 6 %; they are priced with its own all the same.",
    "vLLM of 2024 was charged 5 ms a step at first, however few its sequences: the lower end of a range, which was "
    "taken for that of one sequence. Its constant is now the one measured in its loop half a year before (E16).",
    "One sequence on an H20 reads weights at 1.36 TB/s here, with the libraries of early 2025, and at 1.8 as priced; "
    "at 1.0 as long as small tiles were taken to lose on it what they lose on an H100, whose multiprocessors multiply "
    "four times as fast. A user of 2026 reads 3.15 TB/s (bytedance-iaas/sglang pull request 753: 17.13 ms per token of "
    "27B), which takes tiles narrower than the 64 rows that prices know. Experts of Mixtral on A100s, priced by "
    "timings of TensorRT-LLM's PyTorch backend, are slower than what its compiled engine published.",
    "The H100 of gpustack's pages is called one for SXM, but reads Qwen3-32B at 1.5 TB/s and computes prompts at 370 "
    "TFLOP/s, as the card for PCIe does. It is judged as what it is called; as that card its rows of vLLM would be "
    "6 to 28 % below, as those of the A100 are 11 to 18 %.",
    "Not judged: hours of DeepSpeed-Chat's step 3 (README, table 1). Priced blindly with the largest batch its README "
    "allows, 1,024 sequences, 13 of them were 46 % below what it publishes, none within its interval, and two did not "
    "fit; with the batches of its example scripts 13B on 8 A100s is 17 % above and 6.7B 142 %. The batches that ran "
    "are not published, and decide. Nor Miles on 8 MI300X (LMSYS blog of 2026-03-17), whose lengths are only to be "
    "inferred: generation of Qwen3-30B-A3B 7 % below, training under Megatron 68 %, log-probabilities 68 to 78 %.",
)


def prices_of(source: str, prices: Sequence[RunPrice]) -> list[RunPrice]:
    """Those of one source."""
    return [price for price in prices if price.run.source == source]


def _scores(prices: Sequence[RunPrice]) -> str:
    now = _score([price.error for price in prices], [price.inside for price in prices])
    first = _score([price.run.blind_error for price in prices], [price.run.blind_inside for price in prices])
    return f"{now}; at first {first}"


def _score(errors: Sequence[float], inside: Sequence[bool]) -> str:
    mean = float(np.mean(np.abs(errors)))
    worst = max(errors, key=abs)
    return (
        f"mean error {mean:.0%} (bias {np.mean(errors):+.0%}), worst {worst:+.0%}, "
        f"{sum(inside)} of {len(inside)} within the interval"
    )
