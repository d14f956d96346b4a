"""Workflows in which a policy learns from what it generates.

Each function returns the graph of one family; sources are listed in ``planner.dataflow.graphs.presets``.
Data keys name what moves: token ids, one number per token (log-probabilities, values) or per sequence.
"""

from dataclasses import replace
from fractions import Fraction

from planner.dataflow.graphs.graph import GENERATE, INFERENCE, Call, Dataflow
from planner.dataflow.graphs.preset_settings import MODEL_REWARD, Settings, service, training
from planner.dataflow.graphs.roles import VALUE_HEAD, Role, RoleCopy

_RESPONSES = ("sequences", "logprobs")


def ppo(settings: Settings) -> Dataflow:
    """Generate; score with reward, reference and critic; train actor and critic."""
    return _ppo(settings, settings.reference)


def _ppo(settings: Settings, reference: str) -> Dataflow:
    signals, scoring, roles = _scores(settings, Fraction(1), critics=("critic",), reference=reference)
    inputs = (*_RESPONSES, *signals)
    return Dataflow(
        name="ppo",
        roles=(_actor(settings), *roles),
        calls=(
            _generation(Fraction(1)),
            *scoring,
            training("actor_train", "actor", inputs, settings),
            training("critic_train", "critic", inputs, settings),
        ),
    )


def ppo_ema(settings: Settings) -> Dataflow:
    """PPO; after training, the reference, which has weights of its own, moves towards the actor."""
    graph = _ppo(settings, "ref")
    if not settings.kl:
        return graph
    return Dataflow(
        name="ppo-ema",
        roles=tuple(replace(role, stays=True) if role.name == "ref" else role for role in graph.roles),
        calls=graph.calls,
        copies=(RoleCopy(source="actor", target="ref", share=settings.copy_share),),
    )


def safe_rlhf(settings: Settings) -> Dataflow:
    """PPO with costs: a cost model and a cost critic, and a pre-training loss if wanted."""
    signals, scoring, roles = _scores(settings, Fraction(1), critics=("critic", "cost_critic"))
    cost = _inference("cost_inf", "cost", ("sequences",), ("costs",), Fraction(1))
    inputs = (*_RESPONSES, *signals, "costs")
    calls = [
        _generation(Fraction(1)),
        *scoring,
        cost,
        training("actor_train", "actor", inputs, settings),
        training("critic_train", "critic", inputs, settings),
        training("cost_critic_train", "cost_critic", inputs, settings),
    ]
    dataset: tuple[str, ...] = ("prompts",)
    if settings.pretrain_loss:
        # One step on the sum of both losses: as many pre-training sequences again.
        dataset = ("prompts", "pretrain_text")
        place = next(index for index, call in enumerate(calls) if call.name == "actor_train")
        calls[place] = replace(calls[place], inputs=(*inputs, "pretrain_text"), factor=Fraction(2))
    cost_role = Role(name="cost", like="cost_critic", head=VALUE_HEAD)
    return Dataflow(name="safe-rlhf", roles=(_actor(settings), *roles, cost_role), calls=tuple(calls), dataset=dataset)


def group_relative(settings: Settings) -> Dataflow:
    """GRPO, RLOO, REINFORCE++ and DAPO: no critic; the reward of a response is compared with others'."""
    trained = Fraction(settings.group_size)
    sampled = trained * settings.oversampling
    signals, scoring, roles = _scores(settings, trained, rewarded=sampled)
    return Dataflow(
        name="grpo",
        roles=(_actor(settings), *roles),
        calls=(
            _generation(sampled, settings.group_size),
            *scoring,
            training("actor_train", "actor", (*_RESPONSES, *signals), settings, trained),
        ),
    )


def remax(settings: Settings) -> Dataflow:
    """A sampled and a greedy response per prompt, the reward of the second as baseline of the first."""
    sampled, greedy = ("sequences", "logprobs"), ("greedy_sequences",)
    signals, scoring, roles = _scores(settings, Fraction(1))
    baseline = _reward("greedy_reward", settings, greedy, ("baselines",), Fraction(1))
    return Dataflow(
        name="remax",
        roles=(_actor(settings), *roles),
        calls=(
            Call(name="sample_gen", kind=GENERATE, role="actor", inputs=("prompts",), outputs=sampled),
            Call(name="greedy_gen", kind=GENERATE, role="actor", inputs=("prompts",), outputs=greedy),
            *scoring,
            baseline,
            training("actor_train", "actor", (*_RESPONSES, *signals, "baselines"), settings),
        ),
    )


def distill_on_policy(settings: Settings) -> Dataflow:
    """The student generates, the teacher scores, the student trains."""
    group = Fraction(settings.group_size)
    return Dataflow(
        name="distill-on-policy",
        roles=(settings.trained("student"), Role(name="teacher", stays=True)),
        calls=(
            Call(
                name="student_gen",
                kind=GENERATE,
                role="student",
                inputs=("prompts",),
                outputs=("sequences",),
                factor=group,
                group=settings.group_size,
            ),
            replace(
                _inference("teacher_inf", "teacher", ("sequences",), ("teacher_logprobs",), group),
                scores=settings.scores,
            ),
            training("student_train", "student", ("sequences", "teacher_logprobs"), settings, group),
        ),
    )


