"""Plans that span machines depend on the network between these, whatever their layout."""

import numpy as np
import pytest

from costmodels.arrays import total
from costmodels.estimate import EstimateBatch
from costmodels.evaluate import evaluate
from planner.question.request import Options, cost_context, resolve_request, space_of

JOB = {"sequence_length": 2048, "global_batch_size": 48}


def priced(model: str, cluster: str, fabric: str) -> EstimateBatch:
    """Every legal plan on a network."""
    request = resolve_request(model, cluster, JOB, None, Options(fabric=fabric))
    return evaluate(space_of(request).plans, cost_context(request))


@pytest.mark.parametrize(
    ("model", "cluster"),
    [("llama-2-7b", "2x8xA100-80GB"), ("llama-2-7b", "4x6xA100-80GB"), ("qwen3-30b-a3b", "3x4xH100")],
)
def test_no_plan_over_several_machines_is_as_fast_on_a_slow_network(model: str, cluster: str) -> None:
    slow, fast = (priced(model, cluster, fabric) for fabric in ("ethernet-10", "ib-ndr-400"))
    assert len(slow.step_time_s) > 300
    sent_s = [total(each.communication_total_s.values()) for each in (slow, fast)]
    assert (sent_s[0] > 1.05 * sent_s[1]).all()
    assert (slow.step_time_s >= fast.step_time_s * (1 - 1e-12)).all()
    # What a pipeline sends shows where its work is too short to hide it.
    moved_s = slow.communication_total_s["pipeline_transfer"]
    assert (slow.step_time_s >= moved_s * (1 - 1e-9)).all()
    assert np.isfinite(slow.step_time_s).all()
