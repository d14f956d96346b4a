"""The memory fit: parameters found again, shared between stacks, and judged by stacks that never saw a source."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from planner.validate.memory_fit import (
    NAMES,
    PRIORS,
    MemoryFit,
    fit_memory,
    memory_card,
    with_memory,
)
from planner.validate.predict import RowPredictor, counted_parts
from planner.validate.report import published_table
from planner.validate.tables.mapping import scorable_rows
from planner.validate.tables.rows import MemoryKind, ScorableRow
from profiles.stack import StackSpec
from profiles.stacks import load_priors, load_stacks

ROW = next(
    row
    for row in scorable_rows([published_table()])
    if row.stack == "megatron-core"
    and row.plan.pipeline_parallel > 1
    and not any("recomputation" in text for text in row.assumptions)
)
TRUTH = {
    "temporary_fraction": 0.05,
    "fragmentation_fraction": 0.15,
    "cache_fraction": 0.05,
    "reserve_bytes": 4e8,
    "context_bytes": 1.5e9,
    "communicator_bytes": 5e8,
}
STACKS = {name: replace(load_priors()["megatron-core"], name=name) for name in ("known", "other", "silent")}


def runs(stack: str, source: str, truth: dict[str, float], kinds: Sequence[MemoryKind]) -> list[ScorableRow]:
    """Runs of many micro-batch sizes whose peaks are those of a stack with the given overheads, ten times too small."""
    bare = [
        replace(
            ROW, file=f"{source}.csv", source=source, stack=stack, line=line, memory_kind=kind, out_of_memory=False,
            first_stage_memory=False, job=replace(ROW.job, sequence_length=512 * (line + 1)), memory_bytes=1.0,
        )
        for line, kind in enumerate([*kinds] * 4)
    ]  # fmt: skip
    predicted = RowPredictor(bare).predict({stack: replace(STACKS[stack], **truth)}).memory_bytes  # type: ignore[arg-type]
    return [replace(row, memory_bytes=float(peak)) for row, peak in zip(bare, predicted, strict=True)]


@pytest.fixture(scope="module")
def fit() -> MemoryFit:
    everything = tuple(kind for kind in MemoryKind if kind != MemoryKind.UNKNOWN)
    rows = [*runs("known", "A", TRUTH, everything), *runs("known", "B", TRUTH, everything)]
    rows += runs("other", "C", TRUTH | {"context_bytes": 3e9}, (MemoryKind.SMI,))
    return fit_memory(rows, STACKS)


def test_what_the_runs_show_is_found_again(fit: MemoryFit) -> None:
    assert fit.stacks["known"]["context_bytes"] == pytest.approx(1.5e9, rel=0.35)
    assert np.nanmax(np.abs(fit.errors[:24])) < 0.05
    assert fit.rows["known"] == (24, 24)
    assert fit.sources == {"known": ("A.csv", "B.csv"), "other": ("C.csv",)}


def test_stacks_teach_one_another(fit: MemoryFit) -> None:
    told, typical = fit.common["context_bytes"], PRIORS["context_bytes"].typical
    assert typical < told < 3e9
    assert {name: fit.stacks["silent"][name] for name in NAMES} == pytest.approx(dict(fit.common))
    assert fit.stacks["other"]["context_bytes"] > fit.stacks["known"]["context_bytes"]


def test_a_source_is_judged_without_itself(fit: MemoryFit) -> None:
    assert set(fit.held_out) == {"A", "B", "C"}
    alone = fit.held_out["C"]["other"]
    # Nothing is left of its larger context but what the other stack tells.
    assert alone["context_bytes"] < fit.stacks["other"]["context_bytes"]
    assert (fit.errors[24:] > 0).all()


def test_verdicts_move_a_stack_that_prints_no_peaks() -> None:
    row = runs("other", "C", TRUTH, (MemoryKind.SMI,))[0]
    typical = replace(STACKS["other"], **{name: prior.typical for name, prior in PRIORS.items()})  # type: ignore[arg-type]
    peak = float(RowPredictor([row]).predict({"other": typical}).peak_memory_bytes[0])
    node = row.cluster.node
    tight = replace(row.cluster, node=replace(node, device=replace(node.device, usable_memory_bytes=1.02 * peak)))
    died = [replace(row, cluster=tight, line=line, memory_bytes=None, out_of_memory=True) for line in range(12)]
    after = fit_memory(died, STACKS).stacks["other"]
    assert after["communicator_bytes"] > PRIORS["communicator_bytes"].typical
    ran = fit_memory([replace(row, out_of_memory=False) for row in died], STACKS).stacks["other"]
    assert ran["communicator_bytes"] < PRIORS["communicator_bytes"].typical


def test_a_reserved_figure_beside_another_is_told_too() -> None:
    rows = [
        replace(row, reserved_bytes=1.3 * (row.memory_bytes or 0.0))
        for row in runs("other", "C", TRUTH, (MemoryKind.ALLOCATED,))
    ]
    more = fit_memory(rows, STACKS)
    less = fit_memory([replace(row, reserved_bytes=None) for row in rows], STACKS)
    assert more.stacks["other"]["fragmentation_fraction"] > less.stacks["other"]["fragmentation_fraction"]
    assert more.rows["other"] == (8, 8)
    assert len(more.errors) == len(rows)


def test_counted_parts_nest() -> None:
    sets = [set(counted_parts(kind)) for kind in (MemoryKind.ALLOCATED, MemoryKind.RESERVED, MemoryKind.SMI)]
    assert sets[0] < sets[1] < sets[2]
    assert counted_parts(MemoryKind.UNKNOWN) == counted_parts(MemoryKind.RESERVED)


def test_card_holds_every_stack_and_is_plain_data(fit: MemoryFit) -> None:
    document = memory_card(fit)
    assert json.loads(json.dumps(document)) == document
    assert set(document["stacks"]) == set(STACKS)
    assert set(document["stacks"]["known"]["values"]) == {*NAMES, "memory_residual_log_std"}
    assert document["stacks"]["silent"]["peaks"] == 0


def test_packaged_parameters_are_within_reach_of_their_priors() -> None:
    for stack in load_stacks().values():
        for name, prior in PRIORS.items():
            width = 3 * float(np.hypot(prior.common_std, prior.stack_std))
            assert abs(np.log(getattr(stack, name) / prior.typical)) < width, (stack.name, name)


def test_with_memory_leaves_unknown_stacks_alone() -> None:
    found = with_memory(STACKS, {"known": {"context_bytes": 7.0}})
    assert found["known"].context_bytes == 7
    assert found["other"] == STACKS["other"]
    assert isinstance(found["known"], StackSpec)


def test_lengths_that_vary_take_the_larger_cache() -> None:
    for varied, taken in ((0.1, 0.3), (0.5, 0.5)):
        card = {"cache_fraction": 0.3, "varied_cache_fraction": varied}
        assert with_memory(STACKS, {"known": card})["known"].varied_cache_fraction == taken


def test_lengths_that_vary_tell_of_a_cache_of_their_own() -> None:
    fixed = runs("other", "C", TRUTH, (MemoryKind.RESERVED, MemoryKind.SMI))
    varied = [replace(row, job=replace(row.job, varied_lengths=True)) for row in fixed]
    much = {"other": replace(STACKS["other"], **TRUTH, varied_cache_fraction=0.6)}  # type: ignore[arg-type]
    peaks = RowPredictor(varied).predict(much).memory_bytes
    varied = [
        replace(row, memory_bytes=float(peak), source="D", file="D.csv")
        for row, peak in zip(varied, peaks, strict=True)
    ]
    found = fit_memory([*fixed, *varied], STACKS).stacks["other"]
    assert found["varied_cache_fraction"] > 3 * found["cache_fraction"]
