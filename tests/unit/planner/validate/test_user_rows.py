"""Rows of a user's own table mean what the planner's own answers mean, and say what they left to it."""

import csv
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

import planner
import profiles
from costmodels.workload import LORA_TARGETS
from planner.calibrate_runs import calibrate_runs
from planner.cli.app import app
from planner.document_plan import frameworks_document
from planner.results import PlanResult
from planner.validate.predict import RowPredictor
from planner.validate.tables.mapping import map_files, map_row
from planner.validate.tables.reader import Row
from planner.validate.tables.rows import CannotScore, ScorableRow
from profiles.errors import SpecError
from profiles.stack_names import TOOLS
from profiles.stacks import default_names, find_stack, load_stacks
from tests.published import CATALOG, FINDER
from tests.published import mapped as published

PLAN = {"tp": 1, "pp": 1, "dp": 8, "zero": 1, "micro_batch": 2, "recompute": "none"}
CELLS = {
    "source": "mine", "model": "llama-3-8b", "gpu": "A100", "gpu_mem_gb": "80", "num_gpus": "8",
    "framework": "transformers trainer", "precision": "bf16", "seq_len": "2048", "global_batch_seqs": "128",
    "tp": "1", "pp": "1", "dp": "8", "zero_stage": "1", "micro_batch": "2", "recompute": "none",
    "flash_attention": "yes", "task": "lora", "measured_step_time_s": "7.75",
}  # fmt: skip
RANK, LAYERS = "rank of adapters not printed: 16", "adapted layers not printed: q, k, v, o, gate, up, down"
STATES = "formats of model states not printed: master copy and moments in fp32"
FRAMEWORKS = [str(item["name"]) for item in frameworks_document()["frameworks"]]


def users(**cells: str) -> ScorableRow:
    """The row with some cells changed, as one of a user's own table."""
    return map_row(Row(file="one.csv", line=2, cells=CELLS | cells), CATALOG, FINDER, users_own=True)


def reason(**cells: str) -> str:
    with pytest.raises(CannotScore) as caught:
        users(**cells)
    return caught.value.reason


@cache
def estimated(framework: str, task: str) -> PlanResult:
    job = {"task": task, "sequence_length": 2048, "global_batch_size": 128}
    plan = PLAN | {"zero": int(sharded(framework))}
    return planner.estimate("llama-3-8b", "8xA100", job, plan=plan, framework=framework)


def sharded(framework: str) -> str:
    """A ZeRO stage that the framework has."""
    return "2" if framework.startswith("fsdp") else "1"


def predicted(row: ScorableRow) -> tuple[float, float]:
    """Step time and peak memory of everything on the device."""
    found = RowPredictor([row]).predict_by_task(load_stacks)
    return float(found.step_time_s[0]), float(found.peak_memory_bytes[0])


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_every_listed_framework_is_a_cell_that_wins_outright(name: str) -> None:
    misleading = {"source": "NeMo cluster, torchtitan", "notes": "fused kernels for norm; Liger kernels; DeepSpeed"}
    row = users(framework=f" {name.upper()} ", task="pretrain", **misleading)
    assert row.stack == name
    assert not [text for text in row.assumptions if text.startswith("framework")]


@pytest.mark.parametrize(("name", "stack"), default_names().items())
def test_the_name_of_a_framework_is_its_usual_stack(name: str, stack: str) -> None:
    assert users(framework=name, task="pretrain").stack == stack


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_a_tool_is_the_stack_that_plans_for_it_have(tool: str) -> None:
    """A fit of such runs is one that ``planner plan --framework TOOL --stack-fit`` rests on."""
    row = users(framework=tool.upper(), task="full", source="NeMo cluster")
    assert row.stack == find_stack(tool).name
    assert any(text.startswith(f"{tool.upper()} is taken as {row.stack}") for text in row.assumptions)


def test_published_tables_are_read_as_before() -> None:
    assert published(framework="DeepSpeed", zero_stage="1").stack == "deepspeed-2024"
    assert published(framework="unsloth", source="NeMo cluster").stack == "megatron-core"


