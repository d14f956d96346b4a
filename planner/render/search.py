"""A search's answer as tables for a terminal."""

from itertools import groupby
from math import isfinite

from rich.console import Console
from rich.table import Table

from planner.phrases import percent, seconds
from planner.render.plans import indented, render_infeasible
from planner.rules.base import FRAMEWORK_TITLES
from planner.search.result import OPTIMAL_GAP, EngineRun, FoundPlan, SearchResult, StageChoice
from profiles.units import GIB

# Columns and the fields they show; degrees that are 1 everywhere are left out.
_TITLES = {
    "device": "device", "GPUs": "num_devices", "layers": "layers", "tp": "tensor_parallel", "cp": "context_parallel",
    "dp": "data_parallel", "ep": "expert_parallel", "zero": "zero_stage", "mbs": "micro_batch_size", "recomputed": "",
    "time": "", "GiB": "",
}  # fmt: skip
_SAME = 5e-5  # share of the step that percentages do not show
_GIVES_WAY = {"device": 5, "recomputed": 10}  # columns that a narrow terminal may make narrower, and how much
_DEGREES = ("tp", "cp", "dp", "ep")


def render_search(result: SearchResult, console: Console, *, quiet: bool = False) -> None:
    """Print a whole answer; ``quiet`` leaves out warnings and assumptions."""
    model = result.requests[0].model
    job = result.requests[0].job
    console.print(f"{model.name} on {result.cluster}", style="bold", highlight=False)
    console.print(
        f"{job.global_batch_size} sequences of {job.sequence_length} tokens per step, {result.requests[0].stack.name}",
        highlight=False,
    )
    if result.best is None and not result.infeasible:
        console.print("\nNo plan found.", style="bold", highlight=False)
    elif result.best is None:
        for request, infeasible in zip(result.requests, result.infeasible, strict=True):
            if len(result.requests) > 1:
                console.print(f"\nOn {request.cluster.name} alone", style="bold", highlight=False)
            render_infeasible(infeasible, console)
    else:
        _plan(result.best, _proof(result), console)
        _frameworks(result.best, console)
        _runnable(result, result.best, console)
    console.print()
    for run in result.engines:
        console.print(_engine(run), style="dim", highlight=False)
    if not quiet:
        _notes(result, console)


def _notes(result: SearchResult, console: Console) -> None:
    """What the bound is not about, what to know before trusting the numbers, and what was assumed."""
    assumed = dict.fromkeys(note.message for request in result.requests for note in request.assumptions)
    left_out = result.left_out if result.bound_s is not None else ()
    for title, style, words in (
        ("Nothing is proved about", "dim", left_out),
        ("Warnings", "", [note.message for note in result.warnings]),
        ("Assumed", "dim", assumed),
    ):
        if words:
            console.print(f"\n{title}", style="bold")
        for each in words:
            indented(each, console, style=style)


