"""The public calls: real answers about real models, the same every time, and errors about the question."""

import json
import pkgutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import planner
from costmodels.plan import ExecutionPlan, Recompute
from planner import api
from planner.document_plan import to_document
from planner.question.request import Options, part_of
from planner.results import PlanResult
from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.errors import SpecError
from profiles.model_presets import resolve_model

MODEL, CLUSTER = "llama-2-7b", "8xA100-80GB"
JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64, "precision": "bf16"}


@pytest.fixture(scope="module")
def ranking() -> PlanResult:
    return api.plan(MODEL, CLUSTER, JOB)


def test_plans_are_ranked(ranking: PlanResult) -> None:
    assert ranking.fits
    assert [item.rank for item in ranking.plans] == list(range(1, 11))
    times = [item.step_time_s for item in ranking.plans]
    assert times == sorted(times)
    assert all(item.fits for item in ranking.plans)
    assert all(item.num_devices == 8 for item in ranking.plans)
    assert ranking.considered > ranking.fitting > 0
    assert ranking.rejected["out_of_memory"] == ranking.considered - ranking.fitting


def test_every_number_has_a_basis(ranking: PlanResult) -> None:
    for item in ranking.plans:
        assert item.basis in ("measured", "learned", "analytic", "assumed")
        assert item.step_time_low_s <= item.step_time_s <= item.step_time_high_s
        assert item.peak_memory_low_bytes <= item.peak_memory_bytes <= item.peak_memory_high_bytes


def test_parts_add_up(ranking: PlanResult) -> None:
    best = ranking.plans[0]
    assert sum(best.time_parts_s.values()) == pytest.approx(best.step_time_s, rel=1e-6)
    for stage in best.stages:
        assert sum(stage.memory_parts_bytes.values()) == pytest.approx(stage.memory_bytes)
    assert best.fullest_stage.memory_bytes == pytest.approx(best.peak_memory_bytes)
    assert best.headroom_bytes == pytest.approx(best.usable_memory_bytes - best.peak_memory_bytes)


def test_derived_figures(ranking: PlanResult) -> None:
    best = ranking.plans[0]
    assert best.samples_per_s == pytest.approx(64 / best.step_time_s)
    assert best.tokens_per_s == pytest.approx(64 * 2048 / best.step_time_s)
    assert best.tokens_per_s_per_device == pytest.approx(best.tokens_per_s / 8)
    assert best.mfu == pytest.approx(best.model_flops / best.step_time_s / 8 / 312e12)
    # Llama-2-7B at 2048 tokens: 6 x 6.6e9 parameters, and 12 L h s of full attention, half of it causal.
    attention = 12 * 32 * 4096 * 2048 / (6 * 6.6e9)
    assert best.mfu_full_attention / best.mfu == pytest.approx((1 + attention) / (1 + attention / 2), rel=1e-2)
    assert best.hfu >= best.mfu
    assert best.device_seconds_per_step == pytest.approx(8 * best.step_time_s)
    assert best.energy_per_step_j == pytest.approx(8 * best.step_time_s * 400)


def test_runs_are_priced_only_with_a_price() -> None:
    free = api.estimate(MODEL, CLUSTER, JOB | {"train_tokens": 1e12}).plans[0]
    assert free.run is not None
    assert free.run.cost_usd is None
    paid = api.estimate(
        MODEL, CLUSTER, JOB | {"train_tokens": 1e12}, price_per_device_hour_usd=2.0, price_date="2026-11"
    )
    run = paid.plans[0].run
    assert run is not None
    assert run.steps == pytest.approx(1e12 / (64 * 2048))
    assert run.duration_s == pytest.approx(run.steps * paid.plans[0].step_time_s)
    assert run.cost_usd == pytest.approx(2.0 * 8 * run.duration_s / 3600)
    assert api.estimate(MODEL, CLUSTER, JOB).plans[0].run is None


def test_estimate_is_the_best_plan(ranking: PlanResult) -> None:
    answer = api.estimate(MODEL, CLUSTER, JOB)
    assert [item.plan for item in answer.plans] == [ranking.plans[0].plan]
    assert answer.kind == "estimate"


@pytest.mark.parametrize("rank", range(10))
def test_a_plan_alone_costs_what_it_costs_in_the_ranking(ranking: PlanResult, rank: int) -> None:
    item = ranking.plans[rank]
    (alone,) = api.estimate(MODEL, CLUSTER, JOB, plan=item.plan).plans
    assert replace(alone, rank=item.rank) == item


