"""Write ``docs/benchmarks.md``: what ``make bench`` measures, against what it is meant to reach."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import calculon
import measure
import workloads

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
# The loop repeats the formulas of the batch path; further apart than this, it no longer does.
LARGEST_DIFFERENCE = 1e-6
MIB = 1024**2

_HEAD = """# Benchmarks

Written by `make bench`; do not edit. Each measurement runs in a process of its own, bound to one core, with
numerical libraries on one thread. The workload is {model} in sequences of {sequence} tokens, {batch} to a
step, on H100 nodes: the whole legal space of Megatron-Core, not a sample of it.

Machine: {machine}; Python {python}, NumPy {numpy}.
"""

_NOTES = """A plan counts as priced once its step time, the memory of every stage and the verdict are known, by which a
search ranks it. A report also shows the interval, the parts of the step, the basis of prices and the FLOPs; a search
works these out for the plans that it returns. Rates are per second of processor time.

The loop gets kernel and collective prices, stage layouts, parameters and activations ready-made and only composes
them, so its rate is an upper bound of what a loop could reach; it agrees with the batch path to a part in a million.

Calculon is measured where `CALCULON_HOME` names a checkout of it; its executions include those it rejects.
"""


def machine() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return f"{', '.join(sorted(names)) or platform.machine()}, {os.cpu_count()} cores"


def table(rows: list[tuple[str, str, str]]) -> str:
    """A Markdown table of what was measured."""
    lines = [f"| {what} | {measured} | {target} |" for what, measured, target in rows]
    return "\n".join(["| | measured | target |", "|---|---|---|", *lines])


def speed_rows() -> list[tuple[str, str, str]]:
    """Throughput of the batch path, and of what it is compared with."""
    small, large = (measure.in_own_process(f"batch_path_{devices}") for devices in (1024, 16384))
    loop, single = measure.in_own_process("python_loop"), measure.in_own_process("batches_of_one")
    if loop["largest_difference"] > LARGEST_DIFFERENCE:
        raise SystemExit(f"scalar_loop.py differs from the batch path by {loop['largest_difference']:.2g}: mend it")
    rate = small["plans_per_s"]
    rows = [
        (
            f"plans priced per second, {devices:,} GPUs ({found['plans']:,} plans)",
            f"{found['plans_per_s']:,.0f}",
            "300,000",
        )
        for devices, found in ((1024, small), (16384, large))
    ]
    reported = measure.in_own_process("reported_path_1024")
    rows.append(
        ("the same with all that a report shows of a plan, 1,024 GPUs", f"{reported['plans_per_s']:,.0f}", "300,000")
    )
    for stages in (8, 16):
        found = measure.in_own_process(f"staged_path_{stages}")
        what = f"plans per second whose {stages} stages differ, {workloads.STAGED_MODEL} on {workloads.STAGED_CLUSTER}"
        rows.append((what, f"{found['plans_per_s']:,.0f}", "200,000"))
    rows.append(
        (
            "plain-Python loop over the same formulas, plans per second",
            f"{loop['plans_per_s']:,.0f} (the batch path does {rate / loop['plans_per_s']:.0f} times as many)",
            "",
        )
    )
    rows.append(
        ("the batch path called with one plan at a time, plans per second", f"{single['plans_per_s']:,.0f}", "")
    )
    rival = calculon.calculon_rate()
    shown = "not installed here" if rival is None else (
        f"{rival['plans_per_s']:,.0f} (the batch path does {rate / rival['plans_per_s']:.0f} times as many)"
    )  # fmt: skip
    rows.append(("Calculon's search, executions per second", shown, ""))
    return rows


def latency_rows() -> list[tuple[str, str, str]]:
    """Time and memory of whole calls."""
    rows = []
    for devices in (1024, 16384):
        found = measure.in_own_process(f"search_{devices}")
        times = f"{found['warm_s']:.2f} s warm, {found['first_s']:.2f} s the first time"
        rows.append((f"`plan()`, {devices:,} GPUs, {found['plans']:,} plans", times, "1 s warm"))
    found = measure.in_own_process("moe_search")
    what = f"`plan()` of {workloads.MOE_MODEL}, {workloads.MOE_JOB['sequence_length']:,} tokens, 1,024 GPUs"
    rows.append((f"{what}, {found['plans']:,} plans", f"{found['warm_s']:.2f} s warm", ""))
    memory = measure.in_own_process("peak_memory_16384")
    shown = f"{memory['peak_bytes'] / MIB:,.0f} MiB, of which {memory['loaded_bytes'] / MIB:,.0f} before the call"
    rows.append(("peak memory of the process, 16,384 GPUs", shown, "1,024 MiB"))
    one = measure.in_own_process("one_estimate")
    rows.append(("`estimate()` of one plan, warm", f"{1e3 * one['given_plan_s']:.1f} ms", "5 ms"))
    served = measure.in_own_process("serving_call")
    times = f"{served['warm_s']:.2f} s warm, {served['first_s']:.2f} s the first time"
    rows.append(("`serving()` of 70B with bounds, 128 GPUs", times, "1 s"))
    starts = measure.start_up()
    bare = f"{starts['python -c pass']:.2f} s of which is the interpreter"
    rows += [(f"`{name}`", f"{starts[name]:.2f} s, {bare}", "0.3 s") for name in ("planner --help", "import planner")]
    return rows


def page() -> str:
    """The report as Markdown."""
    head = _HEAD.format(
        model=workloads.MODEL,
        sequence=workloads.JOB["sequence_length"],
        batch=f"{workloads.JOB['global_batch_size']:,}",
        machine=machine(),
        python=platform.python_version(),
        numpy=importlib.metadata.version("numpy"),
    )
    return "\n".join(
        [
            head,
            "## Throughput",
            "",
            table(speed_rows()),
            "",
            _NOTES,
            "",
            "## Whole calls",
            "",
            table(latency_rows()),
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
