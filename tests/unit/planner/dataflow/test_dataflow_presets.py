"""The workflows known by name: their calls, how many sequences each handles, and their settings."""

from fractions import Fraction
from typing import Any

import pytest

from planner.dataflow.graphs.graph import TRAIN, Dataflow
from planner.dataflow.graphs.preset_data import shared_in_tree
from planner.dataflow.graphs.presets import PRESETS, build_preset
from planner.dataflow.graphs.roles import VALUE_HEAD
from profiles.errors import SpecError

BATCH = 64

# Name and settings to the sequences of each call for a batch of 64, and the roles that are trained.
SHAPES: list[tuple[str, dict[str, Any], dict[str, int], set[str]]] = [
    (
        "ppo",
        {},
        {"actor_gen": 64, "reward_inf": 64, "critic_inf": 64, "ref_inf": 64, "actor_train": 64, "critic_train": 64},
        {"actor", "critic"},
    ),
    (
        "grpo",
        {},
        {"actor_gen": 512, "reward_inf": 512, "actor_inf": 512, "ref_inf": 512, "actor_train": 512},
        {"actor"},
    ),
    (
        "grpo",
        {"kl": False, "group_size": 2, "old_logprobs": False},
        {"actor_gen": 128, "reward_inf": 128, "actor_train": 128},
        {"actor"},
    ),
    ("rloo", {"kl": False}, {"actor_gen": 256, "reward_inf": 256, "actor_inf": 256, "actor_train": 256}, {"actor"}),
    ("reinforce++", {"kl": False}, {"actor_gen": 64, "reward_inf": 64, "actor_inf": 64, "actor_train": 64}, {"actor"}),
    (
        "remax",
        {"kl": False},
        {"sample_gen": 64, "greedy_gen": 64, "reward_inf": 64, "greedy_reward": 64, "actor_train": 64},
        {"actor"},
    ),
    ("dapo", {}, {"actor_gen": 3072, "reward_inf": 3072, "actor_inf": 1024, "actor_train": 1024}, {"actor"}),
    (
        "safe-rlhf",
        {"kl": False},
        {
            "actor_gen": 64,
            "reward_inf": 64,
            "critic_inf": 64,
            "cost_critic_inf": 64,
            "cost_inf": 64,
            "actor_train": 64,
            "critic_train": 64,
            "cost_critic_train": 64,
        },
        {"actor", "critic", "cost_critic"},
    ),
    ("dpo", {}, {"ref_inf": 128, "actor_train": 128}, {"actor"}),
    ("mrdpo", {}, {"actor_gen": 128, "judge": 128, "ref_inf": 128, "actor_train": 128}, {"actor"}),
    ("rm", {}, {"reward_train": 128}, {"reward"}),
    ("rm-tree", {}, {"actor_gen": 512, "label": 512, "reward_train": 512}, {"reward"}),
    ("raft", {}, {"actor_gen": 512, "reward_inf": 512, "sft_train": 64}, {"actor"}),
    ("best-of-n", {}, {"actor_gen": 512, "reward_inf": 512}, set()),
    ("sft", {}, {"actor_train": 64}, {"actor"}),
    ("distill", {}, {"teacher_inf": 64, "student_train": 64}, {"student"}),
    (
        "distill-chain",
        {},
        {"teacher_inf": 64, "student_train": 64, "student_inf": 64, "small_train": 64},
        {"student", "small"},
    ),
    ("distill-on-policy", {}, {"student_gen": 64, "teacher_inf": 64, "student_train": 64}, {"student"}),
    ("coe", {}, {"router_inf": 64, "expert_gen": 64}, set()),
]


@pytest.mark.parametrize(("name", "settings", "sequences", "trained"), SHAPES)
def test_calls_and_sequences(name: str, settings: dict[str, Any], sequences: dict[str, int], trained: set[str]) -> None:
    graph = build_preset(name, settings)
    assert {call.name: call.sequences(BATCH) for call in graph.calls} == sequences
    assert {role.name for role in graph.roles if graph.trainable(role.name)} == trained


