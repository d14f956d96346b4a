"""What the peak of a stage is made of, as searches compare it: a column that grows never makes a stage better."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.memory.stage_activations import held_activations
from costmodels.memory.terms import MemoryTerms, composed, memory_terms
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.stages.layers import stage_layers
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from tests.fakes import context, job, stack


@pytest.mark.parametrize("name", ["last", "staying", "all_gradients"])
@pytest.mark.parametrize("on_host", [0.0, 0.5, 1.0])
def test_a_stage_whose_terms_are_larger_never_takes_less(name, on_host):
    """Searches drop stages that another is nowhere above, column by column."""
    where = context(job=job(sequence_length=16), stack=stack(framework="fsdp", transient_gradients=True))
    plans = PlanBatch.from_plans([ExecutionPlan(data_parallel=2, zero_stage=3)])
    stages = stage_table(plans, where.model)
    terms = memory_terms(plans, stages, stage_parameters(plans, stages, where.model, where.job), where)
    held = held_activations(terms.activations, stage_layers(plans, stages, where.model), stages.in_flight)

    def bytes_of(of: MemoryTerms) -> float:
        share, one = np.full((1, 1), on_host), np.ones((1, 1))
        found = composed(of, held, optimizer_on_host=share, parameters_on_host=None, logits_copies=one)
        return float(sum(part[0, 0] for part in found.parts.values()))

    more = bytes_of(replace(terms, **{name: getattr(terms, name) + 1e12}))
    matters = {"last": on_host < 1, "staying": on_host > 0, "all_gradients": False}[name]
    assert more > bytes_of(terms) if matters else more >= bytes_of(terms)
