"""Measurements of speed and memory, each a function that returns plain numbers.

Run as a script, ``measure.py NAME`` prints one of them, so that each can have a process of its own.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import workloads

BINARIES = Path(sys.executable).parent


def seconds(
    work: Callable[[], object], *, repeat: int, warm_up: int = 1, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each repetition, after some that are not counted; on the wall unless told otherwise."""
    for _ in range(warm_up):
        work()
    taken = []
    for _ in range(repeat):
        begin = clock()
        work()
        taken.append(clock() - begin)
    return taken


def start_up(repeat: int = 7) -> dict[str, float]:
    """Best wall-clock seconds of a process that only starts: the interpreter, the import, the help text."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import planner": [sys.executable, "-c", "import planner"],
        "planner --help": [str(BINARIES / "planner"), "--help"],
    }
    return {
        name: min(seconds(lambda command=command: run_silently(command), repeat=repeat))  # type: ignore[misc]
        for name, command in commands.items()
    }


def run_silently(command: list[str]) -> None:
    """Run a command, which must succeed."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)


def search(devices: int, repeat: int = 7) -> dict[str, float]:
    """Seconds of ``plan()`` for GPT-3 175B over the full space: the first call, then the median."""
    from planner.api import plan

    def once() -> Any:
        return plan(workloads.MODEL, workloads.CLUSTERS[devices], workloads.JOB)

    begin = time.perf_counter()
    considered = once().considered
    first_s = time.perf_counter() - begin
    return {"plans": considered, "first_s": first_s, "warm_s": statistics.median(seconds(once, repeat=repeat))}


def moe_search(repeat: int = 2) -> dict[str, float]:
    """Seconds of ``plan()`` for a mixture of experts with long sequences, and of pricing all of its plans."""
    from planner.answer.pricing import price_all
    from planner.api import plan
    from planner.question.request import Options, cost_context, resolve_request, space_of

    question = (workloads.MOE_MODEL, workloads.CLUSTERS[1024], workloads.MOE_JOB)
    request = resolve_request(*question, None, Options())
    plans, context = space_of(request).plans, cost_context(request)
    clock = time.process_time
    return {
        "plans": len(plans),
        "warm_s": min(seconds(lambda: plan(*question), repeat=repeat, clock=clock)),
        "priced_s": min(seconds(lambda: price_all(plans, context), repeat=repeat, warm_up=0, clock=clock)),
    }


def peak_memory(devices: int) -> dict[str, float]:
    """Peak resident bytes of a process that answers one search, and of one that only imports the planner."""
    from planner.api import plan

    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan(workloads.MODEL, workloads.CLUSTERS[devices], workloads.JOB)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return {"loaded_bytes": loaded * unit, "peak_bytes": peak * unit}


def one_estimate(repeat: int = 100) -> dict[str, float]:
    """Median seconds of ``estimate()`` of one given plan, and of the best plan, warm."""
    from planner.api import estimate, plan

    best = plan(workloads.MODEL, workloads.CLUSTERS[1024], workloads.JOB, top=1).plans[0].plan

    def given() -> object:
        return estimate(workloads.MODEL, workloads.CLUSTERS[1024], workloads.JOB, plan=best)

    return {"given_plan_s": statistics.median(seconds(given, repeat=repeat, warm_up=5))}


def serving_call(repeat: int = 20) -> dict[str, float]:
    """Seconds of ``serving()`` on 128 GPUs with bounds, the first time and warm (median)."""
    from planner.deployments.plans import serving

    def asked() -> object:
        return serving("llama-3.1-70b", "16x8xH100", prompt=1024, generate=256, ttft_s=0.5, tpot_s=0.04)

    first_s = seconds(asked, repeat=1)[0]
    return {"first_s": first_s, "warm_s": statistics.median(seconds(asked, repeat=repeat))}


def batch_path(devices: int, repeat: int = 7, *, reported: bool = False) -> dict[str, float]:
    """Plans priced per second: the whole legal space, as the search calls it, or with all that a report shows."""
    from costmodels.evaluate import evaluate
    from planner.answer.pricing import CHUNK_ROWS, price_all

    plans, context = workloads.space(devices)

    def once() -> None:
        if not reported:
            price_all(plans, context)
            return
        for start in range(0, len(plans), CHUNK_ROWS):
            evaluate(plans.take(slice(start, start + CHUNK_ROWS)), context)

    best_s = min(seconds(once, repeat=repeat, clock=time.process_time))
    return {"plans": len(plans), "plans_per_s": len(plans) / best_s}


def staged_path(stages: int, count: int = 32_768, repeat: int = 7) -> dict[str, float]:
    """Fully priced plans per second whose stages differ, 64 layers, in batches of 2,048 as chains advance."""
    from costmodels.stage_plans.evaluate import evaluate_stages

    plans, prices = workloads.staged_plans(count, stages=stages)
    batches = [plans.take(slice(start, start + 2048)) for start in range(0, count, 2048)]

    def once() -> None:
        for batch in batches:
            evaluate_stages(batch, prices)

    return {"plans": count, "plans_per_s": count / min(seconds(once, repeat=repeat, clock=time.process_time))}


def batches_of_one(devices: int, count: int = 200) -> dict[str, float]:
    """Plans per second when the same function is called with one plan at a time."""
    from costmodels.evaluate import evaluate

    plans, context = workloads.space(devices)
    step = max(len(plans) // count, 1)
    single = [plans.take([row]) for row in range(0, len(plans), step)]

    def once() -> None:
        for plan in single:
            evaluate(plan, context)

    return {"plans_per_s": len(single) / min(seconds(once, repeat=3, clock=time.process_time))}


def python_loop(devices: int, count: int = 4000) -> dict[str, float]:
    """Plans per second of the plain-Python loop, and how far it strays from the batch path."""
    import numpy as np
    import scalar_loop

    from costmodels.evaluate import evaluate

    plans, context = workloads.space(devices)
    sample = plans.take(np.arange(0, len(plans), max(len(plans) // count, 1)))
    rows = scalar_loop.prepare(sample, context)
    best_s = min(seconds(lambda: scalar_loop.price(rows, context), repeat=3, clock=time.process_time))
    estimate = evaluate(sample, context)
    batch = np.stack([estimate.step_time_s, estimate.peak_memory_bytes], axis=1)
    loop = np.array([priced[:2] for priced in scalar_loop.price(rows, context)])
    return {"plans_per_s": len(rows) / best_s, "largest_difference": float(np.abs(loop / batch - 1).max())}


MEASUREMENTS: dict[str, Callable[[], dict[str, float]]] = {
    "start_up": start_up,
    "search_1024": lambda: search(1024),
    "search_16384": lambda: search(16384),
    "moe_search": moe_search,
    "peak_memory_16384": lambda: peak_memory(16384),
    "one_estimate": one_estimate,
    "serving_call": serving_call,
    "batch_path_1024": lambda: batch_path(1024),
    "batch_path_16384": lambda: batch_path(16384),
    "reported_path_1024": lambda: batch_path(1024, reported=True),
    "staged_path_8": lambda: staged_path(8),
    "staged_path_16": lambda: staged_path(16),
    "batches_of_one": lambda: batches_of_one(1024),
    "python_loop": lambda: python_loop(1024),
}


def in_own_process(name: str) -> dict[str, float]:
    """One measurement in a fresh process bound to one core."""
    done = subprocess.run([sys.executable, __file__, name], check=True, capture_output=True, text=True, timeout=600)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


if __name__ == "__main__":
    workloads.use_one_core()
    sys.stdout.write(json.dumps(MEASUREMENTS[sys.argv[1]]()))
