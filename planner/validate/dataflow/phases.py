"""E14 and E15: phases of published iterations that nothing was fitted on.

NeMo-RL 0.3 (NVIDIA-NeMo/RL issue 959: its announcement of 2025-07-21, and a user's run of the same recipes): GRPO over
OpenMathInstruct-2 on machines of eight H100, 64 prompts of 32 samples, 4 updates, at most 4096 tokens
(``examples/configs/grpo_math_8B_megatron.yaml``, ``grpo_math_8B.yaml``, ``grpo_math_70B_megatron.yaml``). Prompts of
that data set are what later releases count beyond the generated tokens. The constants of steps are those of later
releases (``planner.validate.dataflow.step_fit``).

OpenRLHF of February 2024 (openpsi-project/ReaLHF issue 10): PPO of CodeLlama-34B with a critic of 7B on 32 GPUs,
512 x (128 + 128) tokens, 4 updates. The author of that table keeps the scripts it was made with in a fork
(garrett4wade/OpenRLHF, ``sosp_benchmark.py`` and ``slurm_ray_launch.py``, the same at c8cc2f3 and 4264e57): who gets
how many GPUs, micro-batches, ZeRO-3, recomputation. Its clock is that of the actor's rank 0 (``ppo_trainer.py`` at
842806f, ``experience_maker.py`` at 05803fe). Every rank of the actor sends its sequences to one engine in one request,
engines work on one request at a time, and the actor's forward pass needs all its ranks: what rank 0 counts as inference
holds the generation that others still wait for. Hence both are judged together. What differs between totals of one
model at several output lengths, published beside them (arXiv:2406.14088v1), is decode steps: as many tokens are scored
and trained in each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from costmodels.lengths import fixed_length
from costmodels.model_calls import CallKind, ModelCall
from costmodels.plan import PlanBatch, Recompute
from planner.dataflow.call_costs import CallSetting, price_generation, price_plans
from planner.dataflow.strategies import strategies
from planner.validate.dataflow.nemo import priced_step
from planner.validate.dataflow.real import read_real, real_cluster, real_model
from planner.validate.dataflow.step_fit import packaged_steps
from planner.validate.dataflow.times import LARGEST_ERROR, LARGEST_MEAN_ERROR
from planner.validate.experiment import Experiment, mean_and_worst
from profiles.engines import find_engine
from profiles.stacks import find_stack
from profiles.units import GIGA

_CRITERION = f"mean error of phases at most {LARGEST_MEAN_ERROR:.0%}, none above {LARGEST_ERROR:.0%}; nothing fitted"
_PROMPT_TOKENS = 130  # 1562 tokens/s x 16 GPUs x 97.7 s / 2048 samples - 1060 of NeMo-RL 0.4, 127 of 0.5

Phases = dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NemoPhases:
    """One run of NeMo-RL 0.3.

    Attributes:
        label: What ran.
        model: Key of ``dataflow_nemo.RECIPES``.
        stack: Who trained.
        num_devices: H100s.
        layouts: [TP,PP] of generation and [TP,CP,EP,PP] of training, as the table of later releases writes them.
        tokens: Generated per sample on average.
        measured_s: Generation, training, log-probabilities, weight update, step.
    """

    label: str
    model: str
    stack: str
    num_devices: int
    layouts: tuple[str, str]
    tokens: int
    measured_s: tuple[float, float, float, float, float]


def _runs(
    label: str,
    model: str,
    stack: str,
    num_devices: int,
    layouts: tuple[str, str],
    announced: tuple[int, tuple[float, ...]],
    again: tuple[int, tuple[float, ...]],
) -> Iterator[NemoPhases]:
    for name, (tokens, seconds) in ((label, announced), (f"{label}, user", again)):
        generation, training, logprobs, update, step = seconds
        yield NemoPhases(
            label=name,
            model=model,
            stack=stack,
            num_devices=num_devices,
            layouts=layouts,
            tokens=tokens,
            measured_s=(generation, training, logprobs, update, step),
        )


NEMO_RUNS = (
    *_runs(
        "Llama-3.1-8B, Megatron-Core, 8 GPUs",
        "Llama-3.1-8B of 0.3",
        "megatron",
        8,
        ("[1,1]", "[1,1,1,2]"),
        (795, (58, 28, 18, 5, 112)),
        (811, (56, 27, 18, 8, 116)),
    ),
    *_runs(
        "Llama-3.1-8B, DTensor, 8 GPUs",
        "Llama-3.1-8B of 0.3, DTensor",
        "hf-trainer",
        8,
        ("[1,1]", "[1,1,1,1]"),
        (777, (57, 38, 19, 4, 122)),
        (802, (55, 40, 19, 6, 129)),
    ),
    *_runs(
        "Llama-3.1-70B, Megatron-Core, 64 GPUs",
        "Llama-3.1-70B of 0.3",
        "megatron",
        64,
        ("[4,1]", "[4,1,1,4]"),
        (398, (84, 28, 18, 14, 147)),
        (396, (87, 31, 20, 26, 178)),
    ),
)
_JUDGED = ("generation", "training", "log-probabilities")


def nemo_phases_s(run: NemoPhases) -> Phases:
    """Measured and predicted seconds of the phases of a run."""
    step_s, samples = run.measured_s[-1], 2048
    row = {
        "release": "v0.3",
        "system": "H100 BF16",
        "algorithm": "GRPO",
        "model": run.model,
        "policy": "On policy",
        "T_max_seqlen": "4096",
        "G_avg_seqlen": str(run.tokens),
        "gpus": str(run.num_devices),
        "G_GBS": str(samples),
        "T_GBS": "512",
        "gen_[TP,PP]": run.layouts[0],
        "train_[TP,CP,EP,PP,VPP]": run.layouts[1],
        "tokens_per_s_per_gpu": str((_PROMPT_TOKENS + run.tokens) * samples / (run.num_devices * step_s)),
        "step_time_s": str(step_s),
    }
    step = priced_step(row, run.stack)
    if isinstance(step, str):
        raise ValueError(f"{run.label}: {step}")
    constants = packaged_steps()
    predicted = (
        constants.parts_s(step)[0],
        constants.training_scale * step.train_s,
        constants.training_scale * step.logprobs_s,
        find_engine("vllm").update_s(step.tensors, step.weight_bytes, apart=False),
        constants.step_s(step),
    )
    names = (*_JUDGED, "weight update", "step")
    return dict(zip(names, zip(run.measured_s, predicted, strict=True), strict=True))


def nemo_phases() -> Experiment:
    """E14: phases of NeMo-RL 0.3, by constants fitted on whole steps of its later releases."""
    found = {run.label: nemo_phases_s(run) for run in NEMO_RUNS}
    mean, worst = mean_and_worst(_errors(found, _JUDGED))
    updates = [seconds["weight update"] for seconds in found.values()]
    shortest, longest = (f(measured / predicted for measured, predicted in updates) for f in (min, max))
    return Experiment(
        name="E14",
        title="Phases of NeMo-RL 0.3",
        criterion=_CRITERION,
        passed=mean <= LARGEST_MEAN_ERROR and worst <= LARGEST_ERROR,
        findings=(
            f"{', '.join(f'{name} {_summary(_errors(found, (name,)))}' for name in _JUDGED)}; together mean error "
            f"{mean:.0%}, worst {worst:.0%}. Whole steps {_summary(_errors(found, ('step',)))}.",
            "Llama-3.1-70B is in no fit; Llama-3.1-8B is there on 16 GPUs, with other lengths and layouts.",
            f"Weight updates took {shortest:.0f} to {longest:.0f} times as long as predicted: the constants are of the "
            "faster ways NeMo-RL announced a month later. They are not judged.",
            "A user's runs of the same recipes differ by up to 21 % in a step, 86 % in a weight update, 11 % in other "
            "phases; that user's machines are not described. Training under DTensor is priced as Hugging Face's model "
            "code, which it is, but none of its measured users shards with FSDP2. Llama-3.1-70B under DTensor is left "
            "out: its layout is not published.",
        ),
        header=("run", *(f"{name}: measured / predicted s" for name in next(iter(found.values())))),
        rows=tuple(
            (label, *(f"{measured:.0f} / {predicted:.1f}" for measured, predicted in seconds.values()))
            for label, seconds in found.items()
        ),
    )


def _errors(found: dict[str, Phases], names: tuple[str, ...]) -> list[float]:
    return [phases[name][1] / phases[name][0] - 1 for phases in found.values() for name in names]


def _summary(errors: list[float]) -> str:
    mean, worst = mean_and_worst(errors)
    return f"mean error {mean:.0%} (bias {np.mean(errors):+.0%}), worst {worst:.0%}"


# ReaLHF issue 10. Generation and inference are on rank 0's clock, see above.
OPENRLHF_S = {"generation": 5.25, "inference": 19.40, "training": 51.01}
_GPUS, _SEQUENCES, _UPDATES = 32, 512, 4
# device_partition of slurm_ray_launch.py for 34B with a critic of 7B, and its vllm_tp_size.
_ENGINE_GPUS, _ENGINE_TENSOR = 6, 2
_ENGINE = "vllm-0.3"  # of February 2024
# The same for a larger actor: GPUs of the actor, of the engines, and of one replica.
_ENGINES = {34: (16, _ENGINE_GPUS, _ENGINE_TENSOR), 70: (32, 12, 4)}
_EARLIER_REQUESTS = 4  # of 16 ranks to the four engines on 8 GPUs that slurm_ray_launch.py had at 0c0ad9f
_ACTOR_GPUS, _CRITIC_GPUS, _REFERENCE_GPUS, _REWARD_GPUS = 16, 4, 4, 2
_PER_RANK = _SEQUENCES // _ACTOR_GPUS  # of the actor: one request to an engine, and one to every other model
_ACTOR, _CRITIC = 34, 7


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRlhfSeconds:
    """Predicted seconds of the parts of one iteration.

    Attributes:
        request_s: One request to an engine: the sequences of one rank of the actor.
        requests: Requests that the engine with most of them serves, one after the other.
        scoring_s: From the last answer until the last model has scored it.
        training_s: Actor and critic at the same time, the slower of them.
    """

    request_s: float
    requests: int
    scoring_s: float
    training_s: float

    @property
    def experience_s(self) -> float:
        """Generation and inference of all sequences."""
        return self.requests * self.request_s + self.scoring_s


def openrlhf_seconds() -> OpenRlhfSeconds:
    """Parts of the iteration under the division of GPUs that ran.

    Reference, critic and reward model score the sequences of a rank as soon as it has them, so that only the last
    request to each remains after the last answer.
    """
    last_s = [
        _trainer_s(CallKind.INFERENCE, size, billions, _PER_RANK) / (_ACTOR_GPUS // size)
        for size, billions in (
            (_ACTOR_GPUS, _ACTOR),
            (_REFERENCE_GPUS, _ACTOR),
            (_CRITIC_GPUS, _CRITIC),
            (_REWARD_GPUS, _CRITIC),
        )
    ]
    per_update = _SEQUENCES // _UPDATES
    return OpenRlhfSeconds(
        request_s=_request_s(_ACTOR, _ENGINE_TENSOR, _PER_RANK, 128),
        requests=_requests(_ACTOR),
        scoring_s=max(last_s),
        training_s=max(
            _trainer_s(CallKind.TRAIN, size, billions, per_update // size)
            for size, billions in ((_ACTOR_GPUS, _ACTOR), (_CRITIC_GPUS, _CRITIC))
        ),
    )


def _setting() -> CallSetting:
    return CallSetting(cluster=real_cluster(_GPUS), stack=find_stack("deepspeed"), engines=(_ENGINE,))


def _call(kind: CallKind, billions: int, sequences: int, output_tokens: int = 128) -> ModelCall:
    return ModelCall(
        kind=kind,
        num_sequences=sequences,
        prompt_tokens=128,
        output=fixed_length(output_tokens),
        mini_batches=_UPDATES if kind is CallKind.TRAIN else 1,
        value_head=billions == _CRITIC,
    )


def _requests(billions: int) -> int:
    """Requests that the engine with most of them serves."""
    actor_gpus, engine_gpus, tensor = _ENGINES[billions]
    return -(-actor_gpus // (engine_gpus // tensor))


def openrlhf_steps_s(folder: Path) -> Phases:
    """Measured and predicted seconds of a decode step, from totals of neighbouring output lengths.

    Every engine takes its requests in turn, so that each token more of an answer is as many steps as it has requests.
    """
    rows = [row for row in read_real(folder, "OpenRLHF") if row.mode == "scale_actor" and row.actor in _ENGINES]
    found: Phases = {}
    for shorter, longer in pairwise(sorted(rows, key=lambda row: (row.actor, row.output_tokens))):
        if shorter.actor != longer.actor:
            continue
        actor_gpus, _, tensor = _ENGINES[longer.actor]
        tokens = longer.output_tokens - shorter.output_tokens
        took = [
            _request_s(row.actor, tensor, row.num_sequences // actor_gpus, row.output_tokens)
            for row in (shorter, longer)
        ]
        measured_s = (longer.time_s - shorter.time_s) / (_requests(longer.actor) * tokens)
        name = f"decode step, {longer.actor}B, {shorter.output_tokens} to {longer.output_tokens} tokens"
        found[name] = (measured_s, (took[1] - took[0]) / tokens)
    return found


@lru_cache(maxsize=16)
def _request_s(billions: int, tensor: int, sequences: int, output_tokens: int) -> float:
    """Seconds of one request to an engine, all its sequences at once."""
    setting, engine = _setting(), find_engine(_ENGINE)
    call = _call(CallKind.GENERATE, billions, sequences, output_tokens)
    at_once = min(engine.prefill_tokens // call.prompt_tokens, sequences)
    plans = PlanBatch.from_columns(1, tensor_parallel=tensor, micro_batch_size=at_once)
    table = price_generation(plans, call, real_model(billions), setting, engine)
    return float(table.time_s.min())


@lru_cache(maxsize=64)
def _trainer_s(kind: CallKind, size: int, billions: int, micro_batch: int) -> float:
    """Seconds of one call of all sequences on so many GPUs, ZeRO-3; infinite where it does not fit."""
    setting, call = _setting(), _call(kind, billions, _SEQUENCES)
    model = call.model(real_model(billions))
    plans = strategies(model, call, size, stack=setting.stack, domain_devices=8)
    ours = (plans.tensor_parallel == 1) & (plans.pipeline_parallel == 1) & (plans.zero_stage == 3)
    ours &= plans.micro_batch_size == micro_batch
    if kind is CallKind.TRAIN:
        ours &= plans.recompute == int(Recompute.FULL)
    table = price_plans(plans.take(np.flatnonzero(ours)), call, model, setting)
    fits = table.peak_bytes <= setting.cluster.device.usable_memory_bytes
    return float(table.time_s[fits].min(initial=np.inf))


def openrlhf_phases(folder: Path) -> Experiment:
    """E15: phases of OpenRLHF with the division of GPUs and the micro-batches that ran.

    Args:
        folder: The published runs (``PLANNER_DATA``/rlhf).
    """
    found = openrlhf_seconds()
    limit = find_stack("deepspeed").scale_out_group_bytes_per_s / GIGA
    steps = openrlhf_steps_s(folder)
    pairs = {
        "generation and inference": (OPENRLHF_S["generation"] + OPENRLHF_S["inference"], found.experience_s),
        "training": (OPENRLHF_S["training"], found.training_s),
        **steps,
    }
    step_errors = [predicted / measured - 1 for measured, predicted in steps.values()]
    left_s = OPENRLHF_S["generation"] + OPENRLHF_S["inference"] - found.requests * 128 * next(iter(steps.values()))[0]
    earlier_s = _EARLIER_REQUESTS * found.request_s + found.scoring_s
    mean, worst = mean_and_worst([predicted / measured - 1 for measured, predicted in pairs.values()])
    return Experiment(
        name="E15",
        title="Phases of OpenRLHF (ReaLHF issue 10)",
        criterion=_CRITERION,
        passed=mean <= LARGEST_MEAN_ERROR and worst <= LARGEST_ERROR,
        findings=(
            f"Mean error {mean:.0%}, worst {worst:+.0%}.",
            f"As the author's own scripts divide the GPUs (garrett4wade/OpenRLHF): vLLM {_ENGINE_GPUS} in replicas of "
            f"{_ENGINE_TENSOR}, actor {_ACTOR_GPUS}, critic {_CRITIC_GPUS}, reference {_REFERENCE_GPUS}, reward "
            f"{_REWARD_GPUS}; micro-batches are theirs too. Only the GPU is assumed, an A100.",
            f"Measured on the clock of one rank, whose answers took {OPENRLHF_S['generation']} s; one request to an "
            f"engine is predicted to take {found.request_s:.1f} s. {found.requests} ranks share an engine, which "
            "serves one request at a time (OpenRLHF issue 188, pull request 507), and what the others wait for is on "
            "the clock as inference. So both are judged together: all requests in turn, and the forward pass of the "
            "actor after them.",
            f"Totals at three output lengths bear that out: decode steps {_summary(step_errors)}. By them, steps leave "
            f"{left_s:.1f} s for everything else in generation and inference.",
            f"Rank 0's clocks do not add up with that: the last of {found.requests} requests of "
            f"{OPENRLHF_S['generation']} s each ends after both. With an earlier division of the script (0c0ad9f, for "
            f"prompts of 256 tokens), {_EARLIER_REQUESTS} ranks to an engine, they do, and {earlier_s:.1f} s are "
            "predicted, but steps took half as long again as predicted. The division for these lengths is judged.",
            f"ZeRO-3 between two machines over one adapter each is at DeepSpeed's own limit, {limit:.0f} GB/s whatever "
            "the adapters, fitted on its other runs, on machines with more of them. That it is a limit and no share of "
            "the adapters was seen in this run and in how little ZeRO-3 scaled in arXiv:2104.04473: as a share, fitted "
            "on the same runs, training was predicted to take 246 s.",
            "The weight update, 8.34 s, is where the engine's constant for it comes from and judges nothing; 10.92 s "
            "of data transfer and overhead are not predicted.",
            "DeepSpeed-Chat publishes phases as pictures only, of the largest batches that fit, which are not named; a "
            "user's run (OpenRLHF issue 327) has seconds, but its lengths are not known here, nor those of TRL's "
            "reports (issue 2971, pull request 3162). None of them judges.",
        ),
        header=("phase", "measured s", "predicted s", "error"),
        rows=tuple(
            (name, f"{measured:.3g}", f"{predicted:.3g}", f"{predicted / measured - 1:+.0%}")
            for name, (measured, predicted) in pairs.items()
        ),
    )
