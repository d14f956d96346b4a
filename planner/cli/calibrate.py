"""``planner calibrate``: prices that agree with what you measured."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from planner.cli import options as option
from planner.cli.output import emit, progress
from profiles.errors import SpecError


def calibrate(
    device: Annotated[
        str | None, typer.Option("--device", help="Device whose kernels to calibrate, by its catalogue name.")
    ] = None,
    from_: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Files of measurements of it; what is stored already if none."),
    ] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option("--runs", help="Instead: tables of your own training runs, as planner validate reads them."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="How the kernels of files that do not say it were timed, e.g. events."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Catalogue directory to store in, the last of PLANNER_CATALOG if none; or, with --runs, a .json file "
            "for --stack-fit.",
        ),
    ] = None,
    json_: option.Json = False,
    output: option.Output = None,
    quiet: option.Quiet = False,
    debug: option.Debug = False,
) -> None:
    """Correct a device's kernel prices with some hundred measurements of it, or a framework stack with your runs."""
    if (device is None) == (not runs):
        raise SpecError("calibrate", "needs either --device or --runs", "--device H100-SXM-80GB, or --runs runs.csv")
    if device is None:
        if from_:
            raise SpecError("--from", "holds measured kernels of a --device; tables of runs go to --runs")
        if method is not None:
            raise SpecError("--method", "is how kernels of --from were timed; steps of --runs are timed as a whole")
        _calibrate_runs(runs or [], out, json_=json_, output=output, quiet=quiet)
    else:
        if method is not None and not from_:
            raise SpecError("--method", "is how kernels of --from were timed; no file is given", "add --from FILE")
        _calibrate_device(device, from_ or [], out, method=method, json_=json_, output=output, quiet=quiet)


def _calibrate_runs(runs: list[Path], out: Path | None, *, json_: bool, output: str | None, quiet: bool) -> None:
    from planner.calibrate_runs import calibrate_runs, fit_file, write_fit
    from planner.render.runs import show_run_calibration

    with progress("fitting your runs", quiet=quiet):
        found = calibrate_runs(runs)
    path = fit_file(out)
    if path is not None:
        write_fit(found, path)
    emit(show_run_calibration(found, path), json_=json_, output=output)


def _calibrate_device(
    device: str,
    files: list[Path],
    out: Path | None,
    *,
    method: str | None,
    json_: bool,
    output: str | None,
    quiet: bool,
) -> None:
    from planner.cli.timings import said_options
    from planner.timings.admission import check_files
    from planner.timings.calibration import calibrate_device, calibration_document, device_to_calibrate
    from planner.timings.render_calibration import render_calibration
    from profiles.catalog import default_catalog
    from profiles.timing_store import default_store

    catalog, store = default_catalog(), default_store()
    spec = device_to_calibrate(catalog, device)
    options = said_options(device=spec.name, only_device=True, method=method)
    if out is not None:
        if not out.is_dir():
            raise SpecError("--out", f"no such directory: {str(out)[:200]}", "make it first")
        store = replace(store, directories=(*store.directories, out), writable=True)
    with progress("calibrating", quiet=quiet):
        checked = check_files(files, options, catalog)
        found = calibrate_device(spec, checked, store)
    emit(
        (calibration_document(found), lambda console: render_calibration(checked, found, console)),
        json_=json_,
        output=output,
    )