def test_other_words_are_read_as_tables_word_them_and_say_so() -> None:
    row = users(source="NeMo cluster")
    assert (row.stack, row.source) == ("hf-trainer", "NeMo cluster")
    assert "framework 'transformers trainer': hf-trainer" in row.assumptions
    assert users(framework="", source="NeMo cluster").stack == "megatron-core"
    assert "framework not printed: megatron-core" in users(framework="", source="NeMo cluster").assumptions


def test_an_unknown_framework_is_told_which_there_are() -> None:
    told = reason(framework="hf-trainr")
    assert told.startswith("framework not stated or unknown: 'hf-trainr'; did you mean 'hf-trainer'")
    assert told.endswith("planner frameworks lists the names")
    assert reason(framework="").endswith("unknown: ''; planner frameworks lists the names")
    assert "no stack model for 'maxtext'" in reason(framework="maxtext")


@pytest.mark.parametrize("framework", ["hf-trainer", "deepspeed", "unsloth", "fsdp-eager", "litgpt"])
@pytest.mark.parametrize("task", ["lora", "qlora", "full"])
def test_a_row_means_what_the_same_settings_mean_to_estimate(framework: str, task: str) -> None:
    """Assumptions of 16-bit states, or of adapters on queries and values, were another run altogether."""
    best = estimated(framework, task).plans[0]
    row = users(framework=framework, task=task, zero_stage=sharded(framework))
    assert predicted(row) == pytest.approx((best.step_time_s, best.peak_memory_bytes), rel=1e-9)
    assert set(row.assumptions) == ({STATES} if task == "full" else {RANK, LAYERS})


@pytest.mark.parametrize("framework", ["megatron-2021", "paddle", "alpa", "nanotron", "fsdp-composer", "paxml"])
def test_habits_of_an_era_are_no_settings_of_a_user(framework: str) -> None:
    """Dropout, exposed reductions and fused losses are what published tables leave out."""
    best = estimated(framework, "pretrain").plans[0]
    row = users(framework=framework, task="pretrain", zero_stage=sharded(framework), flash_attention="")
    assert predicted(row) == pytest.approx((best.step_time_s, best.peak_memory_bytes), rel=1e-9)
    assert not row.job.dropout


@pytest.mark.parametrize("framework", ["hf-trainer", "deepspeed", "unsloth"])
def test_a_trial_that_took_as_long_as_planned_teaches_nothing(framework: str) -> None:
    planned_s = estimated(framework, "lora").plans[0].step_time_s
    job = {"task": "lora", "sequence_length": 2048, "global_batch_size": 128}
    trial = CELLS | {"framework": framework, "measured_step_time_s": f"{planned_s:.4f}"}
    result = planner.observe("llama-3-8b", "8xA100", job, trials=trial, framework=framework)
    (seen,) = result.observed
    assert seen.same_job
    assert seen.step_time_s == pytest.approx(planned_s, rel=1e-6)
    assert seen.surprise == pytest.approx(0, abs=1e-3)
    assert all(item.factor == pytest.approx(1, abs=0.01) for item in result.learned)


def test_columns_say_what_adapters_there_are() -> None:
    row = users(lora_rank="64", lora_targets="q_proj, v")
    assert row.job.lora is not None
    assert (row.job.lora.rank, row.job.lora.targets) == (64, ("q", "v"))
    assert not {RANK, LAYERS} & set(row.assumptions)
    assert users(lora_rank="8").job.lora == users(notes="lora rank 8; peak of rank 0").job.lora
    noted = users(notes="r=8, target modules: all").job.lora
    assert noted is not None
    assert (noted.rank, noted.targets, noted.dropout) == (8, LORA_TARGETS, False)
    assert users(notes="lora_dropout=0.05").job.lora != users().job.lora
    assert users(notes="peak of rank 0").job.lora == users().job.lora


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ({"lora_rank": "0"}, "one.csv:2:lora_rank: must be a whole number from 1 to 16384; got 0"),
        ({"lora_rank": "many"}, "one.csv:2:lora_rank: not a number: 'many'"),
        ({"measured_step_time_s": "-3"}, "one.csv:2:measured_step_time_s: below zero: '-3'"),
        ({"measured_step_time_s": "nan"}, "one.csv:2:measured_step_time_s: not a number: 'nan'"),
        ({"lora_targets": "q,x"}, "one.csv:2:lora_targets: unknown value 'x'"),
        ({"lora_targets": "q", "task": "full"}, "one.csv:2:lora_targets: is given, but the task is full"),
        ({"lora_rank": "8", "task": "pretrain"}, "one.csv:2:lora_rank: is given, but the task is pretrain"),
    ],
)
def test_cells_that_cannot_be_are_refused(cells: dict[str, str], text: str) -> None:
    with pytest.raises(SpecError) as caught:
        users(**cells)
    assert str(caught.value).startswith(text)


