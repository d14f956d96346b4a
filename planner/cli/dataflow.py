"""The ``planner dataflow`` commands: workflows of several model calls.

``solve`` reads a scheduling problem that another planner wrote, so that searches can be compared on identical terms.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import options as option
from planner.cli.output import emit, progress
from profiles.units import GIB

if TYPE_CHECKING:
    from rich.console import Console

    from planner.dataflow.solving.problem import DataflowProblem
    from planner.dataflow.solving.results import Solution

dataflow = typer.Typer(name="dataflow", help="Workflows of several model calls.", no_args_is_help=True)

_MOST_SECONDS = 3600.0


@dataflow.command()
def solve(
    file: Annotated[str, typer.Argument(help="Solver input in ReaLHF's format (JSON).")],
    objective: Annotated[
        str,
        typer.Option(help="iteration: each call once. reference: training calls as often as the file has iterations."),
    ] = "iteration",
    seconds: Annotated[float, typer.Option(min=0.1, max=_MOST_SECONDS, help="Longest search.")] = 60.0,
    gap: Annotated[float, typer.Option(min=0, max=0.99, help="Stop within this share of the bound.")] = 0.0,
    engine: Annotated[str, typer.Option(help="auto, tree (branch and bound) or anneal.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the annealing.")] = 0,
    json_: option.Json = False,
    output: option.Output = None,
    quiet: option.Quiet = False,
    debug: option.Debug = False,
) -> None:
    """Find the best plan of a search input, and how far from the best it can be at most."""
    from planner.dataflow.solving.inputs import read_search_input
    from planner.dataflow.solving.options import SearchOptions
    from planner.dataflow.solving.search import solve as solve_problem

    with progress("searching", quiet=quiet):
        problem = read_search_input(file, objective)
        options = SearchOptions(engine=engine, seed=seed, gap=gap, time_limit_s=seconds)
        solution = solve_problem(problem, options)
    emit(show_solution(problem, solution, objective), json_=json_, output=output)


def show_solution(
    problem: "DataflowProblem", solution: "Solution", objective: str
) -> tuple[dict[str, Any], Callable[["Console"], None]]:
    """The document and the tables of one solution."""
    document = solution_document(problem, solution, objective)
    return document, lambda console: _tables(document, console)


def solution_document(problem: "DataflowProblem", solution: "Solution", objective: str) -> dict[str, Any]:
    """Plan, bound and how the search went, in plain values."""
    from planner.dataflow.solving.memory import pressure
    from planner.dataflow.solving.units import units_of

    calls = []
    for index, call in enumerate(problem.calls):
        row = int(solution.choice[index])
        calls.append(
            {
                "name": call.name,
                "candidate": row,
                "first_gpu": int(call.start[row]),
                "num_gpus": int(call.size[row]),
                "start_s": float(solution.timeline.start_s[0, index]),
                "time_s": float(call.time_s[row]),
                "static_bytes": int(call.static_bytes[row]),
                "active_bytes": int(call.active_bytes[row]),
            }
        )
    share = pressure(problem, units_of(problem), solution.choice[None])[0]
    return {
        "objective": objective,
        "makespan_s": solution.makespan_s,
        "bound_s": solution.bound_s,
        "gap": solution.gap,
        "proven": solution.proven,
        "memory_share": float(share),
        "calls": calls,
        "search": {
            "engine": solution.engine,
            "seed": solution.seed,
            "plans": float(solution.plans),
            "candidates": [len(call) for call in problem.calls],
            "candidates_kept": list(solution.kept),
            "children": solution.children,
            "evaluations": solution.evaluations,
            "accepted": solution.accepted,
        },
    }


def _tables(document: dict[str, Any], console: "Console") -> None:
    from rich.table import Table

    from planner.phrases import seconds

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("call", overflow="ellipsis", min_width=12)
    for title in ("GPUs", "start", "time", "held", "while running"):
        table.add_column(title, justify="right", no_wrap=True)
    for call in document["calls"]:
        last = call["first_gpu"] + call["num_gpus"] - 1
        table.add_row(
            call["name"],
            f"{call['first_gpu']}-{last}" if call["num_gpus"] else "none",
            seconds(call["start_s"]) if call["start_s"] else "0 s",
            seconds(call["time_s"]),
            f"{call['static_bytes'] / GIB:.1f} GiB",
            f"{call['active_bytes'] / GIB:.1f} GiB",
        )
    console.print(table)
    proof = "proven the best" if document["proven"] else f"within {document['gap']:.2%} of the best there can be"
    milliseconds = f"{document['makespan_s'] * 1e3:,.0f} ms"
    console.print(f"total {milliseconds}, {proof}", highlight=False)
    search = document["search"]
    kept = "/".join(str(count) for count in search["candidates_kept"])
    console.print(
        f"{search['plans']:.3g} plans; {kept} candidates per call left; {search['children']} partial and "
        f"{search['evaluations']} whole plans looked at",
        style="dim",
        highlight=False,
    )
