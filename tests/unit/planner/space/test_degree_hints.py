"""Degrees that hints offer: every one of them is accepted beside what else is fixed."""

import re

import pytest

import planner
from profiles.errors import SpecError


@pytest.mark.parametrize(
    ("model", "cluster", "plan", "framework", "hint"),
    [
        ("phi-3-medium", "8xH100", {"tp": 4}, "megatron", "1 or 2"),  # 10 key/value heads, 8 devices
        ("llama-3-70b", "8x8xH100", {"tp": 3}, "fsdp", "1, 2, 4 or 8"),  # 64 heads, 8 of keys, which are not copied
        ("llama-3-70b", "8x8xH100", {"tp": 3, "pp": 32}, "megatron", "1 or 2"),
        ("gpt2", "8xH100", {"tp": 3}, "megatron", "1, 2 or 4"),  # 12 heads
        pytest.param(
            *("deepseek-v3", "8x8xH800", {"ep": 7}, "megatron", "1, 2, 4, 8, 16, 32 or 64"), marks=pytest.mark.long
        ),
    ],
)
def test_a_hint_offers_degrees_that_all_rules_accept(
    model: str, cluster: str, plan: dict[str, int], framework: str, hint: str
) -> None:
    with pytest.raises(SpecError) as caught:
        planner.estimate(model, cluster, plan=plan, framework=framework)
    assert caught.value.hint == hint
    name = next(iter(plan))
    for degree in map(int, re.findall(r"\d+", hint)):
        planner.estimate(model, cluster, plan={**plan, name: degree}, framework=framework)


def test_a_hint_that_is_no_list_of_degrees_stays():
    with pytest.raises(SpecError, match="Hint: tp x cp 1, 2, 4, 8 or 16"):
        planner.estimate("qwen3-next-80b-a3b", "8x8xH100", plan={"tp": 4, "cp": 8})


def test_where_no_degree_is_legal_another_is_to_change():
    with pytest.raises(SpecError, match=r"num_attention_heads=64; got 6\. Hint: 1, 2, 4, 8, 16, 32 or 64"):
        planner.estimate("llama-3-70b", "8x8xH100", plan={"tp": 6, "pp": 5})