def test_one_legal_plan_is_priced_once_and_the_same() -> None:
    """Fixing every choice leaves one plan; it costs what it costs when given whole."""
    pins = {"tp": 2, "pp": 2, "dp": 2, "vpp": 1, "zero": 1, "sp": True, "micro_batch": 2}
    pins |= {"axis_order": "tp_cp_dp_pp", "hsdp": 0, "schedule": "1f1b", "recompute": "none"}
    pinned = api.estimate(MODEL, CLUSTER, JOB, plan=pins)
    assert pinned.considered == 1
    whole = api.estimate(MODEL, CLUSTER, JOB, plan=pinned.plans[0].plan)
    assert pinned.plans == whole.plans
    assert api.plan(MODEL, CLUSTER, JOB, pins=pins).plans == whole.plans


def test_the_batch_of_a_whole_plan_follows_from_it() -> None:
    plan = ExecutionPlan(data_parallel=8, micro_batch_size=2, num_microbatches=3, zero_stage=3)
    answer = api.estimate(MODEL, CLUSTER, {"sequence_length": 2048}, plan=plan)
    assert answer.request.job.global_batch_size == 48


def test_pins_are_obeyed_and_reported() -> None:
    answer = api.plan(MODEL, CLUSTER, JOB, pins={"tp": 2, "recompute": "full"}, top=3)
    assert {item.plan.tensor_parallel for item in answer.plans} == {2}
    assert {item.plan.recompute for item in answer.plans} == {Recompute.FULL}
    assert answer.request.pins == {"tensor_parallel": 2, "recompute": Recompute.FULL}


def test_variants_are_folded_unless_asked_for(ranking: PlanResult) -> None:
    def family(item: Any) -> tuple[int, ...]:
        plan = item.plan
        return (plan.tensor_parallel, plan.pipeline_parallel, plan.zero_stage, plan.micro_batch_size, plan.recompute)

    assert len({family(item) for item in ranking.plans}) == 10
    listed = api.plan(MODEL, CLUSTER, JOB, variants=True, top=100)
    assert len({family(item) for item in listed.plans}) < len(listed.plans)
    assert listed.plans[0].plan == ranking.plans[0].plan


@pytest.mark.parametrize("framework", ["megatron", "deepspeed", "fsdp", "nanotron", "huggingface"])
def test_every_framework_answers(framework: str) -> None:
    answer = api.plan(MODEL, CLUSTER, JOB, framework=framework, top=1)
    assert answer.request.stack.framework == framework
    assert len(answer.plans) == 1


def test_frameworks_are_assumed_aloud() -> None:
    assert api.estimate(MODEL, CLUSTER, JOB).request.stack.framework == "megatron"
    tuned = api.estimate(MODEL, CLUSTER, JOB | {"task": "lora"})
    assert tuned.request.stack.framework == "huggingface"
    assert "framework" in {note.field for note in tuned.assumptions}
    split = api.estimate(MODEL, CLUSTER, JOB | {"task": "full"}, plan={"tp": 2})
    assert split.request.stack.framework == "megatron"


def test_fewest_devices() -> None:
    answer = api.plan(MODEL, "16xA100-80GB", JOB, objective="fewest_gpus")
    smallest = answer.plans[0].num_devices
    assert smallest < 16
    for size in (1, 2, 4, 8):
        fits = api.plan(MODEL, parse_cluster(f"{size}xA100-80GB"), JOB).fits
        assert fits == (size >= smallest)


def test_cost_compares_sizes() -> None:
    answer = api.plan(MODEL, "32xA100-80GB", JOB, objective="cost", top=20)
    cost = [item.device_seconds_per_step for item in answer.plans]
    assert cost == sorted(cost)
    assert len({item.num_devices for item in answer.plans}) > 1


def test_memory_headroom_comes_first_when_asked() -> None:
    answer = api.plan(MODEL, CLUSTER, JOB, objective="memory_headroom", variants=True)
    peaks = [item.peak_memory_bytes for item in answer.plans]
    assert peaks == sorted(peaks)


def test_a_reserve_is_taken_off_the_memory(ranking: PlanResult) -> None:
    reserve = ranking.plans[0].headroom_bytes + 15e9  # more than the cached blocks that the allocator would return
    smaller = api.plan(MODEL, CLUSTER, JOB, memory_reserve_bytes=reserve)
    assert smaller.plans[0].plan != ranking.plans[0].plan
    assert smaller.plans[0].usable_memory_bytes == pytest.approx(ranking.plans[0].usable_memory_bytes - reserve)


def test_what_nothing_fits_is_told_with_remedies() -> None:
    answer = api.plan("llama-3-70b", "8xH100", {"global_batch_size": 64})
    assert not answer.fits
    assert answer.plans == ()
    assert answer.infeasible is not None
    assert answer.infeasible.reasons["out_of_memory"] == answer.considered
    nearest = answer.infeasible.nearest
    assert nearest is not None
    assert nearest.headroom_bytes < 0
    assert {"offload", "more_devices"} <= {remedy.code for remedy in answer.infeasible.remedies}
    for remedy in answer.infeasible.remedies:
        assert remedy.fits
        assert remedy.code == "more_memory" or remedy.peak_memory_bytes <= nearest.usable_memory_bytes


