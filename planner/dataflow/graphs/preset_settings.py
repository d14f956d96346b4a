"""What the workflows known by name let a user change, and the call with which they train a role."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from costmodels.workload import ADAPTER_TASKS, TASKS
from planner.dataflow.graphs.checks import check_one_of
from planner.dataflow.graphs.graph import EXTERNAL, MAX_FACTOR, MAX_LATENCY_S, MAX_SCORES, MAX_SEQUENCES, TRAIN, Call
from planner.dataflow.graphs.roles import LANGUAGE_HEAD, MAX_SKEW, Role
from planner.dataflow.residency import MAX_EXPERTS
from planner.question.lora import adapters_of, merged_fields
from profiles.errors import SpecError, check_between

MODEL_REWARD = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of presets; each preset takes some of them.

    Attributes:
        group_size: Responses per prompt.
        mini_batches: Optimizer steps per iteration.
        kl: Whether a frozen reference scores the responses.
        old_logprobs: Whether the actor, before it trains, computes the log-probabilities of the responses once more in
            the trainer, as verl (``old_log_prob``), NeMo-RL (``prev_logprobs``) and OpenRLHF (``action_log_probs``)
            do; otherwise training takes those of the engine, as verl's ``rollout_correction.bypass_mode``.
        reward: ``model`` (a reward model on devices) or ``external`` (a verifier beside them).
        latency_s: Seconds an external verifier, judge or labeller takes per sequence.
        concurrency: Sequences it handles at once.
        oversampling: Prompts generated per prompt trained on, at least 1.
        task: ``full``, ``lora`` or ``qlora``: how the policy is trained. With adapters its own weights, adapters off,
            are the reference, as in TRL (``null_ref_context``) and verl (``ref_in_actor``).
        lora_rank: Rank of the adapters of ``lora`` and ``qlora``; None for the usual one.
        lora_targets: Layers that carry one, in words with commas between or a list; None for the usual ones.
        pretrain_loss: Whether a pre-training batch of the same size is trained on too.
        copy_share: Share of the policy that goes into the reference per iteration.
        copy_every: Iterations between two refreshes of the reference.
        tree_depth: Levels of a tree of responses.
        tree_branches: Branches at each level.
        prefetch: Iterations a teacher may run ahead of its student.
        scores: Numbers a teacher hands on per token; 0 for the whole vocabulary.
        experts: Models of one shape behind a router.
        skew: Exponent of Zipf's law of how often each is needed; 0 for all alike.
    """

    group_size: int = 1
    mini_batches: int = 1
    kl: bool = True
    old_logprobs: bool = False
    reward: str = MODEL_REWARD
    latency_s: float = 0.0
    concurrency: int = 1024
    oversampling: Fraction = Fraction(1)
    task: str = "full"
    lora_rank: int | None = None
    lora_targets: str | list[Any] | None = None
    pretrain_loss: bool = False
    copy_share: float = 1.0
    copy_every: int = 1
    tree_depth: int = 3
    tree_branches: int = 2
    prefetch: int = 1
    scores: int = 0
    experts: int = 1
    skew: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("group_size", MAX_FACTOR), ("mini_batches", MAX_SEQUENCES), ("tree_depth", 10)):
            check_between(f"job.{name}", getattr(self, name), 1, most)
        check_between("job.experts", self.experts, 1, MAX_EXPERTS)
        check_between("job.skew", self.skew, 0, MAX_SKEW)
        check_between("job.tree_branches", self.tree_branches, 2, 16)
        check_between("job.concurrency", self.concurrency, 1, MAX_SEQUENCES)
        check_between("job.copy_every", self.copy_every, 1, 1 << 20)
        check_between("job.prefetch", self.prefetch, 0, 64)
        check_between("job.scores", self.scores, 0, MAX_SCORES)
        check_between("job.oversampling", self.oversampling, 1, 64)
        if not 0 <= self.latency_s <= MAX_LATENCY_S:
            raise SpecError("job.latency_s", f"must be between 0 and {MAX_LATENCY_S:g}; got {self.latency_s:g}")
        if not 0 < self.copy_share <= 1:
            raise SpecError("job.copy_share", f"must be above 0 and at most 1; got {self.copy_share:g}")
        for name, known in (("reward", (MODEL_REWARD, EXTERNAL)), ("task", TASKS)):
            check_one_of(f"job.{name}", getattr(self, name), known)
        adapters_of(self.task, rank=self.lora_rank, targets=self.lora_targets)
        if self.tree_branches**self.tree_depth > MAX_FACTOR:
            leaves = self.tree_branches**self.tree_depth
            raise SpecError("job.tree_depth", f"gives {leaves} leaves; at most {MAX_FACTOR}", "a smaller tree")

    def trained(self, name: str, *, like: str = "", head: str = LANGUAGE_HEAD) -> Role:
        """The role of that name, trained as the settings say."""
        return Role(name=name, like=like, head=head, task=self.task, lora=self._lora)

    @property
    def _lora(self) -> dict[str, Any]:
        return merged_fields(None, {"rank": self.lora_rank, "targets": self.lora_targets})

    @property
    def reference(self) -> str:
        """Role whose weights are the frozen reference."""
        return "actor" if self.task in ADAPTER_TASKS else "ref"


def training(name: str, role: str, inputs: tuple[str, ...], settings: Settings, factor: Fraction = Fraction(1)) -> Call:
    """The call that trains a role, in as many optimizer steps as the settings say."""
    return Call(name=name, kind=TRAIN, role=role, inputs=inputs, factor=factor, mini_batches=settings.mini_batches)


def service(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], settings: Settings, factor: Fraction) -> Call:
    """The call of a service beside the devices, as slow as the settings say."""
    return Call(
        name=name,
        kind=EXTERNAL,
        inputs=inputs,
        outputs=outputs,
        factor=factor,
        latency_s=settings.latency_s,
        # How many sequences it takes at once means nothing where none of them takes time.
        concurrency=settings.concurrency if settings.latency_s else 1,
    )
