"""OpenRLHF's own parser and checks take what is written: the main block of ``train_ppo_ray`` up to where it trains.

Needs ``openrlhf==0.11.2`` (``pip install --no-deps``): its packages import torch, ray and DeepSpeed, of which nothing
is needed here.
"""

import argparse
import ast
import importlib.util
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import planner
from tests.exported import script_words

CASES = [
    ("grpo", "qwen2.5-1.5b", "4xH100-80GB", {"settings": {"reward": "external"}}),
    ("grpo", "qwen2.5-1.5b", "2x8xH100-80GB", {"settings": {"reward": "external"}, "mode": "async"}),
    ("rloo", "qwen2.5-1.5b", "2x8xH100-80GB", {"settings": {"reward": "external"}, "mode": "disaggregated"}),
    ("ppo", "qwen2.5-1.5b", "8xH100-80GB", {"settings": {"old_logprobs": True}}),
    ("dapo", "qwen2.5-1.5b", "8xH100-80GB", {}),
    ("reinforce++", "qwen3-8b", "2x8xH100-80GB", {"settings": {"reward": "external", "kl": False}}),
]


def parsed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Arguments as its main block has them when it calls ``train``."""
    found = importlib.util.find_spec("openrlhf")
    if found is None or not found.submodule_search_locations:
        pytest.skip("openrlhf is not installed")
    root = Path(found.submodule_search_locations[0])
    config = ModuleType("openrlhf.utils.config")
    exec((root / "utils" / "config.py").read_text(encoding="utf-8"), config.__dict__)
    for name, module in (("openrlhf", ModuleType("openrlhf")), ("openrlhf.utils", ModuleType("openrlhf.utils"))):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "openrlhf.utils.config", config)
    monkeypatch.setattr(sys, "argv", ["train_ppo_ray.py", *words])
    tree = ast.parse((root / "cli" / "train_ppo_ray.py").read_text(encoding="utf-8"))
    main = next(node for node in tree.body if isinstance(node, ast.If))
    given: list[SimpleNamespace] = []
    names: dict[str, Any] = {"argparse": argparse, "datetime": datetime, "train": given.append}
    exec(compile(ast.Module(body=main.body, type_ignores=[]), "train_ppo_ray", "exec"), names)
    return given[0]


@pytest.mark.parametrize(("job", "model", "cluster", "options"), CASES)
def test_openrlhf_accepts(
    job: str, model: str, cluster: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = planner.export_dataflow(job, model, cluster, format="openrlhf", batch=64, effort=0.02, **options)
    assert result.exported is not None
    assert result.flow.plan is not None
    words = script_words(result.exported)
    arguments = words[words.index("openrlhf.cli.train_ppo_ray") + 1 :]
    given = parsed([*arguments, "--reward.remote_url", "http://localhost/reward"], monkeypatch)
    calls = {call.name: call for call in result.flow.plan.calls}
    train, generation = calls["actor_train"], calls["actor_gen"]
    assert train.plan is not None
    assert given.actor.num_nodes * given.actor.num_gpus_per_node == train.num_gpus
    assert given.vllm.num_engines * given.vllm.tensor_parallel_size == generation.num_gpus
    assert given.train.batch_size * train.mini_batches == train.sequences
    assert given.rollout.batch_size * given.rollout.n_samples_per_prompt == train.sequences
    ranks = given.ds.ring_attn_size * given.ds.tensor_parallel_size
    assert train.num_gpus // ranks == train.plan.data_parallel
    # DeepspeedStrategy.setup_distributed: micro-batches of an optimizer step.
    accumulated = given.train.batch_size * ranks // given.train.micro_batch_size // train.num_gpus
    assert accumulated == train.plan.num_microbatches
    assert (given.critic.model_name_or_path is not None) == ("critic_train" in calls)
    assert given.train.colocate_all is (train.first_gpu == generation.first_gpu or given.train.async_enable)
    assert given.vllm.enable_sleep is (train.first_gpu == generation.first_gpu)
    if "ref_inf" in calls:
        assert (given.ref.num_nodes, given.ref.num_gpus_per_node) == (
            given.actor.num_nodes,
            given.actor.num_gpus_per_node,
        )
    assert (given.algo.kl.init_coef > 0) == ("ref_inf" in calls)
