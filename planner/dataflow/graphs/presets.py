"""Workflows known by name: what each is, where it is described, and the settings it takes.

The graphs are in ``planner.dataflow.graphs.preset_policy`` (a policy learns from what it generates) and
``planner.dataflow.graphs.preset_data`` (data comes first).
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

from costmodels.workload import ADAPTER_TASKS
from planner.dataflow.graphs import preset_data, preset_policy
from planner.dataflow.graphs.graph import MAX_FACTOR, Dataflow
from planner.dataflow.graphs.preset_settings import Settings
from profiles.errors import SpecError, did_you_mean, meant_among, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A workflow known by name.

    Attributes:
        name: How the user asks for it.
        summary: What it is, in one sentence.
        source: Where the algorithm or its graph is described.
        build: Makes the graph of settings.
        defaults: Settings whose usual value differs from that of ``Settings``.
        takes: Names of the settings that change this graph.
    """

    name: str
    summary: str
    source: str
    build: Callable[[Settings], Dataflow]
    takes: tuple[str, ...] = ()
    defaults: Settings = field(default_factory=Settings)


ROLE_SETTINGS = ("task", "lora_rank", "lora_targets")
_PPO_SETTINGS = ("mini_batches", "kl", "old_logprobs", "reward", "latency_s", "concurrency", *ROLE_SETTINGS)
_GROUP_SETTINGS = ("group_size", *_PPO_SETTINGS)

PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="ppo",
            summary="Proximal policy optimisation from a reward model, with a critic and a frozen reference.",
            source="Ouyang et al. 2022, arXiv:2203.02155; calls as in ReaLHF, arXiv:2406.14088, figure 2",
            build=preset_policy.ppo,
            takes=_PPO_SETTINGS,
            defaults=Settings(mini_batches=4),
        ),
        Preset(
            name="ppo-ema",
            summary="PPO whose reference follows the actor as an exponential moving average.",
            source="the reference-EMA example of ReaLHF (arXiv:2406.14088): a reallocation hook after training",
            build=preset_policy.ppo_ema,
            takes=(*_PPO_SETTINGS, "copy_share"),
            defaults=Settings(mini_batches=4, copy_share=0.1),
        ),
        Preset(
            name="safe-rlhf",
            summary="PPO with a cost model and a cost critic beside reward and critic; a pre-training loss if wanted.",
            source="Dai et al. 2023, arXiv:2310.12773; a baseline workload of HybridFlow, arXiv:2409.19256",
            build=preset_policy.safe_rlhf,
            takes=(*_PPO_SETTINGS, "pretrain_loss"),
            defaults=Settings(mini_batches=4),
        ),
        Preset(
            name="grpo",
            summary="Group-relative policy optimisation: several responses per prompt stand in for a critic.",
            source="Shao et al. 2024, arXiv:2402.03300",
            build=preset_policy.group_relative,
            takes=_GROUP_SETTINGS,
            defaults=Settings(group_size=8, old_logprobs=True),
        ),
        Preset(
            name="rloo",
            summary="REINFORCE with the mean of the other responses to a prompt as its baseline.",
            source="Ahmadian et al. 2024, arXiv:2402.14740",
            build=preset_policy.group_relative,
            takes=_GROUP_SETTINGS,
            defaults=Settings(group_size=4, old_logprobs=True),
        ),
        Preset(
            name="reinforce++",
            summary="REINFORCE with clipping and advantages normalised over the whole batch; one response per prompt.",
            source="Hu 2025, arXiv:2501.03262",
            build=preset_policy.group_relative,
            takes=_GROUP_SETTINGS,
            defaults=Settings(old_logprobs=True),
        ),
        Preset(
            name="remax",
            summary="REINFORCE whose baseline is the reward of the greedy response: two generations per prompt.",
            source="Li et al. 2023, arXiv:2310.10505",
            build=preset_policy.remax,
            takes=_PPO_SETTINGS,
        ),
        Preset(
            name="dapo",
            summary="GRPO without a reference; more prompts are generated than trained on, because groups that are "
            "all right or all wrong are dropped.",
            source="Yu et al. 2025, arXiv:2503.14476; three times as many prompts as its published launch script",
            build=preset_policy.group_relative,
            takes=(*_GROUP_SETTINGS, "oversampling"),
            defaults=Settings(
                group_size=16,
                kl=False,
                old_logprobs=True,
                reward="external",
                oversampling=Fraction(3),
                mini_batches=16,
            ),
        ),
        Preset(
            name="distill-on-policy",
            summary="The student generates, the teacher scores every token, the student trains on the difference.",
            source="Agarwal et al. 2023, arXiv:2306.13649; the teacher is a reference that may be far larger",
            build=preset_policy.distill_on_policy,
            takes=("group_size", "mini_batches", *ROLE_SETTINGS, "scores"),
        ),
        Preset(
            name="mrdpo",
            summary="Rounds of DPO: pairs are generated and judged, and after some steps the reference becomes the "
            "merged policy and the adapters start anew.",
            source="video-SALMONN 2, arXiv:2506.15220: 1,000 steps per round",
            build=preset_policy.multi_round_dpo,
            takes=("mini_batches", "reward", "latency_s", "concurrency", *ROLE_SETTINGS, "copy_every"),
            defaults=Settings(task="lora", copy_every=1000),
        ),
        Preset(
            name="raft",
            summary="Best of n: several responses per prompt, the best one by reward is trained on as supervised data.",
            source="Dong et al. 2023, arXiv:2304.06767",
            build=preset_policy.raft,
            takes=("group_size", "mini_batches", "reward", "latency_s", "concurrency", *ROLE_SETTINGS),
            defaults=Settings(group_size=8),
        ),
        Preset(
            name="best-of-n",
            summary="Several responses per prompt and the reward model's choice among them; nothing is trained.",
            source="Stiennon et al. 2020, arXiv:2009.01325, as a baseline to PPO",
            build=preset_policy.best_of_n,
            takes=("group_size", "reward", "latency_s", "concurrency"),
            defaults=Settings(group_size=8),
        ),
        Preset(
            name="dpo",
            summary="Direct preference optimisation on pairs: the reference scores both, the actor trains.",
            source="Rafailov et al. 2023, arXiv:2305.18290",
            build=preset_data.dpo,
            takes=("mini_batches", *ROLE_SETTINGS),
        ),
        Preset(
            name="rm",
            summary="A reward model trained on pairs of responses.",
            source="Ouyang et al. 2022, arXiv:2203.02155, section 3.4",
            build=preset_data.reward_pairs,
            takes=("mini_batches", *ROLE_SETTINGS),
        ),
        Preset(
            name="rm-tree",
            summary="A reward model from trees of responses: branches share the text before them, so that it is "
            "generated once; a labeller compares the leaves.",
            source="Qiu et al. 2024, arXiv:2402.10184",
            build=preset_data.reward_trees,
            takes=("tree_depth", "tree_branches", "mini_batches", "latency_s", "concurrency", *ROLE_SETTINGS),
        ),
        Preset(
            name="sft",
            summary="Supervised fine-tuning: one training call.",
            source="a degenerate graph, so that mixed campaigns can be planned with one tool",
            build=preset_data.sft,
            takes=("mini_batches", *ROLE_SETTINGS),
        ),
        Preset(
            name="distill",
            summary="A teacher scores given text, a student trains on its scores; the teacher runs ahead.",
            source="Hinton et al. 2015, arXiv:1503.02531; Alexa Teacher Model, arXiv:2206.07808",
            build=preset_data.distill,
            takes=("mini_batches", *ROLE_SETTINGS, "prefetch", "scores"),
        ),
        Preset(
            name="distill-chain",
            summary="Teacher to student to a smaller student, the second stage on the first one's current weights.",
            source="Alexa Teacher Model, arXiv:2206.07808: 2.3B to 170M to 17M",
            build=preset_data.distill_chain,
            takes=("mini_batches", *ROLE_SETTINGS, "prefetch", "scores"),
        ),
        Preset(
            name="coe",
            summary="Composition of experts: a router reads the prompt, one of many expert models answers.",
            source="Prabhakar et al. 2024, arXiv:2405.07518 (SN40L): up to 150 experts; five in Samba-CoE 0.1",
            build=preset_data.composition_of_experts,
            takes=("experts", "skew"),
            defaults=Settings(experts=5),
        ),
    )
}

# Settings that say nothing by themselves, and the settings that make them heard.
_READ_WITH: Mapping[str, Mapping[str, str]] = {
    "latency_s": {"reward": "reward=external"},
    "concurrency": {"reward": "reward=external", "latency_s": "a latency_s above 0"},
    "copy_share": {"kl": "kl=true"},
}


def preset_name(name: str) -> str:
    """The name as ``PRESETS`` has it, if it is there at all; case and ``_`` for ``-`` do not matter."""
    return name.strip().lower().replace("_", "-")


