"""Recomputation that ends once everything is there that the backward pass needs."""

import pytest

from costmodels.estimate import TIME_PARTS
from costmodels.plan import ExecutionPlan, Recompute
from costmodels.workload import LoraSpec
from tests.fakes import context, job, stack
from tests.unit.costmodels.step.test_step import LAYER, L, part, seconds, timed


@pytest.mark.parametrize(
    ("how", "layers"), [(Recompute.NONE, 0), (Recompute.SELECTIVE, 0), (Recompute.BLOCK, 2), (Recompute.FULL, L)]
)
def test_recomputation_that_stops_early_spares_the_last_product_of_every_layer(how: Recompute, layers: int) -> None:
    whole, early = context(), context(stack=stack(recompute_stops_early=True))
    plan = ExecutionPlan(recompute=how, recompute_layers=2, num_microbatches=3)
    spared = 3 * layers * LAYER / 3  # the MLP's second matrix is a third of a layer's weights
    assert seconds(plan, whole) - seconds(plan, early) == pytest.approx(spared)
    step = timed([plan], early)
    assert part("recompute", plan, whole) - step.parts_s["recompute"][0] == pytest.approx(spared)
    assert sum(step.parts_s[name][0] for name in TIME_PARTS) == pytest.approx(step.step_time_s[0])


@pytest.mark.parametrize(("targets", "spared"), [(("q", "v"), 1), (("q", "down"), 0)])
def test_an_adapter_behind_the_last_product_is_what_recomputation_needs_it_for(targets, spared) -> None:
    where = {"job": job(task="lora", lora=LoraSpec(rank=4, targets=targets))}
    plan = ExecutionPlan(recompute=Recompute.FULL)
    early = seconds(plan, context(**where, stack=stack(recompute_stops_early=True)))
    assert seconds(plan, context(**where)) - early == pytest.approx(spared * L * LAYER / 3)
