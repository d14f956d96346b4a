"""Writes docs/search.md (``make search-report``): what the exact engines find and prove, beside others' rules."""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import planner
from planner.question.request import Options
from planner.search.partition.cpsat import Budget, solve_by_cpsat
from planner.search.partition.labels import solve_by_labels
from planner.search.partition.problem import PartitionInstance, partition_time_s
from planner.search.partition.solved import Solved, Status
from planner.search.question import ask
from planner.search.result import SearchResult
from profiles.markdown import table_head, table_row
from tests.places import ROOT
from tests.search import dimensions, rivals
from tests.search.chains import chain_bytes, solve_chain
from tests.search.small import INSTANCES
from tests.search.thumb import thumb_s

PAGE = ROOT / "docs" / "search.md"
_CLOSE = 3e-6  # share that rounding to ticks may hide, twice the resolution and a bit

# Jobs of the value table: model, cluster, tokens per sequence, sequences per step.
JOBS = (
    ("llama-2-13b", "8xA100-80GB", 4096, 256),
    ("llama-3-8b", "2x8xA100-40GB", 8192, 128),
    ("llama-3-70b", "8x8xH100", 4096, 1024),
    ("llama-3-70b", "16x8xA100-80GB", 8192, 512),
    ("mixtral-8x7b", "4x8xH100", 4096, 512),
    ("mixtral-8x22b", "16x8xH100", 4096, 1024),
    ("gpt3-175b", "128x8xA100-80GB", 2048, 1536),
    ("llama-3-405b", "128x8xH100", 8192, 1024),
    ("qwen3-235b-a22b", "8x8xB200", 4096, 1024),
    ("deepseek-v3", "32x8xH100", 4096, 1024),
    ("kimi-k2", "512x8xH100", 4096, 4096),
)
MIXED = (
    ("llama-2-13b", "1x8xA100-80GB+1x8xH100", 4096, 256),
    ("llama-3-70b", "4x8xA100-80GB+4x8xH100", 4096, 512),
    ("mixtral-8x7b", "4x8xA100-80GB+2x8xH100", 4096, 512),
    ("llama-3-8b", "1x8xA10G+1x8xH100", 8192, 128),
    ("llama-3-405b", "64x8xA100-80GB+64x8xH100", 8192, 1024),
    ("kimi-k2", "256x8xA100-80GB+256x8xH100", 4096, 4096),
)


