"""All-reduces of generation engines: by hand, against their timings, and where engines leave them to NCCL."""

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import planner
from costmodels.calibration.engine_reduce_fit import fit_engine, main, reduce_rows
from costmodels.kernels.calls import Prediction
from costmodels.kernels.implementations import Engine
from costmodels.links.collectives import CollectiveCallBatch, CollectiveOp
from costmodels.links.engine_reduce import MOST_BYTES, RANKS, reduce_time_s, with_engine_reduces
from profiles.catalog import default_catalog
from profiles.engine_reduce import EngineReduce, engine_reduce
from profiles.engines import load_engines
from tests.places import DATA

need_timings = pytest.mark.skipif(
    not (DATA / "timings").is_dir(), reason="needs the folder of published timings (PLANNER_DATA)"
)
HAND = EngineReduce(
    launch_s=3e-6, rank_s=1e-7, sync_s=5e-6, efficiency=0.5, low_factor=0.9, high_factor=1.2, rows=1, mape=0.0
)
LINK = default_catalog().links["nvlink4"]


def test_one_shot_and_two_by_hand() -> None:
    """Eight ranks at half of 400 GB/s: 7 x 64 KiB in one shot; 2 x 7 / 8 x 4 MiB in two, after a wait."""
    found = reduce_time_s(np.array([65536.0, 4194304.0, 4194304.0]), np.array([8.0, 8.0, 2.0]), HAND, 400e9)
    assert found == pytest.approx([3.8e-6 + 7 * 65536 / 2e11, 8.8e-6 + 1.75 * 4194304 / 2e11, 3.2e-6 + 4194304 / 2e11])


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
@pytest.mark.parametrize("link", ["nvlink3", "nvlink4", "nvlink5"])
def test_packaged_constants_are_sane(engine: str, link: str) -> None:
    found = engine_reduce(link, engine)
    assert found is not None
    assert 1e-6 < found.launch_s < 1e-5
    assert found.low_factor < 1 < found.high_factor < 2
    assert found.mape < 0.13
    assert engine_reduce(link + "-h800", engine) == found
    assert engine_reduce(link + "-bridge", engine) is None


@pytest.mark.parametrize(
    ("link", "engine"), [("pcie4", "vllm"), ("xgmi", "sglang"), ("nvlink2", "vllm"), ("nvlink4", "")]
)
def test_what_nobody_timed_is_left_to_nccl(link: str, engine: str) -> None:
    assert engine_reduce(link, engine) is None


def calls(
    op: CollectiveOp = CollectiveOp.ALL_REDUCE, size_bytes: float = 16384.0, ranks: int = 8, local: int = 8
) -> CollectiveCallBatch:
    return CollectiveCallBatch(
        op=np.array([int(op)]), size_bytes=np.array([size_bytes]), group_size=np.array([ranks]),
        ranks_per_domain=np.array([local]),
    )  # fmt: skip


def by_nccl() -> Prediction:
    return Prediction.of(np.array([[2e-5], [1e-5], [3e-5], [1.0], [1.0]]))


@pytest.mark.parametrize("engine", [Engine.VLLM, Engine.SGLANG, Engine.TENSORRT_LLM])
def test_small_sums_inside_a_domain_are_the_engine_s_own(engine: Engine) -> None:
    found = with_engine_reduces(by_nccl(), calls(), engine, LINK)
    assert 3e-6 < found.time_s[0] < 6e-6
    assert found.low_s[0] < found.time_s[0] < found.high_s[0]
    assert not found.extrapolated[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"op": CollectiveOp.ALL_GATHER}, {"size_bytes": 2 * MOST_BYTES}, {"size_bytes": 0.0}, {"ranks": 16, "local": 8},
        {"ranks": 3, "local": 3}, {"ranks": 16, "local": 16},
    ],
)  # fmt: skip
def test_the_rest_is_nccl_s(changes: dict[str, object]) -> None:
    found = with_engine_reduces(by_nccl(), calls(**changes), Engine.VLLM, LINK)  # type: ignore[arg-type]
    assert found.table().tolist() == by_nccl().table().tolist()
    assert max(RANKS) == 8


def test_engines_that_serve_have_one_and_frameworks_turn_it_off() -> None:
    own = {name for name, engine in load_engines().items() if engine.own_all_reduce}
    assert own == {"vllm", "vllm-2024", "sglang", "sglang-2025", "tensorrt-llm"}
    assert all("own_all_reduce" in engine.sources for engine in load_engines().values() if engine.own_all_reduce)
    assert not any(engine.between_training().own_all_reduce for engine in load_engines().values())


def test_tokens_over_eight_devices_come_faster() -> None:
    """Two sums a layer, 80 layers: each is some 12 us less."""
    asked = {"prompt": 1000, "generate": 300, "concurrency": 1, "pins": {"tp": 8, "pp": 1}}
    fast = planner.serving("llama-3.1-70b", "8xH100-SXM-80GB", **asked).plans[0].tpot_s
    bridged = planner.serving("llama-3.1-70b", "8xL40S", **asked, weights="fp8")
    assert 0.0105 < fast < 0.0125
    assert bridged.fits


@need_timings
def test_constants_are_fitted_on_the_published_timings(tmp_path: Path) -> None:
    out = tmp_path / "engine_reduce.json"
    main(["--data", str(DATA), "--out", str(out)])
    packaged = resources.files("profiles").joinpath("data", "fits", "engine_reduce.json").read_text(encoding="utf-8")
    found, known = (json.loads(text)["links"] for text in (out.read_text(encoding="utf-8"), packaged))
    assert set(found) == set(known) == {"nvlink3", "nvlink4", "nvlink5"}
    for link, engines in known.items():
        for engine, values in engines.items():
            assert found[link][engine]["launch_s"] == pytest.approx(values["launch_s"], rel=0.02)
            assert found[link][engine]["mape"] == pytest.approx(values["mape"], abs=5e-3)


@need_timings
@pytest.mark.parametrize("ranks", [4, 8])
def test_ranks_left_out_are_foretold(ranks: int) -> None:
    """Fitted on the others, the median engine and link is 15 % off; NCCL takes three to four times as long."""
    rows, errors = reduce_rows(DATA), []
    for (link, _), part in rows.groupby(["link", "engine"]):
        bandwidth = default_catalog().links[link].bandwidth_bytes_per_s
        left = part[part.num_gpus == ranks]
        fit = replace(fit_engine(part[part.num_gpus != ranks], bandwidth))
        size, count = left.size_bytes.to_numpy(float), left.num_gpus.to_numpy(float)
        found = reduce_time_s(size, count, fit, bandwidth) / (left.time_us.to_numpy(float) * 1e-6)
        errors.append(float(np.median(np.abs(found - 1))))
    assert len(errors) == 9
    assert np.median(errors) < 0.15
