"""Tables of NeuSight: linear layers and batched products in fp32, latency in ms of one eager call.

Their names differ from everybody else's: an (M, N) matrix times an (N, K) one, so the contraction is over N and
the output has K columns. The launch overhead (12 to 57 us) is part of the times.
"""

from collections.abc import Iterable
from pathlib import Path

from profiles.importers.base import Imported, ImportOptions, Rows, csv_rows, number_in, whole_in

HEADER = ("OPName", "Latency", "Device")
_GEMMS = {"linear": "NT", "bmm": ""}
_SIZES = ("B", "M", "N", "K")
_MS = 1e-3


def looks_like_neusight(header: Iterable[str]) -> bool:
    """Whether a CSV header is of one of these tables."""
    return set(HEADER) <= set(header)


def import_neusight(path: Path, options: ImportOptions) -> Imported:
    """Rows of one table; other operations than products are passed over.

    Raises:
        SpecError: Naming the line and column that cannot be read.
    """
    rows = Rows(path, options)
    for line, row in csv_rows(path, HEADER):
        where = f"{str(path)[:200]} line {line}"
        name = row["OPName"].strip().lower()
        if name not in _GEMMS:
            rows.skip(f"operation {name[:40]} is not read")
            continue
        batch, rows_out, contracted, outputs = (whole_in(row, size, where=where) for size in _SIZES)
        rows.add(
            layout=_GEMMS[name], m=rows_out, n=outputs, k=contracted, batch=batch, device=row["Device"],
            kernel=row.get("Kernel Name", "")[:80], time_s=number_in(row, "Latency", where=where) * _MS,
        )  # fmt: skip
    return rows.finish(
        "neusight", kind="kernel", op="gemm", dtype=options.dtype or "fp32", method="eager", statistic="trimmed_mean",
        source="sitar-lab/NeuSight", licence="MIT",
    )  # fmt: skip