def test_an_estimate_that_does_not_fit_still_answers() -> None:
    answer = api.estimate("llama-3-70b", "8xH100", {"global_batch_size": 64}, plan={"recompute": "none"})
    assert not answer.fits
    assert len(answer.plans) == 1
    assert not answer.plans[0].fits


def test_parts_of_a_cluster() -> None:
    cluster = parse_cluster("4x8xA100")
    assert part_of(cluster, 16).num_nodes == 2
    assert (part_of(cluster, 4).num_devices, part_of(cluster, 4).domain_devices) == (4, 4)
    grown = part_of(parse_cluster("2xA100"), 16)
    assert (grown.num_nodes, grown.node) == (2, cluster.node)


def test_the_front_trades_time_for_memory(ranking: PlanResult) -> None:
    times = [point.step_time_s for point in ranking.pareto]
    peaks = [point.peak_memory_bytes for point in ranking.pareto]
    assert times == sorted(times)
    assert peaks == sorted(peaks, reverse=True)
    assert ranking.pareto[0].plan == ranking.plans[0].plan
    assert ranking.pareto[0].oom_probability == pytest.approx(ranking.plans[0].oom_probability)
    assert ranking.pareto[-1].oom_probability < ranking.pareto[0].oom_probability


def test_inputs_in_every_form(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    spec = resolve_model(MODEL, default_catalog()).spec
    models: list[Any] = [MODEL, spec, config, str(file), file, str(tmp_path)]
    clusters: list[Any] = [CLUSTER, parse_cluster(CLUSTER), {"device": "A100-80GB", "gpus_per_node": 8}]
    times = {
        round(api.estimate(model, cluster, JOB, plan={"tp": 2}).plans[0].step_time_s, 9)
        for model in models
        for cluster in clusters
    }
    assert len(times) == 1


def test_files_are_out_of_reach_when_told_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SpecError, match="model: unknown name"):
        api.plan(str(tmp_path), CLUSTER, JOB, allow_files=False)


def test_fabrics_matter() -> None:
    fast = api.estimate(MODEL, "2x8xA100", JOB, plan={"tp": 1, "pp": 1, "zero": 1})
    slow = api.estimate(MODEL, "2x8xA100", JOB, plan={"tp": 1, "pp": 1, "zero": 1}, fabric="ethernet-25")
    assert slow.plans[0].step_time_s > fast.plans[0].step_time_s


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "lama-2-7b"}, "model: unknown name 'lama-2-7b'. Hint: did you mean"),
        ({"cluster": "8xH10O"}, "cluster.device: unknown name 'H10O'. Hint: did you mean 'H100'"),
        ({"cluster": 8}, "cluster: must be text or a mapping; got 8. Hint: for example '8xH100'"),
        ({"top": 0}, "top: must be a whole number between 1 and 1000; got 0"),
        ({"objective": "speed"}, "objective: unknown value 'speed'"),
        ({"framework": "megatrn"}, "framework: unknown name 'megatrn'. Hint: did you mean"),
        ({"memory_reserve_bytes": 1e12}, "memory_reserve_bytes: must be at least 0 and below the"),
        ({"price_per_device_hour_usd": -1.0}, "price_per_device_hour_usd: must be between 0 and 1e+06; got -1.0"),
        ({"pins": {"tp": 3}}, "plan.tensor_parallel: must divide num_attention_heads=32; got 3. Hint: 1, 2, 4 or 8"),
        ({"fabric": "string-and-cans"}, "fabric: unknown link 'string-and-cans'"),
        ({"job": {"seq": 1}}, "job.seq: unknown field"),
        ({"job": 3}, "job: must be a mapping of job fields; got 3"),
        ({"job": [1]}, "job: must be a mapping of job fields"),
        ({"pins": 3}, "plan: must be a mapping of plan fields; got 3"),
        ({"options": 3}, "options: must be planner.question.request.Options; got 3"),
        ({"objective": None}, "objective: must be text; got None"),
        ({"framework": 3}, "framework: must be text; got 3"),
        ({"fabric": {}}, "fabric: must be text; got a mapping"),
        ({"offload": "yes"}, "offload: must be true or false; got 'yes'"),
        ({"memory_reserve_bytes": "x"}, "memory_reserve_bytes: must be a number; got 'x'"),
        ({"price_per_device_hour_usd": True}, "price_per_device_hour_usd: must be a number; got True"),
        ({"price_per_device_hour_usd": float("nan")}, "price_per_device_hour_usd: must be between 0 and 1e+06"),
        ({"price_date": "2026-11"}, "price_date: is given without a price"),
        ({"price_per_device_hour_usd": 2.0, "price_date": "May"}, "price_date: must be a date; got 'May'"),
        ({"price_per_device_hour_usd": 2.0, "price_date": "2026-13"}, "price_date: must be a date; got '2026-13'"),
    ],
    ids=str,
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        api.plan(**{"model": MODEL, "cluster": CLUSTER, "job": JOB} | arguments)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recompute": 7}, "plan.recompute: unknown value 7"),
        ({"schedule": 55}, "plan.schedule: unknown value 55"),
        ({"axis_order": 9}, "plan.axis_order: unknown value 9"),
        ({"zero_stage": 9}, "plan.zero_stage: must be between 0 and 3; got 9"),
        ({"zero_stage": 3, "zero_shard_degree": -5}, "plan.zero_shard_degree: must be between 0 and"),
        ({"first_stage_layers": -5}, "plan.first_stage_layers: must be between 0 and"),
        ({"data_parallel": 8.0}, "plan.data_parallel: must be a whole number; got 8.0"),
        ({"sequence_parallel": "yes"}, "plan.sequence_parallel: must be true or false; got 'yes'"),
        ({"pipeline_parallel": 2, "stage_layers": (32,)}, "plan.stage_layers: must hold the layers of each of the 2"),
    ],
    ids=str,
)
def test_nonsense_in_a_whole_plan_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        api.estimate(MODEL, CLUSTER, JOB, plan=ExecutionPlan(**{"data_parallel": 8} | values))
    assert str(error.value).startswith(message)