def _plan(best: FoundPlan, proof: str, console: Console) -> None:
    """A plan stage by stage, after what is proved about it."""
    idle = f", {best.idle_devices} idle" if best.idle_devices else ""
    chunks = f", {best.virtual_stages} chunks per stage" if best.virtual_stages > 1 else ""
    interval = f"{seconds(best.step_time_low_s)} to {seconds(best.step_time_high_s)}"
    words = f"\n{seconds(best.step_time_s)} per step ({interval}), {best.num_devices} GPUs{idle}"
    console.print(words, style="bold", highlight=False)
    console.print(proof, highlight=False)
    if best.played_step_time_s is not None:
        off = best.played_step_time_s / best.step_time_s - 1.0
        told = "takes as long" if abs(off) < _SAME else f"takes {percent(abs(off))} {'longer' if off > 0 else 'less'}"
        console.print(f"the schedule played out event by event {told}", highlight=False)
    console.print(
        f"{len(best.stages)} stage{'s' if len(best.stages) > 1 else ''}, {best.schedule}, "
        f"{best.num_microbatches} micro-batches{chunks}",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [
        title for title in _TITLES if title not in _DEGREES or any(_cell(stage, title) != "1" for stage in best.stages)
    ]
    rows = [[_cell(stage, title) for title in shown] for stage in best.stages]
    table.add_column("stage", no_wrap=True, min_width=len("stage"))
    for title, *cells in zip(shown, *rows, strict=True):
        widest = max(len(title), *map(len, cells))
        least = min(widest, _GIVES_WAY.get(title, widest))
        table.add_column(
            title,
            justify="left" if title == "device" else "right",
            no_wrap=least == widest,
            overflow="fold" if title == "recomputed" else "ellipsis",
            min_width=least,
        )
    for cells, run in groupby(best.stages, key=lambda stage: rows[stage.index]):
        stages = list(run)
        first, last = stages[0].index, stages[-1].index
        table.add_row(str(first) if first == last else f"{first}-{last}", *cells)
    console.print(table)
    console.print(
        f"mbs micro-batch size; time of one micro-batch, forward and backward; prices {best.basis}",
        style="dim",
        highlight=False,
    )


def _frameworks(best: FoundPlan, console: Console) -> None:
    """Who can run the plan, and what is in the way of the others."""
    able = [FRAMEWORK_TITLES[verdict.framework] for verdict in best.frameworks if verdict.runs]
    console.print(f"\nRuns on {', '.join(able) or 'no framework known here'}", style="bold", highlight=False)
    for verdict in best.frameworks:
        if not verdict.runs:
            first, *others = verdict.broken.values()
            more = f" (and {len(others)} more)" if others else ""
            console.print(
                f"not on {FRAMEWORK_TITLES[verdict.framework]}, whose rule is: {first}{more}",
                style="dim",
                highlight=False,
            )


def _runnable(result: SearchResult, best: FoundPlan, console: Console) -> None:
    """The best plan that the job's framework can run, where that is another one."""
    framework = result.requests[0].stack.framework
    title, other = FRAMEWORK_TITLES[framework], result.best_runnable
    if any(verdict.runs for verdict in best.frameworks if verdict.framework == framework):
        return
    if other is None:
        console.print(f"\nNo plan was found that {title} can run", style="bold", highlight=False)
        return
    console.print(f"\nThe best that {title} can run", style="bold", highlight=False)
    slower = percent(other.step_time_s / best.step_time_s - 1.0)
    proof = _proved(result.runnable_gap, f"of the spaces searched that {title} can run")
    _plan(other, f"{slower} slower than the plan above; {proof}", console)


def _proof(result: SearchResult) -> str:
    """What is proved, and what is gained over plans that treat every stage alike."""
    words = _proved(result.gap, "of the spaces searched")
    return f"{words}; {percent(result.gain)} faster than what planner plan finds" if result.gain > 0 else words


def _proved(gap: float | None, among: str) -> str:
    if gap is None:
        return "nothing is proved about faster plans"
    if gap <= OPTIMAL_GAP:
        return f"proved: no plan {among} is faster"
    room = percent(gap) if gap >= 0.0005 else "0.1 %"  # no more than rounds to nothing, but not proved
    return f"at most {room} from the fastest {among}"


def _cell(stage: StageChoice, title: str) -> str:
    """What a column says of a stage."""
    if title == "recomputed":
        return _recomputed(stage)
    if title == "time":
        return seconds(stage.microbatch_time_s)
    if title == "GiB":
        return f"{stage.memory_bytes / GIB:.1f}"
    return str(getattr(stage, _TITLES[title]))


def _recomputed(stage: StageChoice) -> str:
    words = [f"{stage.full_layers} full"] if stage.full_layers else []
    names = "+".join(stage.recomputed_modules).replace("core_attn", "core")
    words += [f"{stage.selective_layers} {names}"] if stage.selective_layers else []
    words += [f"{stage.offloaded_layers} offloaded"] if stage.offloaded_layers else []
    words += [f"optimizer {percent(stage.optimizer_offload)} on host"] if stage.optimizer_offload else []
    words += [f"weights {percent(stage.parameter_offload)} on host"] if stage.parameter_offload else []
    return ", ".join(words) or "none"


def _engine(run: EngineRun) -> str:
    words = f"{run.engine}: {run.space}; {run.status} after {run.evaluations:,} evaluations, {seconds(run.elapsed_s)}"
    if run.status == "not run":
        return words
    if run.bound_s is None:
        return f"{words}; proves nothing"
    return f"{words}; none is faster than {seconds(run.bound_s)}" if isfinite(run.bound_s) else f"{words}; none fits"
