"""``planner plan --job``: plans for workflows of several models, and the list of workflows known by name."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli.options import asked_risk, given, option
from planner.cli.output import EXIT_NOTHING_FITS, emit, progress, write_text
from planner.cli.words import prompt_of
from planner.flow_words import models_by_role, pins_from_words, settings_from_words, words_of_settings
from profiles.errors import SpecError
from profiles.units import GIB

if TYPE_CHECKING:
    from rich.console import Console

    from planner.dataflow.flow.results import FlowResult

_FLOW = "Workflow of several models"


_option = partial(option, panel=_FLOW)


def workflow(
    job: Annotated[
        str | None,
        _option(
            "--job",
            "ppo, grpo, ... (planner workflows) or a YAML file; then --model ROLE=MODEL, once a role.",
        ),
    ] = None,
    batch: Annotated[int | None, _option("--batch", "Prompts, pairs or texts per iteration.")] = None,
    prompt: Annotated[int | None, _option("--prompt", "Tokens per prompt.", whole=prompt_of)] = None,
    generate: Annotated[
        str | None, _option("--generate", "Tokens per response: 1024 or lognormal:mean=800,sigma=1,max=8192.")
    ] = None,
    mode: Annotated[str | None, _option("--mode", "hybrid (default), colocated, disaggregated or async.")] = None,
    staleness: Annotated[int | None, _option("--staleness", "Training steps generation may lag, with async.")] = None,
    rollout: Annotated[
        str | None,
        _option(
            "--rollout",
            "whole (default); with async in_flight: weights arrive as it runs; or partial: the unfinished go on later.",
        ),
    ] = None,
    keep_cache: Annotated[
        bool, _option("--keep-cache", "New weights leave keys and values of interrupted responses as they are.")
    ] = False,
    stream: Annotated[bool, _option("--stream", "Scoring and services take responses as they end.")] = False,
    dependency: Annotated[
        str | None, _option("--dependency", "version (default) or barrier: an iteration ends before the next begins.")
    ] = None,
    settings: Annotated[
        list[str] | None, _option("--set", "A setting of the workflow, e.g. group_size=8 or kl=false.")
    ] = None,
    pin: Annotated[
        list[str] | None, _option("--pin", "Fix part of a call, e.g. actor_gen.gpus=0-63 or actor_train.tp=8.")
    ] = None,
    engine: Annotated[str | None, _option("--engine", "Engine of every generating call.")] = None,
    eager: Annotated[
        bool, _option("--eager", "Engines capture no graphs, as verl's enforce_eager, its default in 2025.")
    ] = False,
    keep_on_gpu: Annotated[bool, _option("--keep-on-gpu", "Nothing may lie in host memory between calls.")] = False,
    min_mesh: Annotated[int | None, _option("--min-mesh", "Fewest GPUs a call may use.")] = None,
    iterations: Annotated[
        int, _option("--iterations", "Iterations shown, 5 by default; with 1, plans are judged by that one alone.")
    ] = 5,
    effort: Annotated[float, _option("--effort", "Search budget relative to the usual one.")] = 1.0,
    trace: Annotated[str | None, _option("--trace", "Write the timeline per GPU to this file, for Perfetto.")] = None,
    picture: Annotated[str | None, _option("--picture", "Write the timeline to this SVG file.")] = None,
) -> None:
    """What a question about a workflow may say; a declaration only, see ``options.asks``."""


# Options of single jobs that say something about a workflow too.
_SHARED = (
    *("model", "gpus", "precision", "framework", "objective", "max_oom_risk", "fabric", "reserve_gib"),
    *("price_per_gpu_hour", "linear_loss", "attention_library"),
)
_AS_SETTINGS = ("lora_rank", "lora_targets")  # of the same name
_OUTPUT = ("json_", "output", "quiet", "debug", "offload")
_OBJECTIVES = {"step_time": "time", "time": "time", "cost": "cost", "fewest_gpus": "fewest_gpus"}


def check_no_workflow(flow: Mapping[str, Any]) -> None:
    """Refuse options of workflows where there is none.

    Raises:
        SpecError: Naming the first one given.
    """
    for name in given(flow, workflow):
        raise SpecError(_flag(name), "says something about a workflow, and none is given", "add --job ppo")


def plan_workflow(values: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Answer a question about a workflow and exit with 3 if nothing fits.

    Args:
        values: Options, those of ``workflow`` under that name.
        extra: Options of the command itself, to be refused when given.
    """
    from planner.workflows import plan_dataflow

    question, settings = workflow_question(values, extra)
    with progress("searching plans", quiet=values["quiet"]):
        result = plan_dataflow(*question, **settings)
    write_timelines(result, values["workflow"])
    _show(result, values)


def workflow_question(
    values: Mapping[str, Any], extra: Mapping[str, Any]
) -> tuple[tuple[str, dict[str, str], Any], dict[str, Any]]:
    """What ``planner.plan_dataflow`` takes: job, models and cluster, and the settings.

    Args:
        values: Options, those of ``workflow`` under that name.
        extra: Options of the command itself, to be refused when given.

    Raises:
        SpecError: If an option says nothing about a workflow, or cannot be read.
    """
    flow = values["workflow"]
    _check_unused(values, extra)
    return (flow["job"], models_by_role(values["model"]), values["cluster"]), _settings(values, flow)


