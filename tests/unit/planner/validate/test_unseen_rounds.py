"""Rounds from the fifth on can be read, all of them, and are of publishers of no earlier table, or say of which."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest

from planner.rules.base import Setting
from planner.validate.tables.mapping import map_files
from planner.validate.tables.reader import Row, read_rows
from planner.validate.tables.rows import NEVER_FITTED, UNSEEN_ROUNDS, ScorableRow
from planner.validate.unseen.priced import publisher_at, unseen_tables
from profiles.stacks import load_stacks
from tests.legal import violations
from tests.places import DATA

FITTED = DATA / "endtoend"

STACKS = load_stacks()


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What is known of a round: how many lines and publishers, how they are cited, whose optimizer is their own.

    Attributes:
        known: Publishers that earlier tables hold with other frameworks.
        unruly: Start of the source to the field that no plan of ours would set so.
    """

    number: int
    lines: int
    publishers: int
    cited: str
    own_optimizer: Callable[[ScorableRow], bool]
    known: frozenset[str] = frozenset()
    unruly: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def read(self) -> list[Row]:
        return [row for table in unseen_tables(self.number) for row in read_rows(table)]


ROUNDS = (
    Round(
        number=5, lines=82, publishers=8,
        cited=r"^https://github\.com/[^/\s]+/[^/\s]+/(?:blob/[0-9a-f]{40}/\S+|issues/[0-9]+)$",
        own_optimizer=lambda row: row.source.startswith("pretraining-bench"),  # a loop of its own
    ),
    Round(
        number=6, lines=91, publishers=12,
        cited=r"^https://github\.com/[^/\s]+/[^/\s]+/(?:blob|tree)/(?:[0-9a-f]{40}|main)(?:/\S+)?$",
        own_optimizer=lambda row: row.stack == "megatron-core",  # llm.c
    ),
    Round(
        number=7, lines=96, publishers=13,
        cited=r"^https://(?:github\.com|huggingface\.co)/[^/\s]+/[^/\s]+/(?:blob/[0-9a-f]{40}/\S+|(?:issues|pull)/[0-9]+)$",
        own_optimizer=lambda _row: False,
        known=frozenset({"Lightning-AI", "alibaba", "hpcaitech", "huggingface", "jzhang38"}),
        unruly={
            "EasyContext": ("plan.context_kind",),  # a ring of its own, under DeepSpeed
            "Gradient's": ("plan.context_kind",),
            "Pai-Megatron": ("plan.pipeline_parallel", "plan.virtual_stages"),  # embedding and loss count as layers
        },
    ),
    Round(
        number=8, lines=63, publishers=7,
        cited=r"^https://github\.com/[^/\s]+/[^/\s]+/(?:blob/[0-9a-f]{40}/\S+|(?:issues|pull)/[0-9]+)$",
        own_optimizer=lambda _row: False,
        known=frozenset({"AMD-AGI", "NVIDIA-NeMo", "pytorch"}),
    ),
    Round(
        number=9, lines=67, publishers=14,
        cited=r"^https://(?:github\.com/[^/\s]+/[^/\s]+/(?:blob/[0-9a-f]{40}/\S+|pull/[0-9]+)"
        r"|(?:www\.gilesthomas\.com|aurora-wandb\.infini-ai\.com|huggingface\.co/datasets)/\S+)$",
        own_optimizer=lambda row: row.source.startswith("GPT-2 from scratch"),  # a loop of its own
    ),
    Round(
        number=10, lines=101, publishers=16,
        cited=r"^https://(?:github\.com/[^/\s]+/[^/\s]+/(?:blob/[0-9a-f]{40}/\S+|(?:issues|pull)/[0-9]+)"
        r"|huggingface\.co/\S+|(?:www\.)?philschmid\.de/\S+)$",
        own_optimizer=lambda row: row.source.startswith("nanochat"),  # Muon
        known=frozenset({
            *("deepaksatna", "hiyouga", "awslabs", "pytorch", "NVIDIA", "InternLM", "NVIDIA-NeMo", "alibaba", "ROCm"),
            *("karpathy", "huggingface", "axolotl-ai-cloud", "LambdaLabsML", "modelscope"),
        }),
    ),
)  # fmt: skip
each_round = pytest.mark.parametrize("told", ROUNDS, ids=lambda told: str(told.number))


@each_round
def test_no_fit_reads_its_tables_and_every_line_can_be_read(told: Round) -> None:
    names = {name for name, number in UNSEEN_ROUNDS.items() if number == told.number}
    assert {path.name for path in unseen_tables(told.number)} == names <= NEVER_FITTED
    assert [f"{row.line}: {row.reason}" for row in map_files(unseen_tables(told.number)).unscorable] == []


@each_round
def test_every_line_was_priced_blind_and_is_cited(told: Round) -> None:
    lines = told.read()
    assert len(lines) == told.lines
    assert all(re.search("blind |; a repeat of another row$", row.text("notes")) for row in lines)
    assert all(re.match(told.cited, row.text("source_url_or_path")) and row.text("locator") for row in lines)
    assert len({(row.text("source"), row.text("locator")) for row in lines}) == len(lines)


@each_round
def test_its_publishers_are_in_no_earlier_table(told: Round) -> None:
    own = {publisher_at(row.text("source_url_or_path")) for row in told.read()}
    assert len(own) == told.publishers
    earlier = [path for path in unseen_tables() if UNSEEN_ROUNDS[path.name] < told.number]
    fitted = sorted(FITTED.glob("*.csv")) if FITTED.is_dir() else []
    for table in (*earlier, *fitted):
        known = {publisher_at(row.text("source_url_or_path")) for row in read_rows(table)}
        assert own & known <= told.known, table.name


@each_round
def test_frameworks_accept_its_plans(told: Round) -> None:
    for row in map_files(unseen_tables(told.number)).scorable:
        stack = STACKS[row.stack]
        setting = Setting(
            model=row.model, job=row.job, num_devices=row.cluster.num_devices, framework=stack.framework,
            free_layout=stack.free_layout, overlaps_experts=stack.expert_parallel_overlap > 0,
        )  # fmt: skip
        if told.own_optimizer(row):
            setting = replace(setting, own_optimizer=True)
        let = next((fields for start, fields in told.unruly.items() if row.source.startswith(start)), ())
        found = [each for each in violations(row.plan, setting) if each.field not in let]
        assert found == [], f"{row.source}, line {row.line}"
