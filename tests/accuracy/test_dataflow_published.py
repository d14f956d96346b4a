"""Published numbers of multi-model systems that follow from formulas alone: E1 and E12."""

import csv
import functools

import pytest

from planner.dataflow.flop_accounting import forward_flops, generate_flops, ppo_flops, train_flops
from planner.dataflow.fused_pipelines import PipelineLoad, fused_lower_bound_s, serial_s
from planner.validate.dataflow.formulas import fused_schedules
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.model import ModelSpec
from profiles.model_presets import resolve_model
from tests.places import DATA

RLHF = DATA / "rlhf"
needs_data = pytest.mark.skipif(not RLHF.is_dir(), reason="needs the folder of published runs (PLANNER_DATA)")
pytestmark = pytest.mark.accuracy

NAMES = {"7": "llama-2-7b", "13": "llama-2-13b", "34": "codellama-34b", "70": "llama-2-70b"}


@functools.cache
def model(billions: str) -> ModelSpec:
    return resolve_model(NAMES[billions], default_catalog()).spec


def rows(name: str) -> list[dict[str, str]]:
    with (RLHF / name).open() as stream:
        return list(csv.DictReader(stream))


def flops(row: dict[str, str]) -> float:
    return ppo_flops(
        model(row["actor_B"]),
        model(row["critic_B"]),
        sequences=int(row["batch_seqs"]),
        prompt_tokens=int(row["prompt_len"]),
        generated_tokens=int(row["gen_len"]),
    )


@needs_data
def test_all_published_throughputs_are_consistent() -> None:
    """E1: PFLOP per iteration of all 144 settings, and PFLOP/s times seconds of the 138 with a result."""
    table = rows("real_v1_throughput_vws.csv")
    assert len(table) == 144
    assert [row for row in table if flops(row) / 1e15 != pytest.approx(float(row["pflop_per_iter"]), rel=1e-7)] == []
    done = [row for row in table if row["status"] == "ok"]
    assert len(done) == 138
    # The file has throughputs to six decimals: half a unit of the last in the smallest is 4e-6 of it.
    for row in done:
        seconds = flops(row) / 1e15 / float(row["pflops_per_s"])
        assert seconds == pytest.approx(float(row["iter_time_s_derived"]), rel=5e-6)


@needs_data
def test_throughputs_give_back_the_seconds_of_the_other_source() -> None:
    """E1: the 18 runs that the authors' own record holds too, in seconds."""
    both = [row for row in rows("real_res_pkl_20240412.csv") if abs(float(row["rel_diff"])) < 1e-4]
    assert len(both) == 18
    systems = {"search": "ReaL", "megatron_heuristic_tp8_pp_nodes_dp1": "ReaL-Heuristic"}
    keys = ("actor_B", "critic_B", "batch_seqs", "prompt_len", "gen_len", "n_gpus")
    published = {
        (row["system"], *(row[key] for key in keys)): row
        for row in rows("real_v1_throughput_vws.csv")
        if row["scale_mode"] == "scale_actor"
    }
    for row in both:
        other = published[systems[row["mode"]], *(row[key] for key in keys)]
        seconds = flops(other) / 1e15 / float(other["pflops_per_s"])
        assert seconds == pytest.approx(float(row["iter_time_s"]), rel=1e-6)


def test_the_sum_over_decode_steps_is_in_closed_form() -> None:
    llama = model("7")
    h, i, v, layers, n, p, g = 4096, 11008, 32000, 32, 3, 5, 7
    total = forward_flops(llama, n, p)
    for step in range(g):
        total += 2 * layers * (4 * n * h * h + 2 * (n * (p + step) + n) * h + 3 * n * h * i) + 4 * n * v * h
    assert generate_flops(llama, n, p, g) == pytest.approx(total, rel=1e-12)
    assert train_flops(llama, n, p) == 4 * forward_flops(llama, n, p)


@pytest.mark.parametrize(
    ("stages", "counts", "forward", "published", "bound"),
    [
        ((8, 4), (8, 4), (5, 4), 225, 225),
        ((8, 4), (16, 8), (5, 4), 372, 372),
        ((8, 4), (32, 16), (5, 4), 708, 708),
        ((8, 8), (16, 16), (5, 2), 366, 366),
        ((16, 8), (64, 32), (2, 2), 618, 618),
        ((16, 16), (32, 32), (2, 1), 318, 318),
        ((16, 16), (64, 64), (2, 1), 613, 606),  # the one row in which annealing ends above the optimum printed
    ],
)
def test_published_schedules_of_fused_pipelines_attain_the_bound(
    stages: tuple[int, int], counts: tuple[int, int], forward: tuple[int, int], published: int, bound: int
) -> None:
    """E12: github.com/FlexFusion/FlexFusion, results/trace_exp*.txt, in its integer units of time."""
    larger, smaller = (
        PipelineLoad(stages=p, microbatches=m, forward_s=float(f))
        for p, m, f in zip(stages, counts, forward, strict=True)
    )
    found = fused_lower_bound_s(larger, smaller)
    assert found == bound
    assert found <= published < serial_s(larger, smaller)


@needs_data
def test_the_table_of_fused_pipelines_agrees_with_its_schedules() -> None:
    found = fused_schedules(RLHF)
    assert found.passed, found.findings
    printed = {row[1:3]: (float(row[3]), float(row[4])) for row in found.rows}
    above = {key: theirs / ours - 1 for key, (theirs, ours) in printed.items() if abs(theirs - ours) > 0.0051}
    assert above == {("8 + 4", "8"): pytest.approx(0.005, abs=0.001), ("8 + 4", "16"): pytest.approx(0.014, abs=0.001)}


@pytest.mark.parametrize(
    ("larger", "smaller", "words"),
    [
        ((8, 8, 1.0), (3, 8, 1.0), "must divide the 8 stages"),
        ((0, 8, 1.0), (1, 8, 1.0), "out of bounds"),
        ((8, 8, 0.0), (8, 8, 1.0), "positive and finite"),
    ],
)
def test_loads_are_checked(larger: tuple[int, int, float], smaller: tuple[int, int, float], words: str) -> None:
    loads = [PipelineLoad(stages=p, microbatches=m, forward_s=s) for p, m, s in (larger, smaller)]
    with pytest.raises(SpecError, match=words):
        fused_lower_bound_s(*loads)