def _settings(values: Mapping[str, Any], flow: Mapping[str, Any]) -> dict[str, Any]:
    from planner.dataflow.flow.request import HYBRID
    from planner.dataflow.rollouts import WHOLE

    objective = _OBJECTIVES.get(values["objective"])
    if objective is None:
        problem = f"unknown for workflows: {values['objective'][:40]!r}"
        raise SpecError("--objective", problem, "time, cost or fewest_gpus")
    return asked_risk(values) | {
        "batch": flow["batch"],
        "prompt": flow["prompt"],
        "generate": flow["generate"],
        "settings": _preset_settings(values, flow["settings"] or []),
        "mode": flow["mode"] or HYBRID,
        "staleness": flow["staleness"],
        "rollout": flow["rollout"] or WHOLE,
        "keep_cache": flow["keep_cache"],
        "stream": flow["stream"],
        "dependency": flow["dependency"],
        "objective": objective,
        "offload": not flow["keep_on_gpu"],
        "engine": flow["engine"],
        "eager": flow["eager"],
        "linear_loss": values["linear_loss"],
        "attention_library": values["attention_library"],
        "pins": pins_from_words(flow["pin"] or []),
        "min_mesh": flow["min_mesh"],
        "framework": values["framework"],
        "precision": values["precision"],
        "iterations": flow["iterations"],
        "seed": values["seed"],
        "effort": flow["effort"],
        "fabric": values["fabric"],
        "memory_reserve_bytes": values["reserve_gib"] * GIB,
        "price_per_device_hour_usd": values["price_per_gpu_hour"],
    }


def _preset_settings(values: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Those of ``--set``, and the options of single jobs that stand for one."""
    found = settings_from_words(words)
    for name in _AS_SETTINGS:
        if values[name] is None:
            continue
        if name in found:
            raise SpecError(_flag(name), f"is given, and so is --set {name}", "one of them")
        found[name] = values[name]
    return found


def _check_unused(values: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Refuse options that say nothing about a workflow."""
    known = {*_SHARED, *_AS_SETTINGS, *_OUTPUT, "workflow", "cluster", "seed"}
    plain = {name: value for name, value in values.items() if name not in known}
    for name, value in {**plain, **extra}.items():
        if value not in (None, False, ""):
            raise SpecError(_flag(name), "has no effect on a workflow", _instead(name, value))


def _instead(name: str, value: Any) -> str:
    """What to say about a workflow in place of an option of single plans."""
    from planner.dataflow.flow.pins import COLUMNS
    from planner.dataflow.graphs.preset_settings import Settings
    from planner.question.pins import ALIASES

    if name in ("seq", "global_batch", "batch_tokens"):
        return "--prompt and --generate" if name == "seq" else "--batch, items per iteration"
    if ALIASES.get(name, name) in COLUMNS:
        return f"--pin CALL.{name}=..., for the call it is about"
    if name in {item.name for item in fields(Settings)}:
        return f"--set {name}={str(value)[:40]}"
    return "see planner plan --help, Workflow"


def _flag(name: str) -> str:
    words = {"json_": "json", "settings": "set"}
    return "--" + words.get(name, name).rstrip("_").replace("_", "-")


def write_timelines(result: "FlowResult", flow: Mapping[str, Any]) -> None:
    """The files asked for; nothing when nothing fits."""
    if result.plan is None:
        return
    if flow["trace"] is not None:
        from planner.dataflow.flow.trace import trace_document

        document = trace_document(result.plan, node_of=result.request.cluster.node_of)
        write_text(flow["trace"], json.dumps(document, separators=(",", ":")), option="--trace")
    if flow["picture"] is not None:
        from planner.dataflow.flow.picture import timeline_svg
        from planner.flow_phrases import machines_label

        request = result.request
        title = f"{request.graph.name} on {machines_label(request.cluster, result.plan.num_gpus)}"
        write_text(flow["picture"], timeline_svg(result.plan, title=title), option="--picture")


def _show(result: "FlowResult", values: Mapping[str, Any]) -> None:
    from planner.document_flow import flow_document
    from planner.render.flow import render_flow

    def tables(console: "Console") -> None:
        render_flow(result, console, quiet=values["quiet"])

    emit((flow_document(result), tables), json_=values["json_"], output=values["output"], markup=True)
    if not result.fits:
        raise typer.Exit(EXIT_NOTHING_FITS)


def show_workflows(name: str) -> tuple[dict[str, Any], Any]:
    """The workflows whose name contains a text, as document and table.

    Raises:
        SpecError: If there is none.
    """
    from rich.table import Table

    from planner.document_catalog import workflows_document
    from profiles.errors import did_you_mean

    document = workflows_document()
    entries = [entry for entry in document["workflows"] if name.strip().lower() in entry["name"]]
    if not entries:
        names = [entry["name"] for entry in document["workflows"]]
        raise SpecError("NAME", f"no workflow is called {name[:40]!r}", did_you_mean(name, names))

    def tables(console: "Console") -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for title in ("workflow", "roles", "what it is", "settings"):
            table.add_column(title, overflow="fold")
        for entry in entries:
            settings = words_of_settings(entry["settings"])
            table.add_row(entry["name"], " ".join(entry["roles"]), entry["summary"], " ".join(settings))
        console.print(table)

    return document | {"workflows": entries}, tables