def build_preset(name: str, settings: Mapping[str, Any] | None = None, *, allow_files: bool = True) -> Dataflow:
    """The graph of a preset.

    Args:
        name: One of ``PRESETS``, see ``preset_name``.
        settings: Fields of ``Settings`` to change.
        allow_files: Whether a file could be given instead.

    Raises:
        SpecError: If the name is unknown, a setting is unknown, out of bounds, or has no effect there.
    """
    key = preset_name(name)
    if key not in PRESETS:
        hint = did_you_mean(key, PRESETS)
        other = " Or give a file: my-workflow.yaml" if allow_files else " Or give the graph itself"
        raise SpecError("job", f"unknown workflow {name[:40]!r}", hint + other)
    preset = PRESETS[key]
    chosen = {item.name: getattr(preset.defaults, item.name) for item in fields(Settings)}
    for setting, value in (settings or {}).items():
        if setting not in chosen:
            raise SpecError(f"job.{str(setting)[:40]}", "unknown setting", meant_among(str(setting), chosen))
        if setting not in preset.takes:
            takes = ", ".join(preset.takes) or "no settings"
            raise SpecError(f"job.{setting}", f"has no effect on {key}", f"{key} takes {takes}")
        usual = chosen[setting]
        chosen[setting] = value if usual is None else _typed(setting, value, usual)
    graph = preset.build(Settings(**chosen))
    for setting in settings or {}:
        usual = getattr(preset.defaults, setting)
        if chosen[setting] != usual and _same(preset, chosen | {setting: usual}, graph):
            raise SpecError(f"job.{setting}", f"{chosen[setting]} changes nothing", _what_reads(setting, preset))
    return Dataflow(
        name=key,
        roles=graph.roles,
        calls=graph.calls,
        copies=graph.copies,
        dataset=graph.dataset,
        prefetch=graph.prefetch,
    )


def _same(preset: Preset, chosen: Mapping[str, Any], graph: Dataflow) -> bool:
    """Whether settings give a graph that is there already."""
    try:
        return preset.build(Settings(**chosen)) == graph
    except SpecError:  # one that others rest on, as the rank of adapters does on the task
        return False


def _what_reads(setting: str, preset: Preset) -> str:
    """What to say beside a setting so that something reads it."""
    beside = [words for name, words in _READ_WITH.get(setting, {}).items() if name in preset.takes]
    return " or ".join(("leave it out", *([f"add {' and '.join(beside)}"] if beside else [])))


def as_setting(error: SpecError, graph: Dataflow, batch: int) -> SpecError:
    """An error of a part of a preset's graph, told of the setting that the part comes from, or of the batch.

    Args:
        error: Any; one that is of no part of the graph stays as it is.
        graph: That of the preset.
        batch: Items per iteration.
    """
    part = re.fullmatch(r"job\.(calls|roles)\.\w+\.([\w.]+)", error.field)
    if part is None:
        return error
    if part[2] == "mini_batches":
        step = math.lcm(*((call.factor / math.lcm(call.group, call.mini_batches)).denominator for call in graph.calls))
        hint = f"mini_batches={error.hint}, or a batch of {(batch // step + 1) * step}"
        return SpecError("settings.mini_batches", error.problem, hint)
    return error.at("batch" if part[1] == "calls" else f"settings.{part[2].replace('.', '_')}")


def unknown_role(graph: Dataflow, role: str) -> SpecError:
    """The error a model for a role that the graph lacks deserves."""
    scored = [call.role for call in graph.calls if call.name == "ref_inf"]
    if role == "ref" and any(graph.role(name).task in ADAPTER_TASKS for name in scored):
        problem = f"{graph.name} has no such role: without its adapters, the {scored[0]} is the reference"
        return SpecError("models.ref", problem, "leave ref out, or task full")
    names = [each.name for each in graph.roles]
    return SpecError(f"models.{role[:40]}", f"{graph.name} has no such role", did_you_mean(role, names))


def _typed(name: str, value: object, default: object) -> object:
    """The value in the type of its default."""
    wanted = {bool: "true or false", int: "a whole number", float: "a number", Fraction: "a number", str: "text"}
    kind = type(default)
    if kind in (float, Fraction) and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not (math.isfinite(value) and abs(value) <= MAX_FACTOR * 1000):
            raise SpecError(f"job.{name}", f"is out of bounds; got {value:g}")
        return float(value) if kind is float else Fraction(value).limit_denominator(MAX_FACTOR)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise SpecError(f"job.{name}", f"must be {wanted[kind]}; got {shown(value)}")
