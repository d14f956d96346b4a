"""The third round of published fine-tuning runs: every line reads, is cited, and is of a publisher that is new.

Nothing here prices a row: the table judges the packaged stacks once, and keeps what they said then.
"""

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pytest

from planner.validate.tables.mapping import Mapped, map_files
from planner.validate.tables.reader import Row, read_rows
from planner.validate.unseen.priced import publisher_at

FOLDER = Path(str(resources.files("planner.validate") / "data"))
TABLE = FOLDER / "unseen_third_tuning.csv"
EARLIER = ("unseen.csv", "unseen_tuning.csv", "unseen_second.csv", "unseen_second_tuning.csv")
MOST_OF_ONE = 0.3  # share of the lines that one publisher may have


@pytest.fixture(scope="module")
def lines() -> Sequence[Row]:
    return list(read_rows(TABLE))


@pytest.fixture(scope="module")
def mapped() -> Mapped:
    return map_files([TABLE])


def publishers(rows: Sequence[Row]) -> list[str]:
    return [publisher_at(row.text("source_url_or_path")) for row in rows]


def test_every_line_reads_as_something_the_planner_prices(lines, mapped):
    assert not mapped.unscorable
    assert len(mapped.scorable) == len(lines) >= 75
    assert all(row.job.task in ("full", "lora", "qlora") for row in mapped.scorable)
    assert not any(row.time_note or row.memory_note for row in mapped.scorable)


def test_every_line_is_cited_and_says_what_stood_in(lines):
    for row in lines:
        assert re.match(r"https://[^/\s]+/\S+$", row.text("source_url_or_path")), row.line
        assert all(row.text(column) for column in ("locator", "notes", "framework", "gpu")), row.line
    assert len({(row.text("source_url_or_path"), row.text("locator")) for row in lines}) == len(lines)


def test_publishers_are_many_and_not_those_of_earlier_rounds(lines):
    own = publishers(lines)
    assert len(set(own)) >= 15
    assert max(own.count(name) for name in set(own)) <= MOST_OF_ONE * len(own)
    for table in EARLIER:
        assert not set(own) & set(publishers(list(read_rows(FOLDER / table)))), table


def test_it_holds_times_peaks_and_both_verdicts(mapped):
    rows = mapped.scorable
    assert sum(row.step_time_s is not None for row in rows) >= 25
    assert sum(row.memory_bytes is not None for row in rows) >= 45
    died = sum(row.out_of_memory is True for row in rows)
    assert died >= 15
    assert sum(row.out_of_memory is False for row in rows) >= 60
    assert len({row.stack for row in rows}) >= 7
    assert len({row.cluster.device.name for row in rows}) >= 10


@pytest.mark.parametrize(
    ("locator", "stack", "task", "seconds", "gibibytes"),
    [
        ("Qwen2.5-1.5B-bs2-seq1024-flash-none", "hf-trainer", "lora", 1.5107, 7.2283),
        ("65_000", "deepspeed", "full", None, 137.36),
        ("LORA fine-tuning, 1 card", "hf-trainer-2024", "lora", None, 14082 / 1024),
        ("LLaMA-7B, 384, FSDP_no_cpu", "hf-trainer-fsdp", "full", 35 * 3600 / (4.8e6 / 384), None),
        ("full, ChatGLM2, 4 GPUs, offload no", "deepspeed-2024", "full", None, 44),
        ("batch 8, accumulation 2", "deepspeed-2024", "full", 9, None),
        ("Llama-3.3-70B, 48 GB, Unsloth", "unsloth", "qlora", None, 48),
    ],
)
def test_figures_are_read_as_printed(lines, mapped, locator, stack, task, seconds, gibibytes):
    line = next(row.line for row in lines if row.text("locator") == locator)
    row = next(row for row in mapped.scorable if row.line == line)
    assert (row.stack, row.job.task) == (stack, task)
    if seconds is not None:
        assert row.step_time_s == pytest.approx(seconds, rel=1e-3)
    if gibibytes is not None:
        assert row.memory_bytes == pytest.approx(gibibytes * 2**30, rel=1e-3)


def test_plans_are_those_the_sources_describe(lines, mapped):
    at = {row.text("locator"): row.line for row in lines}
    plans = {row.line: row.plan for row in mapped.scorable}
    both = plans[at["description (August 2023)"]]
    assert (both.tensor_parallel, both.data_parallel) == (2, 1)
    kept = plans[at["650_000, liger, checkpoints on the host"]]
    assert kept.offload_activations
    assert kept.offload_optimizer
