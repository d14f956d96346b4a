"""The command line: results on stdout, everything else on stderr.

Exit codes: 0 answered, 1 a bug, 2 bad input, 3 answered that nothing fits.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import decisions as trial
from planner.cli import export as target
from planner.cli import options as option
from planner.cli import replan as again
from planner.cli.calibrate import calibrate
from planner.cli.dataflow import dataflow
from planner.cli.flow import check_no_workflow, plan_workflow, workflow
from planner.cli.lists import add_lists
from planner.cli.output import EXIT_NOTHING_FITS, emit, leave_stdout, progress, steady_streams, told_error
from planner.cli.profiles import profiles
from planner.cli.search import Evaluations, Runnable, Seconds, Seed, Strategy, show_search
from planner.cli.serving import serving
from planner.cli.sizing import Days, show_sizing
from planner.cli.words import amount, cluster_of, one_model
from profiles.errors import InfeasibleError, PlannerError, SpecError
from profiles.units import GIB

if TYPE_CHECKING:
    from rich.console import Console

    from planner.results import PlanResult

EXIT_BUG, EXIT_BAD_INPUT = 1, 2

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
        app(given)
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
        inputs = _inputs(values) | {"pins": _pins(values), "variants": variants}
        terms = trial.terms_of(trial_steps, oom_penalty, seed)
        trial.show_portfolio(inputs, values, count=portfolio, terms=terms)
        return
    with progress("pricing plans", quiet=values["quiet"]):
        result = api.plan(**_inputs(values), pins=_pins(values), top=top, variants=variants)
    _show(result, values, pareto=pareto)


@app.command()
@option.asks
def estimate(values: dict[str, Any]) -> None:
    """Price and explain one plan: the one given, or the best that agrees with what is given."""
    from planner import api

    with progress("pricing plans", quiet=values["quiet"]):
        result = api.estimate(**_inputs(values), plan=_pins(values))
    _show(result, values)


@app.command()
@option.asks
def sizing(values: dict[str, Any], days: Days = None) -> None:
    """Say how many GPUs a job needs, and of which kind: the best plan on growing parts of a cluster.

    --gpus names a machine (H100, 8xH100), or the most there may be of it (64x8xH100); several with commas between, each
    perhaps with its price: 8xH100@2.99,8xA100@1.29.
    """
    inputs = _inputs(values | {"gpus": ""})
    del inputs["cluster"]
    show_sizing(inputs | {"pins": _pins(values)}, values, days=days)


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
    again.show_replan(lambda: _inputs(values) | {"plan": _pins(values)}, values, settings, onto=onto)


@app.command()
@option.asks
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
    show_search(_inputs(values) | {"pins": _pins(values)} | limits, values)


@app.command()
@option.asks
def sensitivity(
    values: dict[str, Any],
    rivals: trial.Rivals = 3,
    oom_penalty: trial.OomPenalty = 0.05,
    seed: trial.Seed = 0,
) -> None:
    """Say what to measure first: which unknown decides between plans, and what knowing it is worth."""
    inputs = _inputs(values) | {"pins": _pins(values)}
    trial.show_sensitivity(inputs, values, rivals=rivals, terms=trial.terms_of(20, oom_penalty, seed))


@app.command()
@option.asks
def observe(
    values: dict[str, Any],
    trials: trial.Trials,
    next_: trial.Next = 3,
    trial_steps: trial.TrialSteps = 20,
    oom_penalty: trial.OomPenalty = 0.05,
    seed: trial.Seed = 0,
) -> None:
    """Say what trials on the cluster have changed: ranking, intervals, chances, and what to try next."""
    inputs = _inputs(values) | {"pins": _pins(values)}
    terms = trial.terms_of(trial_steps, oom_penalty, seed)
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
    """Write the files and the launch line of a training framework for the plan that planner estimate explains."""
    settings = {"format": format_, "plan": plan, "rank": rank, "allow_partial": allow_partial}
    if values["workflow"]["job"] is not None:
        target.show_flow_export(values | {"cluster": cluster_of(values["gpus"]), "seed": 0}, settings, out=out)
        return
    check_no_workflow(values.pop("workflow"))
    target.show_export(lambda: _inputs(values) | {"plan": _pins(values)}, values, settings, out=out)


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

    try:
        uvicorn.run("service.app:create_app", factory=True, host=host, port=port)
    except SystemExit as stopped:  # its own codes mean something else here
        if stopped.code:
            raise SpecError("--host, --port", f"cannot listen on {host[:100]}:{port}", "see the line above") from None


_JOB_OPTIONS = {
    "task": "task",
    "seq": "sequence_length",
    "global_batch": "global_batch_size",
    "precision": "precision",
    "optimizer": "optimizer",
    "gradient_dtype": "gradient_dtype",
    "master_dtype": "master_dtype",
    "state_dtype": "state_dtype",
    "attention": "attention",
    "attention_library": "attention_library",
    "dropout": "dropout",
    "fused_loss": "fused_cross_entropy",
    "linear_loss": "linear_cross_entropy",
    "optimizer_in_backward": "optimizer_in_backward",
    "paged_optimizer": "paged_optimizer",
    "fp32_unquantised": "fp32_unquantised",
    "frozen_dtype": "frozen_dtype",
    "fp8_activation": "fp8_activation",
    "fp8_attention": "fp8_attention",
    "padding_efficiency": "padding_efficiency",
    "varied_lengths": "varied_lengths",
    "sample_tokens": "sample_tokens",
    "lora_rank": "lora_rank",
    "lora_targets": "lora_targets",
}
_SAME_NAME = (
    *("tp", "pp", "dp", "cp", "ep", "etp", "vpp", "zero", "hsdp", "sp", "micro_batch", "recompute", "schedule"),
    *("context_kind", "axis_order", "first_stage_layers", "last_stage_layers"),
    *("offload_optimizer", "offload_activations", "offload_parameters"),
)
_PLAN_OPTIONS = {name: name for name in _SAME_NAME} | {"micro_batches": "num_microbatches"}


def _inputs(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``api.plan`` and ``api.estimate`` that both have."""
    job = {field: values[name] for name, field in _JOB_OPTIONS.items() if values[name] is not None}
    _check_words(values)
    for name, field in (("tokens", "train_tokens"), ("batch_tokens", "global_batch_tokens")):
        if values[name] is not None:
            job[field] = amount(f"job.{field}", values[name])
    return option.asked_risk(values) | {
        "model": one_model(values["model"]),
        "cluster": cluster_of(values["gpus"]),
        "job": job,
        "framework": values["framework"],
        "stack_fit": values["stack_fit"],
        "objective": values["objective"],
        "offload": values["offload"],
        "named_modules": values["named_modules"],
        "fabric": values["fabric"],
        "memory_reserve_bytes": values["reserve_gib"] * GIB,
        "price_per_device_hour_usd": values["price_per_gpu_hour"],
        "price_date": values["price_date"],
    }


def _check_words(values: Mapping[str, Any]) -> None:
    """Refuse options that do nothing here, or say two things at once."""
    if values["fp32_unquantised"] is not None and str(values["task"]).strip().lower() != "qlora":
        raise SpecError("job.fp32_unquantised", "is given, but only qlora quantises weights", "--task qlora")
    if values["linear_loss"] and values["fused_loss"] is False:
        problem = "is off, but a loss that takes the output layer into itself is fused"
        raise SpecError("job.fused_cross_entropy", problem, "leave --no-fused-loss or --linear-loss out")


def _pins(values: Mapping[str, Any]) -> dict[str, Any]:
    return {field: values[name] for name, field in _PLAN_OPTIONS.items() if values[name] is not None}


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
