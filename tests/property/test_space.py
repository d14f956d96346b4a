"""Properties of the plan space and of the search over it, on whatever models and machines hypothesis finds."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.plan import PlanBatch
from planner.document_plan import plan_document
from planner.question.pins import parse_pins
from planner.rules.base import FRAMEWORKS, Setting
from planner.space.constraints import legal
from planner.space.enumeration import plan_space
from profiles.errors import SpecError
from tests.fakes import gpt, job, mixture
from tests.legal import violations

COLUMNS = [name for name in PlanBatch.__dataclass_fields__ if name != "stage_layers"]


@st.composite
def questions(draw: st.DrawFn) -> Setting:
    heads = draw(st.sampled_from([4, 6, 8, 12, 16, 40]))
    dims: dict[str, Any] = {
        "num_layers": draw(st.integers(1, 40)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([k for k in (1, 2, 4, heads) if heads % k == 0])),
        "ffn_hidden_size": draw(st.sampled_from([1024, 2816, 4000])),
    }
    return Setting(
        model=draw(st.sampled_from([gpt, mixture]))(**dims),
        job=job(
            sequence_length=draw(st.sampled_from([512, 2048, 8192, 32768, 2050])),
            global_batch_size=draw(st.sampled_from([1, 6, 48, 64, 1000])),
        ),
        num_devices=draw(st.sampled_from([1, 2, 3, 6, 8, 12, 16, 48])),
        framework=draw(st.sampled_from(FRAMEWORKS)),
    )


@settings(max_examples=60, deadline=None)
@given(where=questions(), domain=st.sampled_from([1, 4, 8]), offload=st.booleans())
def test_every_plan_is_legal_complete_and_listed_once(where: Setting, domain: int, offload: bool) -> None:
    plans = plan_space(where, domain_devices=domain, offload=offload).plans
    if not len(plans):
        return
    assert legal(plans, where).all()
    assert (plans.num_devices == where.num_devices).all()
    samples = plans.data_parallel * plans.micro_batch_size * plans.num_microbatches
    assert (samples == where.job.global_batch_size).all()
    table = np.stack([getattr(plans, name).astype(np.int64) for name in COLUMNS])
    assert np.unique(table, axis=1).shape[1] == len(plans)


@settings(max_examples=60, deadline=None)
@given(where=questions(), data=st.data())
def test_a_plan_survives_its_own_document(where: Setting, data: st.DataObject) -> None:
    """Plan -> document -> pins -> the same single plan, whatever the framework."""
    plans = plan_space(where, domain_devices=8).plans
    if not len(plans):
        return
    plan = plans.plan(data.draw(st.integers(0, len(plans) - 1)))
    document = plan_document(plan)
    document.pop("stage_layers")
    again = plan_space(where, domain_devices=8, pins=parse_pins(document)).plans
    assert [again.plan(row) for row in range(len(again))] == [plan]


@settings(max_examples=80, deadline=None)
@given(
    where=questions(),
    pins=st.dictionaries(
        st.sampled_from(["tp", "pp", "dp", "cp", "ep", "vpp", "mbs", "ga"]), st.integers(1, 64), min_size=1, max_size=4
    ),
)
def test_pins_yield_plans_that_obey_them_or_an_error_about_the_plan(where: Setting, pins: dict[str, int]) -> None:
    fixed = parse_pins(pins)
    refused = None
    try:
        plans = plan_space(where, domain_devices=8, pins=fixed).plans
    except SpecError as error:
        refused = error
    if refused is not None:
        assert refused.field.startswith("plan.")
        return
    for name, value in fixed.items():
        assert (getattr(plans, name) == value).all()
    assert legal(plans, where).all()


@settings(max_examples=60, deadline=None)
@given(where=questions(), changes=st.dictionaries(st.sampled_from(COLUMNS), st.integers(1, 9), max_size=6))
def test_single_plans_are_judged_as_in_a_batch(where: Setting, changes: dict[str, int]) -> None:
    """A mask over a batch and the errors about one plan never disagree."""
    allowed = {"recompute": 3, "schedule": 4, "context_kind": 2, "axis_order": 1, "zero_stage": 3}
    plans = PlanBatch.from_columns(1, **{name: min(value, allowed.get(name, value)) for name, value in changes.items()})
    assert bool(legal(plans, where)[0]) == (violations(plans.plan(0), where) == [])
