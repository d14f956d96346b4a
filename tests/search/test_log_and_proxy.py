"""The log of evaluations, and the proxy fitted to it."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from planner.search.agents.anneal import SimulatedAnnealing
from planner.search.agents.baselines import RandomSearch
from planner.search.agents.log import EvaluationLog
from planner.search.agents.proxy import fit_proxy
from planner.search.agents.run import Budget, Search, run
from planner.search.agents.uniform import UniformSpace
from tests.search_spaces import uniform_space


@pytest.fixture(scope="module")
def space() -> UniformSpace:
    return uniform_space(offload=True)


def logged(path: Path, space: UniformSpace, evaluations: int, *, workload: str = "gpt") -> None:
    with EvaluationLog(path, space, workload=workload, cluster="small") as log:
        for agent in (RandomSearch(space=space, seed=1), SimulatedAnnealing(space=space, seed=2)):
            run(Search(space=space, agent=agent, budget=Budget(evaluations=evaluations), log=log))
        assert log.rows == 2 * evaluations


def test_every_evaluation_is_a_row(space: UniformSpace, tmp_path: Path) -> None:
    logged(tmp_path / "log.parquet", space, 200)
    table = pq.read_table(tmp_path / "log.parquet")
    assert table.num_rows == 400
    rows = table.to_pylist()
    first, last = rows[0], rows[-1]
    assert (first["workload"], first["cluster"], first["agent"], first["seed"]) == ("gpt", "small", "random", 1)
    assert (last["agent"], last["seed"], last["step"]) == ("anneal", 2, 199)
    assert json.loads(last["hyperparameters"])["chains"] == 64
    assert [row["step"] for row in rows[:200]] == list(range(200))
    plans = space.decode(space.initial(1, np.random.default_rng(0)))
    assert {"tensor_parallel", "zero_stage", "recompute_layers"} <= first.keys()
    assert set(plans.__dataclass_fields__) - {"stage_layers"} <= first.keys()
    over = np.asarray([row["excess_device_memory"] > 0 for row in rows])
    usable = space.context.cluster.device.usable_memory_bytes
    assert (over == [row["peak_memory_bytes"] > usable for row in rows]).all()
    assert (np.asarray([row["feasible"] for row in rows]) <= ~over).all()


def test_a_proxy_predicts_plans_it_has_not_seen(space: UniformSpace, tmp_path: Path) -> None:
    logged(tmp_path / "log.parquet", space, 700)
    proxy = fit_proxy(tmp_path / "log.parquet")
    assert proxy.held_out == pytest.approx(0.25 * proxy.plans, abs=2)
    assert proxy.relative_rmse < 0.08
    assert proxy.relative_rmse <= proxy.worst
    vectors = space.initial(200, np.random.default_rng(77))
    outcome = space.price(vectors)
    error = proxy.predict(space.columns(vectors)) / outcome.step_time_s - 1
    assert np.sqrt(np.mean(error**2)) < 0.1
    assert proxy.plans_per_s > 0


def test_a_log_of_several_workloads_or_too_few_plans_is_refused(space: UniformSpace, tmp_path: Path) -> None:
    with EvaluationLog(tmp_path / "few.parquet", space, workload="gpt", cluster="small") as log:
        run(Search(space=space, agent=RandomSearch(space=space), budget=Budget(evaluations=20), log=log))
    with pytest.raises(ValueError, match="at least 50"):
        fit_proxy(tmp_path / "few.parquet")
    both = tmp_path / "both.parquet"
    log = EvaluationLog(both, space, workload="gpt", cluster="small")
    run(Search(space=space, agent=RandomSearch(space=space), budget=Budget(evaluations=10), log=log))
    log._labels["workload"] = "other"
    run(Search(space=space, agent=RandomSearch(space=space), budget=Budget(evaluations=10), log=log))
    log.close()
    with pytest.raises(ValueError, match="more than one workload"):
        fit_proxy(both)