def test_every_preset_is_tested_described_and_sourced() -> None:
    assert {name for name, *_ in SHAPES} | {"ppo-ema"} == set(PRESETS)
    for preset in PRESETS.values():
        assert preset.summary.endswith("."), preset.name
        assert preset.source, preset.name


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_a_preset_takes_changes_its_graph(name: str) -> None:
    other: dict[str, Any] = {
        "group_size": 6,
        "mini_batches": 3,
        "reward": "external",
        "latency_s": 1.5,
        "concurrency": 7,
        "oversampling": Fraction(5, 2),
        "task": "qlora",
        "lora_rank": 4,
        "lora_targets": "q,v",
        "copy_share": 0.3,
        "copy_every": 13,
        "tree_depth": 2,
        "tree_branches": 3,
        "prefetch": 5,
        "scores": 50,
        "experts": 12,
        "skew": 1.5,
    }
    preset = PRESETS[name]
    for setting in preset.takes:
        base: dict[str, Any] = {"reward": "external"} if setting in ("latency_s", "concurrency") else {}
        base |= {"latency_s": 1.0} if setting == "concurrency" else {}
        base |= {"task": "lora"} if setting.startswith("lora") else {}
        base = {key: value for key, value in base.items() if key in preset.takes}
        default = getattr(preset.defaults, setting)
        value = not default if isinstance(default, bool) else other[setting]
        if value == default:  # the verifier of DAPO
            value = "model"
        assert build_preset(name, base | {setting: value}) != build_preset(name, base), setting


def test_critics_and_reward_models_have_value_heads() -> None:
    heads = {role.name: role.head for role in build_preset("safe-rlhf").roles}
    assert {name for name, head in heads.items() if head == VALUE_HEAD} == {"critic", "cost_critic", "reward", "cost"}


def test_training_needs_every_signal() -> None:
    graph = build_preset("ppo")
    signals = {"sequences", "logprobs", "rewards", "critic_values", "ref_logprobs"}
    assert all(set(call.inputs) == signals for call in graph.calls if call.kind == TRAIN)


def test_oversampled_groups_are_scored_once_chosen() -> None:
    graph = build_preset("dapo", {"kl": True})
    assert graph.parents("ref_inf") == ("actor_gen", "reward_inf")
    assert graph.call("ref_inf").sequences(BATCH) == 1024
    assert graph.parents("actor_inf") == graph.parents("ref_inf")


@pytest.mark.parametrize("name", [name for name in PRESETS if "old_logprobs" in PRESETS[name].takes])
def test_the_policy_scores_its_own_responses_before_it_trains_on_them(name: str) -> None:
    """By default where log-probabilities are those of a ratio; PPO's six calls are ReaLHF's."""
    assert PRESETS[name].defaults.old_logprobs == (name in {"grpo", "rloo", "reinforce++", "dapo"})
    graph = build_preset(name, {"old_logprobs": True})
    inference, train = graph.call("actor_inf"), graph.call("actor_train")
    assert inference.role == "actor"
    assert inference.sequences(BATCH) == train.sequences(BATCH)
    assert "actor_gen" in graph.parents("actor_inf") or "sample_gen" in graph.parents("actor_inf")
    assert "actor_inf" in graph.parents("actor_train")


def test_ema_averages_the_reference_and_keeps_it() -> None:
    graph = build_preset("ppo-ema")
    (copy,) = graph.copies
    assert (copy.source, copy.target, copy.every, copy.share) == ("actor", "ref", 1, 0.1)
    assert graph.role("ref").stays
    assert not build_preset("ppo-ema", {"kl": False}).copies


@pytest.mark.parametrize("name", ["ppo", "safe-rlhf", "grpo", "rloo", "remax", "dpo"])
def test_adapters_are_off_where_the_policy_is_its_own_reference(name: str) -> None:
    for task, reference in (("full", "ref"), ("lora", "actor"), ("qlora", "actor")):
        graph = build_preset(name, {"task": task})
        assert graph.call("ref_inf").role == reference
        assert ("ref" in {role.name for role in graph.roles}) == (reference == "ref")
        assert graph.call("ref_inf").sequences(BATCH) == build_preset(name).call("ref_inf").sequences(BATCH)


