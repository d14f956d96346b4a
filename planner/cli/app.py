"""The command line: results on stdout, everything else on stderr.

Exit codes: 0 answered, 1 a bug, 2 bad input, 3 answered that nothing fits.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_command

from planner.cli import decisions as trial
from planner.cli import export as target
from planner.cli import options as option
from planner.cli import replan as again
from planner.cli.asked import inputs_of, pins_of
from planner.cli.calibrate import calibrate
from planner.cli.dataflow import dataflow
from planner.cli.flow import check_no_workflow, plan_workflow, workflow
from planner.cli.lists import add_lists
from planner.cli.output import (
    EXIT_BAD_INPUT,
    EXIT_NOTHING_FITS,
    emit,
    leave_stdout,
    progress,
    steady_streams,
    told_error,
)
from planner.cli.profiles import profiles
from planner.cli.search import Evaluations, Runnable, Seconds, Seed, Strategy, show_search
from planner.cli.serving import serving
from planner.cli.sizing import Days, show_sizing
from planner.cli.usage import USAGE, check_values, usage_error
from planner.cli.words import cluster_of
from profiles.errors import InfeasibleError, PlannerError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from planner.results import PlanResult

EXIT_BUG = 1

app = typer.Typer(
    name="planner",
    help="Execution plans for large language models: which is best, how long a step takes, whether it fits.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(profiles)
app.add_typer(dataflow)
app.command()(calibrate)
app.command()(serving)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    steady_streams()
    try:
        sys.exit(_run(given))
    except SystemExit as stop:
        if stop.code != EXIT_BUG:  # with which Typer and Rich end where the reader of a help text has gone
            raise
    except PlannerError as error:
        told = told_error(error, given)
        _fail(told, EXIT_NOTHING_FITS if isinstance(error, InfeasibleError) else EXIT_BAD_INPUT)
    except BrokenPipeError:
        leave_stdout()
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        if "--debug" in given:
            raise
        _fail(f"internal error: {type(error).__name__}: {error}. Repeat with --debug for the traceback.", EXIT_BUG)


def _run(arguments: list[str]) -> int:
    """The exit code of a command that was answered.

    Raises:
        PlannerError: What is wrong, in one shape whoever found it.
    """
    command = get_command(app)
    check_values(command, arguments)
    try:
        return command(arguments, prog_name=app.info.name, standalone_mode=False) or 0
    except USAGE as error:
        if (told := usage_error(error)) is None:
            return EXIT_BAD_INPUT
        raise told from None


def _fail(message: str, code: int) -> None:
    sys.stderr.write(message + "\n")
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("llm-execution-planner"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    del version


@app.command()
@partial(option.asks, also=workflow, optional=("model",))  # a workflow's file may name its models
def plan(
    values: dict[str, Any],
    top: option.Top = 10,
    variants: option.Variants = False,
    pareto: option.Pareto = False,
    portfolio: trial.Portfolio = None,
    trial_steps: trial.TrialSteps = 20,
    oom_penalty: trial.OomPenalty = 0.05,
    seed: trial.Seed = 0,
) -> None:
    """Rank every legal plan, best first; say which to try on the cluster; or plan a workflow of several models."""
    own = {
        "top": top, "variants": variants, "pareto": pareto, "portfolio": portfolio, "trial_steps": trial_steps,
        "oom_penalty": oom_penalty, "seed": seed,
    }  # fmt: skip
    own = option.given(own, plan)
    if values["workflow"]["job"] is not None:
        own.pop("seed", None)  # a workflow's search has one too
        plan_workflow(values | {"cluster": cluster_of(values["gpus"]), "seed": seed}, own)
        return
    check_no_workflow(values["workflow"])
    from planner import api

    trial.check_portfolio_options(own)
    if portfolio is not None:
        inputs = inputs_of(values) | {"pins": pins_of(values), "variants": variants}
        terms = trial.terms_of(steps=trial_steps, oom_penalty=oom_penalty, seed=seed)
        trial.show_portfolio(inputs, values, count=portfolio, terms=terms)
        return
    with progress("pricing plans", quiet=values["quiet"]):
        result = api.plan(**inputs_of(values), pins=pins_of(values), top=top, variants=variants)
    _show(result, values, pareto=pareto)


@app.command()
@option.asks
def estimate(values: dict[str, Any]) -> None:
    """Price and explain one plan: the one given, or the best that agrees with what is given."""
    from planner import api

    with progress("pricing plans", quiet=values["quiet"]):
        result = api.estimate(**inputs_of(values), plan=pins_of(values))
    _show(result, values)


@app.command()
@partial(option.asks, refused=("objective",))
def sizing(values: dict[str, Any], days: Days = None) -> None:
    """Say how many GPUs a job needs, and of which kind: the best plan on growing parts of a cluster.

    --gpus names a machine (H100, 8xH100), or the most there may be of it (64x8xH100); several with commas between, each
    perhaps with its price: 8xH100@2.99,8xA100@1.29.
    """
    inputs = inputs_of(values | {"gpus": ""})
    del inputs["cluster"]
    show_sizing(inputs | {"pins": pins_of(values)}, values, days=days)


@app.command()
@partial(option.asks, optional=("model", "gpus"))
def replan(
    values: dict[str, Any],
    onto: again.Onto,
    plan: again.Saved = None,
    rank: again.Rank = None,
    batch_change: again.Change = 0.1,
) -> None:
    """Say how a running job goes on on other GPUs: in the layout of its checkpoint, and at best."""
    settings = {"plan": plan, "rank": rank, "batch_change": batch_change}
    again.show_replan(lambda: inputs_of(values) | {"plan": pins_of(values)}, values, settings, onto=onto)


@app.command()
@partial(option.asks, refused=("objective", "max_oom_risk"))
def search(
    values: dict[str, Any],
    strategy: Strategy = "auto",
    seconds: Seconds = 20.0,
    evaluations: Evaluations = None,
    seed: Seed = 0,
    runnable: Runnable = False,
) -> None:
    """Find the fastest plan stage by stage, also across different GPUs, and say how good it is.

    --framework may name several, with commas between, or any.
    """
    limits = {"strategy": strategy, "seconds": seconds, "evaluations": evaluations, "seed": seed}
    limits["runnable"] = runnable
    show_search(inputs_of(values) | {"pins": pins_of(values)} | limits, values)


@app.command()
@partial(option.asks, refused=("objective", "max_oom_risk"))
def sensitivity(
    values: dict[str, Any],
    rivals: trial.Rivals = 3,
    oom_penalty: trial.OomPenalty = 0.05,
    seed: trial.Seed = 0,
) -> None:
    """Say what to measure first: which unknown decides between plans, and what knowing it is worth."""
    inputs = inputs_of(values) | {"pins": pins_of(values)}
    terms = trial.terms_of(oom_penalty=oom_penalty, seed=seed)
    trial.show_sensitivity(inputs, values, rivals=rivals, terms=terms)


@app.command()
@partial(option.asks, refused=("objective", "max_oom_risk"))
def observe(
    values: dict[str, Any],
    trials: trial.Trials,
    next_: trial.Next = 3,
    trial_steps: trial.TrialSteps = 20,
    oom_penalty: trial.OomPenalty = 0.05,
    seed: trial.Seed = 0,
) -> None:
    """Say what trials on the cluster have changed: ranking, intervals, chances, and what to try next."""
    inputs = inputs_of(values) | {"pins": pins_of(values)}
    terms = trial.terms_of(steps=trial_steps, oom_penalty=oom_penalty, seed=seed)
    trial.show_observed(inputs, values, trials=trials, count=next_, terms=terms)


@app.command()
@partial(option.asks, also=workflow, optional=("model", "gpus"))
def export(
    values: dict[str, Any],
    format_: target.Format,
    plan: target.Plan = None,
    rank: target.Rank = None,
    out: target.Out = None,
    allow_partial: target.Partial = False,
) -> None:
    """Write the files and the launch line of a training framework: of the best plan that it expresses.

    Where planner estimate explains another for the same options, it says so.
    """
    settings = {"format": format_, "plan": plan, "rank": rank, "allow_partial": allow_partial}
    if values["workflow"]["job"] is not None:
        target.show_flow_export(values | {"cluster": cluster_of(values["gpus"]), "seed": 0}, settings, out=out)
        return
    check_no_workflow(values.pop("workflow"))
    target.show_export(lambda: inputs_of(values) | {"plan": pins_of(values)}, values, settings, out=out)


@app.command()
def compare(
    answers: Annotated[
        list[str],
        typer.Argument(
            help="Answers of planner plan or estimate, saved with --json; FILE#2 is the second plan of one. "
            "Of a single file, its first plans."
        ),
    ],
    stack_fit: option.StackFit = None,
    json_: option.Json = False,
    output: option.Output = None,
    quiet: option.Quiet = False,
    debug: option.Debug = False,
) -> None:
    """Set plans of saved answers beside each other, and say what makes the difference."""
    from planner.cli.compare import show_compare

    show_compare(answers, stack_fit=stack_fit, json_=json_, output=output, quiet=quiet)


add_lists(app)


@app.command()
def validate(
    files: Annotated[
        list[Path] | None, typer.Argument(help="CSV files or folders of measured runs; the packaged table if none.")
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="List every row in the document.")] = False,
    published: Annotated[
        bool, typer.Option("--published", help="Read the files as published tables, by the habits of their publishers.")
    ] = False,
    json_: option.Json = False,
    output: option.Output = None,
    quiet: option.Quiet = False,
    debug: option.Debug = False,
) -> None:
    """Compare predictions with measurements: your own, or published ones."""
    from planner.validate.render import render_report
    from planner.validate.report import report_document
    from planner.validate.report import validate as run

    with progress("predicting measured runs", quiet=quiet):
        report = run(files, users_own=bool(files) and not published)
    shown = (report_document(report, rows=rows), lambda console: render_report(report, console))
    emit(shown, json_=json_, output=output)


@app.command()
def price(
    file: Annotated[str, typer.Argument(help="MLIR text: StableHLO, torch or linalg dialect, IREE flow dispatches.")],
    device: Annotated[str, typer.Option("--device", "-d", help="The device, as planner gpus names it.")],
    json_: option.Json = False,
    output: option.Output = None,
    debug: option.Debug = False,
) -> None:
    """Price the kernels of an MLIR file on one device."""
    from planner.cli.price import show_price

    emit(show_price(file, device), json_=json_, output=output)


@app.command()
def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8000,
    debug: option.Debug = False,
) -> None:
    """Serve the REST interface; its documentation is at /docs. Models are served by planner serving."""
    import uvicorn

    if not host.strip():
        raise SpecError("--host", f"must be an address; got {host!r}", "--host 127.0.0.1")
    try:
        uvicorn.run("service.app:create_app", factory=True, host=host, port=port)
    except SystemExit as stopped:  # its own codes mean something else here
        if stopped.code:
            raise SpecError("--host, --port", f"cannot listen on {host[:100]}:{port}", "see the line above") from None


def _show(result: "PlanResult", values: Mapping[str, Any], *, pareto: bool = False) -> None:
    """Print an answer and exit with 3 if nothing fits."""
    from planner.document_plan import to_document
    from planner.render.plans import render, render_front

    def tables(console: "Console") -> None:
        render(result, console, quiet=values["quiet"])
        if pareto and result.pareto:
            render_front(result, console)

    emit((to_document(result), tables), json_=values["json_"], output=values["output"], markup=True)
    if not result.fits:
        raise typer.Exit(EXIT_NOTHING_FITS)
