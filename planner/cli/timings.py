"""``planner profiles list|show|check|import|export``: the store of measured timings."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from planner.cli import options as option
from planner.cli.output import EXIT_BAD_INPUT, emit, progress
from profiles.errors import SpecError

_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
_FILES = "Files of measurements; what wrote them is told by their content."
_TOLD = "What files do not say"

Device = Annotated[str, typer.Option("--device", help="Device measured on.", rich_help_panel=_TOLD)]
Dtype = Annotated[str, typer.Option("--dtype", help="Element type, e.g. bf16.", rich_help_panel=_TOLD)]
Nodes = Annotated[int, typer.Option("--nodes", min=0, help="Hosts of a collective.", rich_help_panel=_TOLD)]
Link = Annotated[str, typer.Option("--link", help="Slowest link of a collective, e.g. nvlink4.", rich_help_panel=_TOLD)]
Stack = Annotated[
    str, typer.Option("--stack", help="Library versions: 'cuda=13.0;torch=2.13.0'.", rich_help_panel=_TOLD)
]
Source = Annotated[str, typer.Option("--source", help="Who measured.", rich_help_panel=_TOLD)]
Licence = Annotated[str, typer.Option("--licence", help="SPDX identifier.", rich_help_panel=_TOLD)]
Date = Annotated[str, typer.Option("--measured-on", help="Date, YYYY-MM-DD.", rich_help_panel=_TOLD)]
Method = Annotated[
    str | None, typer.Option("--method", help="How rows were timed, e.g. events.", rich_help_panel=_TOLD)
]
Format = Annotated[
    str, typer.Option("--format", help="own, nccl-tests, kineto, nsys, vidur, aiconfigurator, neusight or table.")
]


def list_(json_: option.Json = False, output: option.Output = None, debug: option.Debug = False) -> None:
    """List the devices whose timings are stored, packaged ones and yours."""
    from planner.timings.render import render_list
    from planner.timings.summary import list_document, summaries
    from profiles.catalog import default_catalog
    from profiles.timing_store import default_store

    found = summaries(default_store().table(), default_catalog())
    emit((list_document(found), lambda console: render_list(found, console)), json_=json_, output=output)


def show(
    device: Annotated[str, typer.Argument(help="A device, or a Parquet file of timings.")],
    op: Annotated[str, typer.Option("--op", help="Only this operation, e.g. gemm.")] = "",
    rows: Annotated[int, typer.Option("--rows", min=0, max=1000, help="List that many rows, longest first.")] = 0,
    json_: option.Json = False,
    output: option.Output = None,
    debug: option.Debug = False,
) -> None:
    """Show what was measured of a device: operations, rates reached, spreads, rows."""
    import numpy as np

    from planner.timings.render import render_show
    from planner.timings.summary import operations, show_document, stored
    from profiles.catalog import default_catalog
    from profiles.errors import did_you_mean
    from profiles.timing_files import read_timings
    from profiles.timing_store import default_store

    catalog = default_catalog()
    file = Path(device)
    table = read_timings(file) if file.suffix == ".parquet" else stored(default_store(), device, catalog)
    if op:
        chosen = table.take(np.asarray(table.op == op, dtype=np.bool_))
        if not len(chosen):
            raise SpecError("--op", f"no rows of {op[:40]!r}", did_you_mean(op, set(table.op.tolist())))
        table = chosen
    if not len(table):
        raise SpecError(str(file)[:200], "holds no rows")
    found = operations(table, catalog)
    listed = np.argsort(-table.time_s, kind="stable")[:rows]
    shown = show_document(table, found, listed)
    emit((shown, lambda console: render_show(table, found, listed, console)), json_=json_, output=output)


def check(
    files: Annotated[list[Path], typer.Argument(help=_FILES)],
    format_: Format = "",
    device: Device = "",
    dtype: Dtype = "",
    nodes: Nodes = 0,
    link: Link = "",
    json_: option.Json = False,
    output: option.Output = None,
    quiet: option.Quiet = False,
    debug: option.Debug = False,
) -> None:
    """Read files of measurements and tell rows that the hardware cannot have done (exit code 2 if any)."""
    from planner.timings.admission import check_document, check_files
    from planner.timings.render import render_check
    from profiles.catalog import default_catalog

    options = said_options(device=device, dtype=dtype, num_nodes=nodes, link=link)
    with progress("reading measurements", quiet=quiet):
        checked = check_files(files, options, default_catalog(), file_format=format_)
    emit((check_document(checked), lambda console: render_check(checked, console)), json_=json_, output=output)
    if not all(bool(item.audit.accepted.all()) for item in checked):
        raise typer.Exit(EXIT_BAD_INPUT)


def import_(
    files: Annotated[list[Path], typer.Argument(help=_FILES)],
    out: Annotated[
        Path | None, typer.Option("--out", help="Write one Parquet file instead of storing the rows.")
    ] = None,
    format_: Format = "",
    device: Device = "",
    dtype: Dtype = "",
    nodes: Nodes = 0,
    link: Link = "",
    stack: Stack = "",
    source: Source = "",
    licence: Licence = "",
    measured_on: Date = "",
    method: Method = None,
    json_: option.Json = False,
    output: option.Output = None,
    quiet: option.Quiet = False,
    debug: option.Debug = False,
) -> None:
    """Store measurements of other tools in your catalogue directory; impossible rows are left out and counted."""
    from planner.timings.admission import admit, admit_to_file, check_files, import_document
    from planner.timings.render import render_import
    from profiles.catalog import default_catalog
    from profiles.timing_store import default_store

    options = said_options(
        device=device, dtype=dtype, num_nodes=nodes, link=link, stack=stack, source=source, licence=licence,
        measured_on=measured_on, method=method,
    )  # fmt: skip
    with progress("reading measurements", quiet=quiet):
        checked = check_files(files, options, default_catalog(), file_format=format_)
        merged = admit(checked, default_store()) if out is None else None
        written = 0 if out is None else admit_to_file(checked, out)
    document = import_document(checked, merged=merged, out=out, written=written)
    emit((document, lambda console: render_import(checked, merged, out, written, console)), json_=json_, output=output)


def export(
    out: Annotated[Path, typer.Option("--out", help="Parquet or, by its ending, CSV file to write.")],
    device: Annotated[str, typer.Option("--device", help="Only timings of this device.")] = "",
    json_: option.Json = False,
    output: option.Output = None,
    debug: option.Debug = False,
) -> None:
    """Write stored timings to a file that others can import."""
    from planner.schema_types import SCHEMA_VERSION
    from planner.timings.summary import stored
    from profiles.catalog import default_catalog
    from profiles.timing_files import write_timings, write_timings_csv
    from profiles.timing_store import default_store

    store = default_store()
    table = stored(store, device, default_catalog()) if device else store.table()
    if not len(table):
        raise SpecError("export", "no timings are stored", "planner profiles import FILE, or planner profiles collect")
    (write_timings_csv if out.suffix == ".csv" else write_timings)(table, out)
    document = {"schema_version": SCHEMA_VERSION, "out": str(out), "rows": len(table)}
    words = f"{len(table):,} rows written to {out}"
    emit((document, lambda console: console.print(words, highlight=False, soft_wrap=True)), json_=json_, output=output)


def said_options(**said: Any) -> Any:
    """What the command line says about files, checked.

    Raises:
        SpecError: If an option says what cannot be.
    """
    from profiles.catalog import default_catalog
    from profiles.importers.base import ImportOptions, dtype_of
    from profiles.timing_ops import DTYPES, METHODS
    from profiles.timings import MAX_TEXT

    for name in ("device", "link", "stack", "source", "licence"):
        if len(said.get(name, "")) > MAX_TEXT:
            raise SpecError(f"--{name}", f"at most {MAX_TEXT} characters; got {len(said[name])}")
    if link := said.get("link"):  # of an unknown one its timings would price nothing
        said["link"] = default_catalog().link(link, field="--link").name
    if (date := said.get("measured_on")) and not _DATE.fullmatch(date):
        raise SpecError("--measured-on", f"must be a date; got {date[:40]!r}", "write it as 2026-11-20")
    method = said.pop("method", None)
    if method is not None:
        if method not in METHODS:
            raise SpecError("--method", f"unknown method {method[:40]!r}", "one of " + ", ".join(METHODS))
        said["method"] = method
    if said.get("dtype"):
        given = said["dtype"]
        said["dtype"] = given if given in DTYPES else dtype_of(given)
        if not said["dtype"]:
            raise SpecError("--dtype", f"unknown element type {given[:40]!r}", "one of " + ", ".join(DTYPES))
    return ImportOptions(**said)
