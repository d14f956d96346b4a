"""How fast the annealer prices plans, and what a proxy fitted to its log is worth."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from costmodels.evaluate import evaluate
from planner.question.request import Options, cost_context, resolve_request, setting_of
from planner.search.agents.anneal import SimulatedAnnealing
from planner.search.agents.baselines import RandomSearch
from planner.search.agents.log import EvaluationLog
from planner.search.agents.proxy import Proxy, fit_proxy
from planner.search.agents.run import Budget, Search, run
from planner.search.agents.varied import VariedSpace
from planner.search.stage_space import stage_space
from tests.search.protocol import uniform_space

LAYERS = 64
CHAINS = 8192
STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Non-uniform plans per second of processor time.

    Attributes:
        pricing: Pricing alone, stage prices known.
        moving: Proposing a move, pricing it and deciding, every chain at every step.
        searching: A whole run from nothing: stages priced as they come up, moves decided from memory.
    """

    pricing: float
    moving: float
    searching: float
    considered: float


def varied_space() -> VariedSpace:
    """Llama-2-70B with 64 layers on 64 H100."""
    job = {"sequence_length": 4096, "global_batch_size": 512}
    request = resolve_request("llama-2-70b", "8x8xH100-80GB", job, None, Options(framework="megatron"))
    request = replace(request, model=replace(request.model, num_layers=LAYERS))
    return VariedSpace(stages=stage_space([setting_of(request)], [cost_context(request)], max_stages=16))


def speed() -> Speed:
    """Best of three for what is warm; one run for what is cold."""
    space = varied_space()
    rng = np.random.default_rng(0)
    begin = time.process_time()
    cold = run(
        Search(space=space, agent=SimulatedAnnealing(space=space, chains=CHAINS), budget=Budget(evaluations=200_000))
    )
    searching_s = time.process_time() - begin
    assert cold.chains is not None
    vectors = space.initial(CHAINS, rng)
    steps = [(vectors, space.price(vectors).step_time_s)]
    moves = rng.integers(0, len(space.moves), size=(STEPS, CHAINS))
    priced_s, moved_s = [], []
    for _ in range(3):
        begin = time.process_time()
        for _ in range(STEPS):
            space.price(vectors)
        priced_s.append(time.process_time() - begin)
        begin = time.process_time()
        here, energy_s = steps[0]
        for number in range(STEPS):
            proposed = space.propose(here, moves[number], rng)
            next_s = space.price(proposed).step_time_s
            taken = rng.random(CHAINS) < np.exp(-np.maximum(next_s / energy_s - 1.0, 0.0) / 0.01)
            here, energy_s = np.where(taken[:, None], proposed, here), np.where(taken, next_s, energy_s)
        moved_s.append(time.process_time() - begin)
    plans = STEPS * CHAINS
    return Speed(
        pricing=plans / min(priced_s),
        moving=plans / min(moved_s),
        searching=cold.evaluations / searching_s,
        considered=float(cold.chains.proposed.sum()) / searching_s,
    )


def proxy(name: str, evaluations: int = 20_000) -> tuple[Proxy, float, float]:
    """A proxy fitted to a log of random plans, and plans per second of the cost path: one by one, and in a batch."""
    space = uniform_space(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.parquet"
        with EvaluationLog(path, space, workload=name, cluster=space.context.cluster.name) as log:
            agent = RandomSearch(space=space, batch_size=2048)
            run(Search(space=space, agent=agent, budget=Budget(evaluations=evaluations), log=log))
        fitted = fit_proxy(path)
    plans = space.decode(space.initial(4096, np.random.default_rng(1)))
    singles = [plans.take([row]) for row in range(50)]
    evaluate(plans, space.context)
    begin = time.process_time()
    evaluate(plans, space.context)
    batch = len(plans) / (time.process_time() - begin)
    begin = time.process_time()
    for single in singles:
        evaluate(single, space.context)
    return fitted, len(singles) / (time.process_time() - begin), batch