def test_states_in_16_bits_are_what_a_row_says() -> None:
    row = users(task="full", notes="16-bit weights and moments, no master copy")
    assert (row.job.master_dtype, row.job.state_dtype, row.job.gradient_dtype) == ("none", "bf16", "bf16")
    assert STATES not in row.assumptions
    assert STATES not in users(task="full", optimizer="AdamW, fp32 master weights").assumptions


def test_what_is_left_out_is_listed() -> None:
    silent = dict.fromkeys(("zero_stage", "task", "framework", "recompute", "precision", "sp"), "")
    row = users(**silent, source="Megatron-Core", tp="2", dp="4", measured_peak_mem_gb="30")
    assert {text.split(":")[0] for text in row.assumptions} == {
        *("framework not printed", "precision not printed", "ZeRO stage not printed", "recomputation not printed"),
        *("task not printed", "sequence parallelism not printed", "what the peak counts is not printed"),
    }


def test_sources_of_publishers_are_labels_of_a_user() -> None:
    """MLPerf's recipes, LitGPT's gigabytes, our own cards: none of them is a user's."""
    row = users(measured_peak_mem_gb="30")
    for source in ("MLPerf", "NeMo docs", "own measurement", "Megatron-Bridge", "LitGPT resource-tables"):
        again = users(measured_peak_mem_gb="30", source=source)
        assert (again.job, again.plan, again.memory_bytes) == (row.job, row.plan, row.memory_bytes)
        assert again.cluster_key == row.cluster_key


def table(path: Path, *rows: Mapping[str, str]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(CELLS))
        writer.writeheader()
        writer.writerows([CELLS | row for row in rows])
    return path


def test_calibrate_fits_the_stack_that_is_named(tmp_path: Path) -> None:
    path = table(tmp_path / "runs.csv", {"framework": "unsloth", "source": "NeMo cluster"})
    (found,) = calibrate_runs([path]).stacks
    assert found.after.name == "unsloth"
    with pytest.raises(SpecError, match="did you mean 'hf-trainer'"):
        calibrate_runs([table(path, {"framework": "hf-trainr"})])


def test_validate_reads_files_as_a_users_own_unless_they_are_published(tmp_path: Path) -> None:
    path = str(table(tmp_path / "runs.csv", {"framework": "deepspeed"}))
    stacks = []
    for options in ((), ("--published",)):
        done = CliRunner().invoke(app, ["validate", path, "--json", "--rows", *options])
        (row,) = json.loads(done.stdout)["rows"]
        stacks.append(row["stack"])
        assert (RANK in row["assumptions"]) == (options == ())
    assert stacks == ["deepspeed", "deepspeed-2024"]


def test_our_own_collector_writes_as_published_tables_do() -> None:
    """Its notes say what a row is, and its runs are too short for power to hold products back."""
    path = Path(profiles.__file__).parent / "data" / "runs" / "H100-SXM-80GB.fine-tuning.runs.csv"
    mine, published = (map_files([path], users_own=own).scorable for own in (True, False))
    assert mine == published
    assert len(mine) > 50


def test_the_peak_of_an_answer_is_in_bytes(tmp_path: Path) -> None:
    """Semicolons part cells too; litgpt prints its peak in GB, and an answer in bytes all the same."""
    file = tmp_path / "runs.csv"
    cells = {**CELLS, "framework": "litgpt", "peak_memory_bytes": "40e9"}
    file.write_text("\n".join(";".join(line) for line in (cells, cells.values())) + "\n", encoding="utf-8")
    (row,) = map_files([file], users_own=True).scorable
    assert row.memory_bytes == 40e9