def test_a_reference_that_moves_has_weights_of_its_own() -> None:
    for name in ("ppo-ema", "mrdpo"):
        graph = build_preset(name, {"task": "lora"})
        assert graph.call("ref_inf").role == "ref"
        assert graph.copies[0].target == "ref"


def test_a_pretraining_loss_doubles_what_the_actor_trains_on() -> None:
    graph = build_preset("safe-rlhf", {"pretrain_loss": True})
    assert "pretrain_text" in graph.call("actor_train").inputs
    assert graph.call("actor_train").sequences(BATCH) == 2 * BATCH
    assert graph.call("critic_train").sequences(BATCH) == BATCH


@pytest.mark.parametrize(
    ("depth", "branches", "responses"),
    [(1, 4, 4.0), (2, 2, 3.0), (3, 2, (2 + 4 + 8) / 3)],
)
def test_trees_spare_what_branches_share(depth: int, branches: int, responses: float) -> None:
    assert branches**depth * (1 - shared_in_tree(depth, branches)) == pytest.approx(responses)


def test_names_are_found_whatever_their_spelling() -> None:
    assert build_preset("Best_of_N").name == "best-of-n"
    assert isinstance(build_preset("dapo", {"oversampling": 1.5}), Dataflow)


@pytest.mark.parametrize(
    ("name", "settings", "field", "words"),
    [
        ("pppo", {}, "job", "unknown workflow 'pppo'"),
        ("ppo", {"group_size": 8}, "job.group_size", "has no effect on ppo"),
        ("grpo", {"groupsize": 8}, "job.groupsize", "unknown setting"),
        ("grpo", {"group_size": 0}, "job.group_size", "between 1 and 4096"),
        ("grpo", {"group_size": "8"}, "job.group_size", "must be a whole number"),
        ("grpo", {"group_size": True}, "job.group_size", "must be a whole number"),
        ("grpo", {"reward": "models"}, "job.reward", "unknown value 'models'"),
        ("dapo", {"oversampling": 0.5}, "job.oversampling", "between 1 and 64"),
        ("dapo", {"oversampling": float("nan")}, "job.oversampling", "out of bounds"),
        ("rm-tree", {"tree_depth": 10, "tree_branches": 16}, "job.tree_depth", "leaves; at most 4096"),
        ("ppo-ema", {"copy_share": 0.0}, "job.copy_share", "above 0 and at most 1"),
        ("grpo", {"latency_s": -1.0}, "job.latency_s", "between 0 and 86400"),
        ("coe", {"kl": True}, "job.kl", "has no effect on coe"),
        ("coe", {"experts": 0}, "job.experts", "between 1 and 1024"),
        ("coe", {"skew": -1.0}, "job.skew", "between 0 and 4"),
        ("grpo", {"latency_s": 50, "concurrency": 1}, "job.latency_s", "50.0 changes nothing"),
        ("grpo", {"reward": "external", "concurrency": 1}, "job.concurrency", "1 changes nothing"),
        ("rm-tree", {"concurrency": 2}, "job.concurrency", "2 changes nothing"),
        ("ppo-ema", {"kl": False, "copy_share": 0.5}, "job.copy_share", "0.5 changes nothing"),
    ],
)
def test_settings_are_checked(name: str, settings: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_preset(name, settings)
    assert caught.value.field == field
    assert words in caught.value.problem


def test_a_setting_that_nothing_reads_is_told_with_what_would_read_it() -> None:
    with pytest.raises(SpecError) as caught:
        build_preset("grpo", {"concurrency": 1})
    assert caught.value.hint == "leave it out or add reward=external and a latency_s above 0"
    with pytest.raises(SpecError) as caught:
        build_preset("rm-tree", {"concurrency": 1})
    assert caught.value.hint == "leave it out or add a latency_s above 0"


@pytest.mark.parametrize("name", PRESETS)
def test_the_usual_value_of_a_setting_may_be_said(name: str) -> None:
    preset = PRESETS[name]
    usual = {setting: getattr(preset.defaults, setting) for setting in preset.takes}
    said = {setting: value for setting, value in usual.items() if value is not None}
    assert build_preset(name, said) == build_preset(name)
