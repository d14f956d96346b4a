"""Workflows in which the data comes first: supervised training, preferences, distillation, experts.

Each function returns one graph; sources are listed in ``planner.dataflow.graphs.presets``.
"""

from fractions import Fraction

from planner.dataflow.graphs.graph import GENERATE, INFERENCE, PROMPT, Call, Dataflow
from planner.dataflow.graphs.preset_settings import Settings, service, training
from planner.dataflow.graphs.roles import VALUE_HEAD, Role

_PAIR = Fraction(2)  # a chosen and a rejected response per item


def sft(settings: Settings) -> Dataflow:
    """One model trained on given text."""
    return Dataflow(
        name="sft",
        roles=(settings.trained("actor"),),
        calls=(training("actor_train", "actor", ("text",), settings, Fraction(1)),),
        dataset=("text",),
    )


def dpo(settings: Settings) -> Dataflow:
    """The reference scores both responses of a pair; the actor trains on the difference."""
    actor, reference = settings.trained("actor"), Role(name="ref", like="actor")
    return Dataflow(
        name="dpo",
        roles=(actor, reference) if settings.reference == reference.name else (actor,),
        calls=(
            Call(
                name="ref_inf",
                kind=INFERENCE,
                role=settings.reference,
                inputs=("pairs",),
                outputs=("ref_logprobs",),
                factor=_PAIR,
            ),
            training("actor_train", "actor", ("pairs", "ref_logprobs"), settings, _PAIR),
        ),
        dataset=("pairs",),
    )


def reward_pairs(settings: Settings) -> Dataflow:
    """A value head trained to prefer one response of a pair."""
    return Dataflow(
        name="rm",
        roles=(settings.trained("reward", head=VALUE_HEAD),),
        calls=(training("reward_train", "reward", ("pairs",), settings, _PAIR),),
        dataset=("pairs",),
    )


def reward_trees(settings: Settings) -> Dataflow:
    """Trees of responses are generated and labelled; the reward model trains on their leaves."""
    leaves = Fraction(settings.tree_branches**settings.tree_depth)
    labels = service("label", ("trees",), ("preferences",), settings, leaves)
    return Dataflow(
        name="rm-tree",
        roles=(Role(name="actor"), settings.trained("reward", like="actor", head=VALUE_HEAD)),
        calls=(
            Call(
                name="actor_gen",
                kind=GENERATE,
                role="actor",
                inputs=("prompts",),
                outputs=("trees",),
                factor=leaves,
                group=int(leaves),
                shared=shared_in_tree(settings.tree_depth, settings.tree_branches),
            ),
            labels,
            training("reward_train", "reward", ("trees", "preferences"), settings, leaves),
        ),
    )


def shared_in_tree(depth: int, branches: int) -> float:
    """Share of the response tokens that a tree spares over as many independent responses.

    A tree of ``depth`` levels has ``branches^d`` edges at level d, each an equal part of a response:
    ``sum_d branches^d / depth`` responses' worth of tokens for ``branches^depth`` leaves.

    Example:
        Two levels of two branches: 2/2 + 4/2 = 3 responses' worth of tokens for 4 leaves.

        >>> shared_in_tree(2, 2)
        0.25
    """
    leaves = branches**depth
    generated: float = sum(branches**level for level in range(1, depth + 1)) / depth
    return float(1 - generated / leaves)


def distill(settings: Settings) -> Dataflow:
    """A frozen teacher scores text, a student trains on the scores."""
    return Dataflow(
        name="distill",
        roles=(Role(name="teacher", stays=True), settings.trained("student")),
        calls=(
            _scoring("teacher_inf", "teacher", "teacher_scores", settings),
            training("student_train", "student", ("text", "teacher_scores"), settings, Fraction(1)),
        ),
        dataset=("text",),
        prefetch=settings.prefetch,
    )


def distill_chain(settings: Settings) -> Dataflow:
    """A student that is itself the teacher of a smaller one."""
    graph = distill(settings)
    return Dataflow(
        name="distill-chain",
        roles=(*graph.roles, settings.trained("small")),
        calls=(
            *graph.calls,
            _scoring("student_inf", "student", "student_scores", settings),
            training("small_train", "small", ("text", "student_scores"), settings, Fraction(1)),
        ),
        dataset=("text",),
        prefetch=settings.prefetch,
    )


def composition_of_experts(settings: Settings) -> Dataflow:
    """A router reads the prompts; the expert it names answers them."""
    return Dataflow(
        name="coe",
        roles=(
            Role(name="router", stays=True),
            Role(name="expert", stays=settings.experts == 1, experts=settings.experts, skew=settings.skew),
        ),
        calls=(
            Call(
                name="router_inf",
                kind=INFERENCE,
                role="router",
                inputs=("prompts",),
                outputs=("choices",),
                span=PROMPT,
            ),
            Call(
                name="expert_gen",
                kind=GENERATE,
                role="expert",
                inputs=("prompts", "choices"),
                outputs=("answers",),
            ),
        ),
    )


def _scoring(name: str, role: str, key: str, settings: Settings) -> Call:
    return Call(name=name, kind=INFERENCE, role=role, inputs=("text",), outputs=(key,), scores=settings.scores)
