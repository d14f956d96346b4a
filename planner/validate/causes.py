"""Where the error of step times lies: what whole sources share, what differs within them, and on which kinds of run.

Log errors of a source fall into their mean, which every run of the source shares (its software, its clocks, its way
to time), and what is left within it. Kinds of run are told apart by what a user knows before running: the chip, the
arithmetic, the widest kind of parallelism, the number of nodes, the task. Sources weigh alike throughout, as in
every other figure of the page.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.plan import FloatArray
from planner.validate.metrics import LEAST_ROWS
from planner.validate.render import percent
from planner.validate.tables.rows import ScorableRow
from profiles.markdown import table_head, table_row


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorShare:
    """Errors of one kind of run, as fractions; means over the sources that have it.

    Attributes:
        question: What tells kinds apart, e.g. ``chip``.
        kind: Which one, e.g. ``hopper``.
        sources: Sources with such rows.
        rows: Their rows.
        mape: Mean absolute relative error.
        bias: Mean log of predicted over measured; positive when predictions are too large.
        common: Mean absolute value of a source's own bias, which ``planner calibrate --runs`` takes away.
        within: Mean absolute log error about it.
        covered: Share of rows inside their 90 % interval.
        width: Half of that interval's logarithm, mean of both sides.
    """

    question: str
    kind: str
    sources: int
    rows: int
    mape: float
    bias: float
    common: float
    within: float
    covered: float
    width: float


def parallelism(row: ScorableRow) -> str:
    """The widest kind of parallelism of a run: the one that is hardest to price."""
    plan = row.plan
    if plan.expert_parallel > 1:
        return "expert parallel"
    if plan.pipeline_parallel > 1:
        return "pipeline"
    if plan.tensor_parallel > 1 or plan.context_parallel > 1:
        return "tensor or context parallel"
    if plan.zero_stage == 3:
        return "ZeRO-3 or FSDP alone"
    return "data parallel alone" if plan.data_parallel > 1 else "one device"


def scale(row: ScorableRow) -> str:
    """How many GPUs a run had, in steps of a node, a rack or two, and more than most sources publish."""
    most = ((8, "up to 8"), (64, "9 to 64"), (1023, "65 to 1,023"))
    return next((name for limit, name in most if row.cluster.num_devices <= limit), "1,024 and more")


_ALL = "all"
_QUESTIONS: tuple[tuple[str, Callable[[ScorableRow], str]], ...] = (
    ("all", lambda row: _ALL),
    ("chip", lambda row: row.cluster.device.architecture),
    ("arithmetic", lambda row: row.job.precision),
    ("parallelism", parallelism),
    ("nodes", lambda row: "several nodes" if row.cluster.num_nodes > 1 else "one node"),
    ("GPUs", scale),
    ("task", lambda row: row.job.task),
    ("printed", lambda row: "with something assumed" if row.assumptions else "all that matters is stated"),
)


def error_shares(
    rows: Sequence[ScorableRow], predicted_s: FloatArray, low_s: FloatArray, high_s: FloatArray
) -> tuple[ErrorShare, ...]:
    """Errors of step times by kind of run.

    Args:
        rows: Measurements; those without a time are passed over. Which enter a mean is the caller's choice.
        predicted_s: (n,) predicted seconds, NaN where a row cannot be priced.
        low_s: (n,) low end of their 90 % intervals.
        high_s: (n,) high end.

    Returns:
        For each question its kinds, those of most sources first; of a source only kinds with ``LEAST_ROWS`` rows
        count, and kinds that no source has so many rows of are left out.
    """
    measured_s = np.array([np.nan if row.step_time_s is None else row.step_time_s for row in rows], dtype=np.float64)
    errors = np.log(predicted_s / measured_s)
    inside = np.where((low_s <= measured_s) & (measured_s <= high_s), 1.0, 0.0)
    columns = np.stack([errors, inside, np.log(high_s / low_s) / 2])
    timed = np.flatnonzero(np.isfinite(errors)).tolist()
    found: list[ErrorShare] = []
    for question, kind_of in _QUESTIONS:
        members: dict[str, dict[tuple[str, str], list[int]]] = {}
        for number in timed:
            row = rows[number]
            members.setdefault(kind_of(row), {}).setdefault((row.file, row.source), []).append(number)
        kinds = [
            _share(
                question, kind, [columns[:, numbers] for numbers in of_source.values() if len(numbers) >= LEAST_ROWS]
            )
            for kind, of_source in members.items()
        ]
        found += sorted((kind for kind in kinds if kind is not None), key=lambda kind: (-kind.sources, kind.kind))
    return tuple(found)


def _share(question: str, kind: str, of_source: Sequence[FloatArray]) -> ErrorShare | None:
    """One line, of (3, rows) errors, verdicts and widths of every source."""
    if not of_source:
        return None
    errors = [columns[0] for columns in of_source]
    biases = np.array([own.mean() for own in errors])
    return ErrorShare(
        question=question,
        kind=kind,
        sources=len(of_source),
        rows=sum(map(len, errors)),
        mape=float(np.mean([np.abs(np.expm1(own)).mean() for own in errors])),
        bias=float(biases.mean()),
        common=float(np.abs(biases).mean()),
        within=float(np.mean([np.abs(own - bias).mean() for own, bias in zip(errors, biases, strict=True)])),
        covered=float(np.mean([columns[1].mean() for columns in of_source])),
        width=float(np.mean([columns[2].mean() for columns in of_source])),
    )


def cause_section(shares: Sequence[ErrorShare]) -> str:
    """A section of the accuracy page."""
    head = (
        *("by", "kind of run", "sources", "rows", "MAPE", "bias", "common to a source", "within a source"),
        *("in 90 %", "half of it"),
    )
    lines = [
        _TEXT.format(least=LEAST_ROWS),
        *table_head(head),
        *(
            table_row(
                item.question, item.kind, item.sources, item.rows, percent(item.mape), f"{100 * item.bias:+.1f} %",
                percent(item.common), percent(item.within), percent(item.covered), percent(item.width),
            )
            for item in shares
        ),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


_TEXT = """## Where the error lies

Cross-validated log errors of step times. *Common to a source* is the mean size of the bias that all rows of a source
share: its software, its clocks, its way to time. A few runs of one's own take it away (`planner calibrate --runs`).
*Within a source* is what is left about that bias: what separates one plan, model or sequence length from another.
*Half of it* is the mean half-width of the logarithm of the intervals. Of a source only kinds with at least {least} rows
count; sources weigh alike. Trends and the sweep judged apart are left out.
"""
