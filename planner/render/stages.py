"""Memory by pipeline stage as a table for a terminal."""

from collections.abc import Sequence

from rich.table import Table

from planner.phrases import MEMORY_NAMES
from planner.results import PlanEstimate, StageEstimate
from profiles.units import GIB


def memory_table(best: PlanEstimate) -> Table:
    """One column per group of stages, one row per part; bytes are those of its fullest."""
    groups = _stage_groups(best.stages)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("memory per GPU, GiB")
    fullest = best.fullest_stage.index
    for first, last, _ in groups:
        title = "" if len(best.stages) == 1 else f"stage {first}" if first == last else f"stages {first}-{last}"
        table.add_column(title, justify="right", style="bold" if first <= fullest <= last else "")
    columns = [stage for _, _, stage in groups]
    if len(best.stages) > 1:
        inside = [best.stages[first : last + 1] for first, last, _ in groups]
        table.add_row("layers", *(_span([stage.layers for stage in each]) for each in inside))
        table.add_row(
            "micro-batches held", *(_span([stage.in_flight_microbatches for stage in each]) for each in inside)
        )
    for name in columns[0].memory_parts_bytes:
        values = [stage.memory_parts_bytes[name] for stage in columns]
        if max(values) > 0:
            table.add_row(MEMORY_NAMES[name], *(f"{value / GIB:.2f}" for value in values))
    table.add_row("total", *(f"{stage.memory_bytes / GIB:.2f}" for stage in columns), style="bold")
    table.add_row("usable", *(f"{best.usable_memory_bytes / GIB:.2f}" for _ in columns))
    if best.host_memory_bytes > 0:
        table.add_row("host memory per node", f"{best.host_memory_bytes / GIB:.1f}")
    return table


def _span(values: Sequence[float]) -> str:
    """The number that all stages of a group have, or the least and the most."""
    least, most = min(values), max(values)
    return f"{least:g}" if least == most else f"{least:g}-{most:g}"


def _stage_groups(stages: Sequence[StageEstimate]) -> list[tuple[int, int, StageEstimate]]:
    """Runs of stages that read alike; the middle of long pipelines is represented by its fullest stage."""
    groups: list[tuple[int, int, StageEstimate]] = []
    for stage in stages:
        if groups and _reads_alike(groups[-1][2], stage):
            groups[-1] = (groups[-1][0], stage.index, groups[-1][2])
        else:
            groups.append((stage.index, stage.index, stage))
    if len(groups) <= 5:
        return groups
    middle = groups[2:-1]
    fullest = max((stage for _, _, stage in middle), key=lambda stage: stage.memory_bytes)
    return [*groups[:2], (middle[0][0], middle[-1][1], fullest), groups[-1]]


def _reads_alike(one: StageEstimate, other: StageEstimate) -> bool:
    return (
        one.layers == other.layers
        and one.has_embedding == other.has_embedding
        and one.has_head == other.has_head
        and abs(one.memory_bytes - other.memory_bytes) < 0.005 * GIB
    )
