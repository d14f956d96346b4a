"""The file a collection grows, and the runs drawn from it: resuming, failures, and what planner validate reads."""

import json
from pathlib import Path

import numpy as np
import pytest

from costmodels.plan import Recompute
from planner.validate.tables.mapping import map_rows
from planner.validate.tables.reader import read_rows
from planner.validate.tables.rows import MemoryKind
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.measure import cases
from profiles.measure.models import GPT_LARGE, LLAMA_1B, train_step
from profiles.measure.runs import OUT_OF_MEMORY, runs_csv, runs_path, write_runs
from profiles.measure.store import Store, skipped_path
from profiles.measure.timing import Timing
from profiles.timing_files import read_timings
from profiles.timings import timing_table
from profiles.units import GIB

GEMM = cases.gemm("NT", "bf16", 1024, 1024, 1024)
STEP = train_step(LLAMA_1B, sequence=2048, micro_batch=2, micro_batches=4, recompute=True)
GRAPH = Timing(median_s=1e-4, spread_s=1e-6, samples=20, method="graph")
WALL = Timing(median_s=0.8, spread_s=0.01, samples=7, method="wall")


def store(out: Path, *, device: str = "H100-SXM-80GB", stack: str = "torch=2.13.0") -> Store:
    return Store(out, device=device, stack=stack)


def test_a_collection_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "my.parquet"
    first = store(out)
    assert not first.is_done(GEMM, launch_included=False)
    first.add(GEMM, GRAPH, note="clock=1980MHz")
    first.flush()
    again = store(out)
    assert again.is_done(GEMM, launch_included=False)
    assert not again.is_done(GEMM, launch_included=True)
    assert not again.is_done(cases.gemm("NN", "bf16", 1024, 1024, 1024), launch_included=False)
    again.add(STEP, WALL, note="", peak_memory_bytes=20 * GIB)
    again.flush()
    table = read_timings(out)
    assert table.op.tolist() == ["gemm", "train_step"]
    assert table.row(0)["note"] == "clock=1980MHz"
    assert (table.row(0)["time_s"], table.row(0)["spread_s"], table.row(0)["samples"]) == (1e-4, 1e-6, 20)
    assert store(out).is_done(STEP, launch_included=False)


@pytest.mark.parametrize(
    "case",
    [
        cases.attention("attention_backward", "bf16", batch=1, queries=64, keys=64, heads=4, kv_heads=2, width=64,
                        causal=True),
        cases.host_copy("host_to_device", 4096), cases.adamw("torch_fused", 65536),
        cases.pointwise("gelu", "bf16", 8, 64),
        cases.collective("all_reduce", "bf16", 1 << 20, 8, 1, kernel="nccl"), STEP,
    ],
    ids=lambda case: case.op,
)  # fmt: skip
def test_every_kind_of_case_is_recognised_again(tmp_path: Path, case: cases.Case) -> None:
    out = tmp_path / "my.parquet"
    first = store(out)
    first.add(case, GRAPH, note="")
    first.flush()
    assert store(out).is_done(case, launch_included=False)


def test_another_device_or_library_is_measured_anew(tmp_path: Path) -> None:
    out = tmp_path / "my.parquet"
    first = store(out)
    first.add(GEMM, GRAPH, note="")
    first.flush()
    assert not store(out, device="A100-SXM-80GB").is_done(GEMM, launch_included=False)
    assert not store(out, stack="torch=2.14.0").is_done(GEMM, launch_included=False)


def test_launch_included_rows_stand_beside_the_others(tmp_path: Path) -> None:
    out = tmp_path / "my.parquet"
    first = store(out)
    first.add(GEMM, Timing(median_s=2e-4, spread_s=0.0, samples=9, method="eager"), note="")
    first.flush()
    assert store(out).is_done(GEMM, launch_included=True)
    assert not store(out).is_done(GEMM, launch_included=False)


def test_failures_are_written_down_and_not_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "my.parquet"
    first = store(out)
    first.skip(GEMM, OUT_OF_MEMORY, launch_included=False)
    first.flush()
    assert not out.exists()
    listed = json.loads(skipped_path(out).read_text())
    assert [(entry["case"], entry["reason"]) for entry in listed] == [(GEMM.label, "out of memory")]
    assert store(out).is_done(GEMM, launch_included=False)


def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "my.parquet"
    out.write_text("not parquet")
    with pytest.raises(SpecError, match="cannot be read"):
        store(out)
    assert out.read_text() == "not parquet"
    skipped_path(tmp_path / "other.parquet").write_text('{"a": 1}')
    with pytest.raises(SpecError) as caught:
        store(tmp_path / "other.parquet")
    assert str(caught.value).endswith("is not a list of skipped cases. Hint: delete it to try its cases again")


def test_runs_say_what_the_planner_prices(tmp_path: Path) -> None:
    out = tmp_path / "my.parquet"
    kept = store(out)
    kept.add(GEMM, GRAPH, note="")
    kept.add(STEP, WALL, note="reserved_bytes=25000000000", peak_memory_bytes=20 * GIB)
    gpt = train_step(GPT_LARGE, sequence=1024, micro_batch=4, micro_batches=1, recompute=False)
    kept.add(gpt, WALL, note="", peak_memory_bytes=30 * GIB)
    kept.skip(train_step(GPT_LARGE, sequence=8192, micro_batch=1, micro_batches=1, recompute=False), OUT_OF_MEMORY,
              launch_included=False)  # fmt: skip
    path = runs_path(out)
    assert write_runs(kept.table(), path, kept.skipped) == 3
    mapped = map_rows(read_rows(path), default_catalog())
    assert [row.reason for row in mapped.unscorable] == []
    llama, small, died = mapped.scorable
    assert (llama.model.num_layers, llama.model.hidden_size, llama.model.num_key_value_heads) == (16, 2048, 8)
    assert (llama.model.gated_mlp, llama.model.tie_word_embeddings) == (True, False)
    assert (small.model.gated_mlp, small.model.tie_word_embeddings) == (False, True)
    assert (llama.job.sequence_length, llama.job.global_batch_size, llama.job.precision) == (2048, 8, "bf16")
    assert (llama.plan.micro_batch_size, llama.plan.num_microbatches) == (2, 4)
    assert (llama.plan.recompute, small.plan.recompute) == (Recompute.FULL, Recompute.NONE)
    assert (llama.step_time_s, llama.memory_bytes) == (0.8, 20 * GIB)
    assert llama.memory_kind is MemoryKind.ALLOCATED
    assert (llama.out_of_memory, died.out_of_memory) == (False, True)
    assert llama.cluster.device.name == "H100-SXM-80GB"
    assert llama.assumptions == ()


def test_a_table_without_training_steps_makes_no_runs(tmp_path: Path) -> None:
    assert runs_csv(timing_table(0)) == ""
    assert write_runs(timing_table(0), tmp_path / "runs.csv") == 0
    assert not (tmp_path / "runs.csv").exists()


def test_an_unknown_peak_is_left_blank() -> None:
    kept = Store(Path("nowhere.parquet"), device="H100-SXM-80GB", stack="")
    kept.add(STEP, WALL, note="")
    assert np.isnan(kept.table().peak_memory_bytes[0])
    assert ",0.8,,no," in runs_csv(kept.table())
