"""Laws every call obeys, whatever it runs on: more work takes longer, and parts of a cluster are priced alike."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.lengths import log_normal_lengths
from costmodels.model_calls import CallKind, CallTable, ModelCall
from planner.dataflow.call_costs import CallSetting, call_costs
from planner.dataflow.solving.dominance import undominated
from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.model_presets import resolve_model
from profiles.stacks import find_stack

CLUSTER = parse_cluster("2x8xH100", default_catalog(), fabric=None)
MODELS = [
    resolve_model(name, default_catalog(), allow_paths=False).spec
    for name in ("llama-2-7b", "qwen3-30b-a3b", "gpt2-medium")
]
SETTING = CallSetting(cluster=CLUSTER, stack=find_stack("megatron"), engines=("vllm", "trainer"))
calls = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(list(CallKind)),
        "num_sequences": st.sampled_from([16, 64, 256]),
        "prompt_tokens": st.sampled_from([64, 512]),
        "mean": st.sampled_from([100.0, 700.0]),
        "model": st.sampled_from(MODELS),
        "size": st.sampled_from([1, 4, 16]),
    }
)


def table_of(asked: dict[str, Any], **changes: Any) -> CallTable:
    wanted = asked | changes
    call = ModelCall(
        kind=wanted["kind"],
        num_sequences=wanted["num_sequences"],
        prompt_tokens=wanted["prompt_tokens"],
        output=log_normal_lengths(mean=wanted["mean"], sigma=0.7, most=1024),
    )
    return call_costs(call, wanted["model"], SETTING, [wanted["size"]], fitting=False)


@settings(max_examples=12, deadline=None)
@given(calls)
def test_more_work_is_never_faster(asked: dict[str, Any]) -> None:
    base = table_of(asked)
    if not len(base):
        return
    for more in ({"num_sequences": 2 * asked["num_sequences"]}, {"mean": 1.3 * asked["mean"]}, {"prompt_tokens": 1024}):
        larger = table_of(asked, **more)
        assert larger.time_s.min() >= base.time_s.min() * 0.97, more


@settings(max_examples=12, deadline=None)
@given(calls)
def test_rows_are_sound(asked: dict[str, Any]) -> None:
    table = table_of(asked)
    for name in ("time_s", "low_s", "high_s", "static_bytes", "weight_bytes", "active_bytes", "offloadable_bytes"):
        column = getattr(table, name)
        assert np.isfinite(column).all()
        assert (column >= 0).all()
    assert (table.low_s <= table.time_s).all()
    assert (table.time_s <= table.high_s).all()
    assert (table.weight_bytes <= table.static_bytes * (1 + 1e-12)).all()
    assert (table.num_devices == asked["size"]).all()
    assert len(undominated(table)) == len(table)


@pytest.mark.parametrize("kind", [CallKind.INFERENCE, CallKind.TRAIN])
def test_mini_batches_cost_time_and_save_no_weights(kind: CallKind) -> None:
    one = ModelCall(
        kind=kind,
        num_sequences=256,
        prompt_tokens=512,
        output=log_normal_lengths(mean=500, sigma=0.7, most=1024),
    )
    many = replace(one, mini_batches=4)
    whole, cut = (call_costs(call, MODELS[0], SETTING, [8]) for call in (one, many))
    if kind is CallKind.TRAIN:
        assert cut.time_s.min() > whole.time_s.min()
    assert cut.static_bytes.min() == pytest.approx(whole.static_bytes.min())