def test_numpy_integers_are_whole_numbers() -> None:
    import numpy as np

    job = {name: np.int64(value) if isinstance(value, int) else value for name, value in JOB.items()}
    found = api.estimate(MODEL, CLUSTER, job, plan={"tp": np.int32(2)})
    assert found.plans == api.estimate(MODEL, CLUSTER, JOB, plan={"tp": 2}).plans


def test_a_plan_the_framework_refuses_is_never_priced() -> None:
    with pytest.raises(SpecError, match=r"plan.zero_stage: 3 is not combined with pipeline_parallel=2"):
        api.estimate(
            MODEL,
            CLUSTER,
            JOB,
            plan=ExecutionPlan(pipeline_parallel=2, data_parallel=4, zero_stage=3, num_microbatches=16),
        )


def test_options_or_keywords() -> None:
    with pytest.raises(SpecError, match=r"framwork: unknown setting. Hint: did you mean 'framework'"):
        api.plan(MODEL, CLUSTER, JOB, framwork="fsdp")
    with pytest.raises(TypeError, match="not both"):
        api.plan(MODEL, CLUSTER, JOB, options=Options(), framework="fsdp")
    assert api.plan(MODEL, CLUSTER, JOB, options=Options(framework="fsdp")).request.stack.framework == "fsdp"


def test_warnings() -> None:
    long = api.estimate(MODEL, CLUSTER, JOB | {"sequence_length": 32768, "global_batch_size": 8})
    assert "beyond_model_length" in {note.code for note in long.warnings}


def test_messages_through_the_memory_of_a_host_depend_on_the_host() -> None:
    told = {}
    for node in ("rtx4090-8x", "rtx4090-8x-p2p", "l40s-8x-congested"):
        told[node] = {note.code for note in api.plan(MODEL, {"node": node}, JOB, top=1).warnings}
    one = api.plan(MODEL, {"node": "rtx4090-8x", "gpus_per_node": 1}, JOB, top=1)
    assert [node for node, codes in told.items() if "depends_on_host" in codes] == ["rtx4090-8x"]
    assert "depends_on_host" not in {note.code for note in one.warnings}


def test_the_same_question_has_the_same_answer_in_every_thread() -> None:
    def ask(_: int) -> str:
        return json.dumps(to_document(api.plan(MODEL, CLUSTER, JOB, top=3)))

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1


def test_no_public_name_is_that_of_a_module():
    """Importing the module would put it in the place of what has its name."""
    modules = {module.name for module in pkgutil.iter_modules(planner.__path__)} - {"search"}
    assert not modules & set(planner.__all__)


def test_the_package_answers_by_name(ranking: PlanResult) -> None:
    result = planner.plan(model=MODEL, cluster=CLUSTER, job=JOB)
    assert result.plans == ranking.plans
    assert set(planner.__all__) <= set(dir(planner))
    for name in planner.__all__:
        assert getattr(planner, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'plann'"):
        planner.plann  # noqa: B018


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, planner; print([m for m in ('numpy', 'yaml', 'pydantic', 'rich', 'fastapi') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_price_of_a_dense_model_starts_no_library_of_statistics() -> None:
    """SciPy and what it imports took a third of the time in which a first estimate is there."""
    code = f"import sys, planner; planner.estimate({MODEL!r}, {CLUSTER!r}); print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
