"""``planner calibrate``: prices that agree with what you measured."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from planner import cli_options as option
from planner.cli_output import emit, progress
from profiles.errors import SpecError


def calibrate(
    device: Annotated[str, typer.Option("--device", help="Device to calibrate, by its catalogue name.")],
    from_: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Files of measurements of it; what is stored already if none."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Catalogue directory to store in; the last of PLANNER_CATALOG if none.")
    ] = None,
    json_: option.Json = False,
    output: option.Output = None,
    quiet: option.Quiet = False,
    debug: option.Debug = False,
) -> None:
    """Correct the kernel prices of a device with about a hundred measurements of it; every later answer uses them."""
    from planner.timings.admission import check_files
    from planner.timings.calibration import calibrate_device, calibration_document, device_to_calibrate
    from planner.timings.render_calibration import render_calibration
    from profiles.catalog import default_catalog
    from profiles.importers.base import ImportOptions
    from profiles.timing_store import default_store

    catalog, store = default_catalog(), default_store()
    spec = device_to_calibrate(catalog, device)
    if out is not None:
        if not out.is_dir():
            raise SpecError("--out", f"no such directory: {str(out)[:200]}", "make it first")
        store = replace(store, directories=(*store.directories, out), writable=True)
    with progress("calibrating", quiet=quiet):
        checked = check_files(from_ or [], ImportOptions(device=spec.name), catalog)
        found = calibrate_device(spec, checked, store)
    emit(
        (calibration_document(found), lambda console: render_calibration(checked, found, console)),
        json_=json_,
        output=output,
    )