def multi_round_dpo(settings: Settings) -> Dataflow:
    """Two responses per prompt, judged; DPO against a reference that is refreshed between rounds."""
    pair = Fraction(2)
    judge = _reward("judge", settings, ("sequences",), ("preferences",), pair)
    roles = [_actor(settings), Role(name="ref", like="actor")]
    if settings.reward == MODEL_REWARD:
        roles.append(Role(name="reward", like="actor", head=VALUE_HEAD))
    return Dataflow(
        name="mrdpo",
        roles=tuple(roles),
        calls=(
            _generation(pair, 2),
            judge,
            _inference("ref_inf", "ref", ("sequences",), ("ref_logprobs",), pair),
            training("actor_train", "actor", ("sequences", "preferences", "ref_logprobs"), settings, pair),
        ),
        copies=(RoleCopy(source="actor", target="ref", every=settings.copy_every),),
    )


def raft(settings: Settings) -> Dataflow:
    """Generate a group, keep the best response, train on it as supervised data."""
    graph = best_of_n(settings)
    roles = tuple(_actor(settings) if role.name == "actor" else role for role in graph.roles)
    train = training("sft_train", "actor", ("sequences", "rewards"), settings)
    return Dataflow(name="raft", roles=roles, calls=(*graph.calls, train))


def best_of_n(settings: Settings) -> Dataflow:
    """Generate a group and score it; choosing costs nothing."""
    group = Fraction(settings.group_size)
    roles = [Role(name="actor")]
    if settings.reward == MODEL_REWARD:
        roles.append(Role(name="reward", like="actor", head=VALUE_HEAD))
    reward = _reward("reward_inf", settings, ("sequences",), ("rewards",), group)
    return Dataflow(name="best-of-n", roles=tuple(roles), calls=(_generation(group, settings.group_size), reward))


def _actor(settings: Settings) -> Role:
    return settings.trained("actor")


def _generation(factor: Fraction, group: int = 1) -> Call:
    return Call(
        name="actor_gen",
        kind=GENERATE,
        role="actor",
        inputs=("prompts",),
        outputs=_RESPONSES,
        factor=factor,
        group=group,
    )


def _inference(name: str, role: str, inputs: tuple[str, ...], outputs: tuple[str, ...], factor: Fraction) -> Call:
    return Call(name=name, kind=INFERENCE, role=role, inputs=inputs, outputs=outputs, factor=factor)


def _reward(name: str, settings: Settings, inputs: tuple[str, ...], outputs: tuple[str, ...], factor: Fraction) -> Call:
    """Scores by a reward model on devices, or by a service beside them."""
    if settings.reward == MODEL_REWARD:
        return _inference(name, "reward", inputs, outputs, factor)
    return service(name, inputs, outputs, settings, factor)


def _scores(
    settings: Settings,
    factor: Fraction,
    *,
    rewarded: Fraction | None = None,
    critics: tuple[str, ...] = (),
    reference: str = "",
) -> tuple[tuple[str, ...], list[Call], list[Role]]:
    """The signals training needs, the calls that make them and the roles those use.

    Args:
        settings: Whether there is a reference, what rewards, and who computes log-probabilities.
        factor: Sequences per item that are trained on.
        rewarded: Sequences per item that get a reward, if more.
        critics: Value models, each with an inference of its own.
        reference: Role that is the reference; "" for what the settings say.
    """
    reference = reference or settings.reference
    signals, calls, roles = ["rewards"], [], []
    calls.append(_reward("reward_inf", settings, ("sequences",), ("rewards",), rewarded or factor))
    # Groups that survive are known only once rewards are there, so oversampled workflows score them after.
    scored = ("sequences", "rewards") if rewarded is not None and rewarded > factor else ("sequences",)
    for critic in critics:
        value = f"{critic}_values"
        calls.append(_inference(f"{critic}_inf", critic, scored, (value,), factor))
        roles.append(Role(name=critic, like="actor" if critic == critics[0] else critics[0], head=VALUE_HEAD))
        signals.append(value)
    if settings.reward == MODEL_REWARD:
        roles.append(Role(name="reward", like=critics[0] if critics else "actor", head=VALUE_HEAD))
    if settings.old_logprobs:
        # The weights of this iteration's generation, or, where that runs ahead, those it is about to train.
        calls.append(_inference("actor_inf", "actor", scored, ("old_logprobs",), factor))
        signals.append("old_logprobs")
    if settings.kl:
        calls.append(_inference("ref_inf", reference, scored, ("ref_logprobs",), factor))
        if reference != "actor":
            roles.append(Role(name=reference, like="actor"))
        signals.append("ref_logprobs")
    return tuple(signals), calls, roles
