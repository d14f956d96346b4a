"""Fine-tuning runs: what is run, what it takes, how it becomes a row, and, where its libraries are, the run itself."""

import json
from pathlib import Path

import pytest

from planner.validate.tables.mapping import map_files
from profiles.catalog import default_catalog
from profiles.measure.cases import Case
from profiles.measure.runs import write_runs
from profiles.measure.tuned import (
    ATTENTION_TARGETS,
    FULL,
    FULL_FP32,
    LLAMA_1B,
    LORA,
    QLORA,
    TINY,
    TUNED,
    tune_grid,
    tune_step,
)
from profiles.model_presets import resolve_model
from profiles.timing_files import read_timings
from profiles.timings import row_problems, table_of_rows


def _row(case: Case, time_s: float = 0.5) -> dict[str, object]:
    return case.columns() | {
        "device": "H100-SXM-80GB", "stack": "torch=2.11", "method": "wall", "statistic": "median", "time_s": time_s,
        "spread_s": 0.01, "samples": 7, "measured_on": "2026-11-26", "source": "own measurement",
        "licence": "Apache-2.0", "note": "", "peak_memory_bytes": 2.0**34,
    }  # fmt: skip


def test_models_have_the_dimensions_of_the_catalogue() -> None:
    for model in TUNED.values():
        if model is TINY:
            continue
        listed = resolve_model(model.name, default_catalog()).spec
        assert (model.layers, model.hidden, model.heads) == (
            listed.num_layers, listed.hidden_size, listed.num_attention_heads
        )  # fmt: skip
        assert (model.kv_heads, model.ffn, model.vocab) == (
            listed.num_key_value_heads, listed.ffn_hidden_size, listed.vocab_size
        )  # fmt: skip
        assert (model.head_dim, model.tied) == (listed.head_dim, listed.tie_word_embeddings)
        assert model.parameters == pytest.approx(listed.published_parameters, rel=1e-3)


def test_every_run_is_listed_once_and_is_a_sound_row() -> None:
    grid = tune_grid()
    assert len(set(grid)) == len(grid) > 100
    assert {json.loads(case.config)["method"] for case in grid} == {FULL, FULL_FP32, LORA, QLORA}
    assert set(row_problems(table_of_rows([_row(case) for case in grid])).tolist()) == {""}


def test_frozen_weights_save_a_third_of_the_work_and_recomputation_adds_a_forward_pass() -> None:
    def flops(method: str, *, recompute: bool) -> float:
        return tune_step(LLAMA_1B, method, sequence=2048, micro_batch=1, recompute=recompute).flops

    assert flops(LORA, recompute=False) / flops(FULL, recompute=False) == pytest.approx(2 / 3)
    assert flops(FULL, recompute=True) / flops(FULL, recompute=False) == pytest.approx(4 / 3)
    tokens, per_token = 2048, 2 * (LLAMA_1B.parameters + LLAMA_1B.layers * 2 * 1024 * LLAMA_1B.hidden)
    assert flops(FULL, recompute=False) == pytest.approx(3 * tokens * per_token)


def test_what_is_held_counts_in_the_footprint() -> None:
    def footprint(method: str) -> float:
        return tune_step(LLAMA_1B, method, sequence=512, micro_batch=1, recompute=True).footprint_bytes

    assert footprint(FULL_FP32) - footprint(FULL) == pytest.approx(8 * LLAMA_1B.parameters)
    assert footprint(FULL) - footprint(LORA) == pytest.approx(6 * LLAMA_1B.parameters)
    assert footprint(QLORA) < footprint(LORA)


def test_runs_become_rows_that_the_planner_prices_as_what_they_are(tmp_path: Path) -> None:
    runs = [
        tune_step(LLAMA_1B, FULL, sequence=2048, micro_batch=2, micro_batches=3, recompute=True),
        tune_step(LLAMA_1B, FULL_FP32, sequence=2048, micro_batch=2, recompute=False),
        tune_step(LLAMA_1B, LORA, sequence=2048, micro_batch=2, recompute=True, rank=8, targets=ATTENTION_TARGETS),
        tune_step(LLAMA_1B, QLORA, sequence=512, micro_batch=1, recompute=True, attention="eager"),
    ]
    path = tmp_path / "runs.csv"
    assert write_runs(table_of_rows([_row(case) for case in runs]), path) == 4
    mapped = map_files([path], default_catalog())
    assert not mapped.unscorable
    full, autocast, lora, qlora = sorted(mapped.scorable, key=lambda row: row.line)
    assert (full.job.task, full.job.master_dtype, full.job.state_dtype) == ("full", "none", "bf16")
    assert (full.job.global_batch_size, full.plan.micro_batch_size) == (6, 2)
    assert full.model.tie_word_embeddings
    assert (autocast.job.task, autocast.job.master_dtype, autocast.job.state_dtype) == ("full", "fp32", "fp32")
    assert lora.job.lora is not None
    assert (lora.job.lora.rank, set(lora.job.lora.targets)) == (8, {"q", "v"})
    assert qlora.job.lora is not None
    assert (qlora.job.task, qlora.job.attention, len(qlora.job.lora.targets)) == ("qlora", "unfused", 7)
    assert {row.source for row in mapped.scorable} == {"own measurement, fine-tuning"}
    assert not any(row.assumptions for row in mapped.scorable)
    assert {row.memory_bytes for row in mapped.scorable} == {2.0**34}
    jobs = [row.job for row in map_files([path], default_catalog(), users_own=True).scorable]
    assert jobs == [row.job for row in mapped.scorable]  # the table says all of it, whoever reads


@pytest.mark.parametrize("method", [FULL, FULL_FP32, LORA, QLORA])
def test_a_model_is_tuned_for_real(method: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    if method in (LORA, QLORA):
        pytest.importorskip("peft", reason="PEFT is not installed")
    if method == QLORA:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from profiles.measure.collect import collect

    case = tune_step(TINY, method, sequence=64, micro_batch=2, micro_batches=2, recompute=True)
    done = collect(tmp_path / "cpu.parquet", on="cpu", device="CPU", cases=[case], budget="300s")
    assert (done.measured, done.failed) == (1, ())
    row = read_timings(tmp_path / "cpu.parquet").row(0)
    first, last = (float(word) for word in row["note"].split("loss=")[1].split(" transformers")[0].split(" to "))
    assert last < first
    assert row["samples"] == 7
    assert 0 < row["time_s"] < 10
    assert "transformers=" in row["note"]


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from profiles.measure import fine_tune
    from profiles.measure.collect import collect

    case = tune_step(TINY, FULL, sequence=64, micro_batch=1, recompute=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tune, "optional_module", lambda _: None)
        done = collect(tmp_path / "cpu.parquet", on="cpu", device="CPU", cases=[case], budget="180s")
    assert done.failed == ((case.label, "NotImplementedError: transformers is not installed"),)