def table(titles: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table."""
    return "\n".join([*table_head(titles), *(table_row(*row) for row in rows)])


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the seconds of processor time it took."""
    began = time.process_time()
    return call(), time.process_time() - began


def share(number: float | None) -> str:
    """A share in per cent; tiny ones as zero."""
    if number is None:
        return "none"
    return "0" if abs(number) < 5e-7 else f"{100 * number:.2g} %"


def brute_force() -> str:
    """Every plan of small questions priced, beside what the search finds."""
    rows = []
    for instance in INSTANCES:
        best_s, plans = instance.optimum()
        auto, auto_s = timed(instance.found)
        exact, exact_s = timed(lambda: instance.found(strategy="cpsat"))  # noqa: B023
        uniform = auto.uniform_step_time_s / best_s - 1
        rows.append(
            (
                instance.name, f"{plans:,}", share(uniform) if np.isfinite(uniform) else "none fits",
                _excess(auto, best_s), share(auto.gap), f"{auto_s:.1f} s",
                _excess(exact, best_s), share(exact.gap), f"{exact_s:.1f} s",
            )
        )  # fmt: skip
    titles = (
        "instance", "plans", "best uniform above the optimum", "`auto` above it", "gap told", "CPU",
        "`cpsat` above it", "gap told", "CPU",
    )  # fmt: skip
    return table(titles, rows)


def _excess(result: SearchResult, best_s: float) -> str:
    return "nothing found" if result.best is None else share(result.best.step_time_s / best_s - 1)


def active() -> str:
    """What every dimension is in the instance in which all of them are active."""
    taken = dimensions.brute(next(instance for instance in INSTANCES if instance.name == "every dimension"))[2]
    rows = [(name.replace("_", " "), dimensions.told(taken[name])) for name in dimensions.DIMENSIONS]
    return table(("dimension", "every dimension"), rows)


def mist() -> str:
    """The inter-stage assignment at Mist's sizes."""
    rows = []
    for layers, stages, microbatches in rivals.MIST_SIZES:
        cpsat_s, labels_s, proved, agree = [], [], 0, 0
        for seed in range(5):
            instance = rivals.mist(layers, stages, microbatches, seed)
            by_cpsat, took_s = timed(lambda: solve_by_cpsat(instance, budget=Budget(work=60.0)))  # noqa: B023
            cpsat_s.append(took_s)
            by_labels, took_s = timed(lambda: solve_by_labels(instance))  # noqa: B023
            labels_s.append(took_s)
            proved += by_cpsat.status == by_labels.status == Status.OPTIMAL
            agree += abs(by_cpsat.objective_s / by_labels.objective_s - 1) < _CLOSE
        rows.append(
            (f"{layers}, {stages}, {microbatches}", f"{proved} of 5", f"{agree} of 5", f"{max(cpsat_s):.2f} s",
             f"{max(labels_s):.2f} s")
        )  # fmt: skip
    return table(
        ("layers, stages, micro-batches", "proved by both", "agree", "CP-SAT, slowest", "labels, slowest"), rows
    )


def counted(name: str, answers: Iterator[tuple[Solved, float, float]]) -> tuple[Any, ...]:
    """How often the best of all choices is found, and how often a rule misses it or finds none."""
    right = missed = none = false = total = 0
    worst = 0.0
    for solved, best_s, ruled_s in answers:
        total += 1
        if np.isinf(best_s):
            right += solved.status == Status.INFEASIBLE
            none += 1
            continue
        right += solved.status == Status.OPTIMAL and solved.objective_s / best_s - 1 < _CLOSE
        if np.isinf(ruled_s):
            false += 1
        elif ruled_s > best_s * (1 + 1e-9):
            missed, worst = missed + 1, max(worst, ruled_s / best_s - 1)
    return (name, f"{right} of {total}", none, f"{missed}, up to {share(worst)}", false)


def amp() -> Iterator[tuple[Solved, float, float]]:
    """Pipeline partitions at AMP's size."""
    for seed in range(200):
        problem = rivals.amp(seed)
        instance = rivals.amp_partition(problem)
        yield solve_by_cpsat(instance), rivals.brute_force_s(instance), rivals.amp_rule_s(problem)


def chains() -> Iterator[tuple[Solved, float, float]]:
    """Chains at nnScaler's size."""
    for seed in range(400):
        instance = rivals.chain(seed)
        solved = solve_chain(instance)
        if solved.rows is not None and chain_bytes(instance, solved.rows[None, :])[0] > instance.capacity_bytes:
            raise SystemExit(f"chain {seed}: the answer does not fit")
        yield solved, rivals.chain_brute_force_s(instance), rivals.chain_front_rule_s(instance)


def two_types() -> str:
    """Clusters of two types at Metis's size."""
    rows = []
    for seed in range(5):
        plans, right, best_s, exact_s = 0, 0, np.inf, np.inf
        instances: list[PartitionInstance] = [rivals.two_types(seed, *outer) for outer in rivals.METIS_OUTER]
        for instance in instances:
            choices = rivals.every_choice(instance)
            plans += len(choices)
            least_s = float(partition_time_s(instance, choices).min()) if len(choices) else np.inf
            solved = solve_by_cpsat(instance)
            found_s = solved.objective_s
            same = solved.status == Status.INFEASIBLE if np.isinf(least_s) else found_s / least_s - 1 < _CLOSE
            right += bool(same)
            best_s, exact_s = min(best_s, least_s), min(exact_s, found_s)
        rows.append((seed, f"{plans:,}", f"{right} of {len(instances)}", share(exact_s / best_s - 1)))
    return table(("seed", "plans", "partitions solved to the optimum", "best plan above the optimum"), rows)


def value(jobs: tuple[tuple[str, str, int, int], ...], most: int) -> str:
    """What stages that differ are worth on realistic jobs."""
    rows = []
    for model, cluster, tokens, sequences in jobs:
        job = {"sequence_length": tokens, "global_batch_size": sequences}
        ruled_s = thumb_s(ask(model, cluster, job, None, Options()))
        result, took_s = timed(lambda: planner.search(model, cluster, job, seconds=3600.0, evaluations=most))  # noqa: B023
        best_s, runnable_s = (
            np.inf if plan is None else plan.step_time_s for plan in (result.best, result.best_runnable)
        )
        devices = {stage.device for stage in result.best.stages} if result.best is not None else set()
        rows.append(
            (model, cluster, _step(ruled_s), _step(result.uniform_step_time_s), _step(best_s),
             " + ".join(sorted(devices)), _saved(best_s, ruled_s), share(result.gain), share(result.gap),
             _step(runnable_s), share(result.runnable_gap), f"{took_s:.0f} s")
        )  # fmt: skip
    titles = (
        "model", "cluster", "Megatron rule of thumb", "best of `planner plan`", "best plan", "runs on",
        "saved over the rule", "over `planner plan`", "gap", "best that Megatron-LM can run", "its gap", "CPU",
    )  # fmt: skip
    return table(titles, rows)


def _step(seconds: float) -> str:
    return f"{seconds:.4g} s" if np.isfinite(seconds) else "none fits"


def _saved(best_s: float, other_s: float) -> str:
    """Share that the best plan saves over another."""
    return share(1.0 - best_s / other_s) if np.isfinite(best_s) and np.isfinite(other_s) else ""


def page(most: int) -> str:
    """The whole page."""
    counts = table(
        ("problem", "solved and proved", "of them infeasible", "the rule misses the best", "the rule finds none"),
        [counted("pipeline partitions, 9 layers on 3 stages (AMP)", amp()),
         counted("chains of 6 operators with 3 ways and memory that does not add up (nnScaler)", chains())],
    )  # fmt: skip
    return TEXT.format(
        brute=brute_force(), active=active(), mist=mist(), counts=counts, metis=two_types(), value=value(JOBS, most),
        mixed=value(MIXED, most), most=f"{most:,}",
    )  # fmt: skip


TEXT = """# Search beyond uniform plans

Written by `make search-report`. Times are processor seconds of one thread, on whatever machine that ran on.

## How

`planner search` prices every plan that treats its stages alike, and then every *family* of pipelines (degrees,
sharding, micro-batches, schedule, chunks) that might beat it, best bound first: any number of consecutive layers per
stage, recomputed as little as memory allows: some from their input, some in part. With `--named-modules`, the part is
any set of named modules (Megatron-Core's `--recompute-modules`), one set per stage. With `--offload`, activations of
all layers or none may be on the host, and so many eighths of each stage's optimizer states and of its weights as memory
needs: for every share of the weights the least share of the states that fits. Each stage's ways are priced by
the cost path that prices all plans, memory in full, so that memory may follow any formula; what is left is a
partition with a few hundred options, solved by label setting and, where that leaves a gap, by CP-SAT. The search ends
with a proof when the next family's bound is no better than the best plan, or with the least bound that is left. Every
plan is priced anew before it counts; the largest difference between a value that was minimised and the price of its
plan is `largest_price_gap` in the document.

Across groups of different GPUs every group runs one configuration: any that the groups share, or, where they differ,
one of the three with the least work for its number of devices per stage and size of micro-batch; bounds are about
these. The schedule is any that the framework runs, interleaved or not. Which stages are on which group, and how many,
is part of the partition, and so is leaving devices idle.

Plans and families whose stages are alike may leave devices idle, whole machines where there are several: numbers of
devices down to more than half are looked at, eight at most, those first that batch, heads and layers share evenly.
The answer says which numbers it leaves out. What is fixed and a group cannot do leaves that group's own plans out.

Last come pipelines of 2 to 32 stages with degrees of their own: every stage takes any group, any number of devices
that is an even share of a scale-up domain or so many whole ones, any legal degrees, ZeRO stage and micro-batch of the
same samples, with 1F1B without virtual stages. A dynamic program over stages, layers and devices, memory included,
bounds all of them by size of micro-batch and number of stages, and so does a linear relaxation in which stages pay for
layers and devices, over ranges of what the slowest stage works; most are ruled out by that. Of the others it says which
stage can hold which layers on which configuration; what is left is a partition with devices to share out. With
`--offload` they are not searched.

No framework lays out a mesh of ranks per stage, so the answer says which frameworks can run the plan, and which rule
keeps each of the others from it. Beside it stands the best plan that the job's framework can run, with a bound of its
own: stages share their degrees, and what they recompute and offload, and differ in layers and devices. These are
searched first, by up to half of the time; with `--runnable` nothing else is.

The bound is about these spaces under this cost model, and the answer says what each engine's bound is about
(`engines`: `space`, `left_out`, `bound_s`, and `status` where one was not run). It says nothing about the cost model's
own error (see [accuracy.md](accuracy.md)), and nothing about plans outside: stages with degrees of their own together
with virtual stages, zero bubble or offloading. The price of every schedule is what it takes played out event by event
(`costmodels.pipeline.simulation`), whatever its stages.

## Against every plan there is

Small questions in which every plan can be priced: every family, every split of the layers, every number of recomputed
layers on each stage, every assignment of stages to groups, to devices and to degrees.

{brute}

In the last every dimension is active, with few values each. No framework has them all (Megatron-LM has no zero bubble,
torchtitan one order of axes): it asks for the best plan of either, `--framework megatron,fsdp`, and every plan is one
that one of them has, at the prices of that one. These are the values over all plans that were priced.

{active}

## Other planners' problems

Instances are drawn from seeds; sizes and formulas are those of the planners named, costs are not theirs.

### Inter-stage assignment (Mist)

Stages of avg - 2 to avg + 2 layers, 30 Pareto points each; (G - 1) max t + sum t + max(d - sum of t before).

{mist}

### Rules that miss

AMP's dynamic program forgets the transfer of a cut once the cut has won. A dynamic program that keeps prefixes on the
front of time and memory misses the best when memory is the larger of two moments and the two largest buffers.

{counts}

### Two types of devices (Metis)

Stages on one, two or four devices of one of two types, four devices of each, 10 layers, up to 3 stages.

{metis}

## What stages that differ are worth

`planner search --evaluations {most}` per job. The rule of thumb is what Megatron-LM's users are advised to do
(arXiv:2104.04473, takeaways 1 to 3): tensor-parallel up to the GPUs of a node, then pipeline stages, as few of both as
fit, data parallelism over the rest, experts within a node; with the fastest micro-batch, chunks and recomputation
(none, of attention cores, of whole layers) of that layout, and the optimizer sharded where that is faster. The gap is
over all spaces searched; beside it the best plan that the framework can run, with the gap among these.

{value}

## Across groups

Groups of different GPUs. The rule of thumb and `planner plan` use one group alone, the one on which they are faster.
Where one group alone does best the answer says so, and whether that is proved.

{mixed}
"""


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=2_000_000, help="Limit of each realistic job.")
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    arguments.out.write_text(page(arguments.evaluations))


if __name__ == "__main__":
    main()
