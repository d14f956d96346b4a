"""One call of a model inside a dataflow, and what it costs on so many devices with one strategy.

A workflow such as PPO consists of a few calls per iteration: generate, infer, train. What a call computes is a
``ModelCall``; ``CallTable`` holds a row for every way to run it. Searches pick rows, they never price.
"""

from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

import numpy as np

from costmodels.lengths import OutputLengths
from costmodels.plan import ZERO_OF_WEIGHTS, FloatArray, IntArray, PlanBatch
from costmodels.workload import MAX_GLOBAL_BATCH, LoraSpec
from profiles.errors import SpecError
from profiles.model import MAX_SEQUENCE, ModelSpec, with_value_head

MAX_MINI_BATCHES = 4096
MAX_BATCHES_IN_FLIGHT = 64
MAX_SAMPLES_PER_PROMPT = 4096
READY_PARTS = 16  # of the responses, for those that read them as they end
_TOKEN_UNIT = 16  # sequences are padded to multiples of it, so that ranks can share them


class CallKind(StrEnum):
    """What a call does with its model."""

    GENERATE = "generate"
    INFERENCE = "inference"  # one forward pass over whole sequences
    TRAIN = "train"  # forward, backward and an optimizer step per mini-batch


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """What one call of a model computes per iteration, wherever it runs.

    Attributes:
        kind: Generation, inference or training.
        num_sequences: Sequences per iteration over all ranks, all samples of a prompt counted.
        prompt_tokens: Tokens of a prompt.
        output: Tokens generated per sequence; None where nothing was generated (offline data, prompts only).
        mini_batches: Optimizer steps one iteration is cut into, one after the other (training only).
        samples_per_prompt: Sequences that share one prompt; their prompt can be read once (generation only).
        value_head: The model gives one number per token (critics, reward models; served, embeddings and the like).
        precision: Recipe name, see ``profiles.precision``.
        task: ``full``, ``lora`` or ``qlora``: what is trained; of inference ``qlora`` where it runs on the 4-bit
            weights beside which adapters train, else ``full``.
        lora: Adapters of ``lora`` and ``qlora``; nothing to ``full``.
        carried_over: Further iterations a sequence may go on in after the one it began in, its cache computed anew
            with the weights of each (generation only); 0 where a call ends with its last sequence.
        in_flight: New weights arrive while sequences run, and the next call fills the slots that the last sequences
            of this one leave (generation only).
        batches_in_flight: Calls whose sequences may run at once, where ``in_flight``.
        keeps_cache: Keys and values of older weights stay when new ones arrive, rather than being computed anew.
        score_bytes_per_token: Bytes it reads per token beside the tokens, such as a teacher's scores of a part of the
            vocabulary; on the device while a micro-batch is worked on (inference and training only).
        vocabulary_bytes_per_token: The same of scores of the whole vocabulary, which tensor-parallel ranks share.
        linear_cross_entropy: Loss or log-probabilities take the output layer into themselves, a few tokens at a time
            (inference and training only).
        attention_library: Whose fused attention runs, as ``TrainingJob.attention_library`` (inference and training
            only); empty for the one the stack picks.
        read_early: Others read sequences as they end, so that ways to run the call differ in when (generation only).
    """

    kind: CallKind
    num_sequences: int
    prompt_tokens: int
    output: OutputLengths | None = None
    mini_batches: int = 1
    samples_per_prompt: int = 1
    value_head: bool = False
    precision: str = "bf16"
    task: str = "full"
    lora: LoraSpec = field(default_factory=LoraSpec)
    carried_over: int = 0
    in_flight: bool = False
    batches_in_flight: int = 1
    keeps_cache: bool = False
    read_early: bool = False
    score_bytes_per_token: float = 0.0
    vocabulary_bytes_per_token: float = 0.0
    linear_cross_entropy: bool = False
    attention_library: str = ""

    def __post_init__(self) -> None:
        bounds = {
            "num_sequences": MAX_GLOBAL_BATCH,
            "prompt_tokens": MAX_SEQUENCE,
            "mini_batches": MAX_MINI_BATCHES,
            "samples_per_prompt": MAX_SAMPLES_PER_PROMPT,
            "batches_in_flight": MAX_BATCHES_IN_FLIGHT if self.in_flight else 1,
        }
        for name, largest in bounds.items():
            value = getattr(self, name)
            if not 1 <= value <= largest:
                raise SpecError(f"call.{name}", f"must be between 1 and {largest}; got {value}")
        if self.carried_over < 0:
            raise SpecError("call.carried_over", f"must be at least 0; got {self.carried_over}")
        if self.carried_over and self.in_flight:
            raise SpecError("call.in_flight", "leaves nothing to carry over", "carried_over 0, or not in_flight")
        if self.kind is CallKind.GENERATE and self.output is None:
            raise SpecError("call.output", "is needed: how many tokens a generation call generates")
        if self.task not in ("full", "lora", "qlora"):
            raise SpecError("call.task", f"unknown value {self.task[:40]!r}", "use one of full, lora, qlora")
        if self.num_sequences % self.mini_batches:
            problem = f"must divide the {self.num_sequences} sequences; got {self.mini_batches}"
            raise SpecError("call.mini_batches", problem, "a divisor of the batch")

    @property
    def sequence_tokens(self) -> int:
        """Tokens of a whole sequence on average, padded so that ranks can share them."""
        tokens = self.prompt_tokens + (self.output.mean if self.output is not None else 0.0)
        return min(int(-(-tokens // _TOKEN_UNIT)) * _TOKEN_UNIT, MAX_SEQUENCE)

    def model(self, model: ModelSpec) -> ModelSpec:
        """The model as the call uses it: with the head it needs."""
        return with_value_head(model) if self.value_head and not model.value_head else model


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTable:
    """Ways to run one call: R rows, every column of length R.

    Memory is that of the fullest rank. Adding ``static_bytes`` of all calls on a device and the largest
    ``active_bytes`` among them gives the device's peak: ``static_bytes`` is the most any stage holds throughout,
    ``active_bytes`` what the fullest stage takes beyond that while the call runs.

    Attributes:
        engines: Names of engines; ``engine`` indexes them.
        engine: Who runs the call.
        plans: Degrees, micro-batches, recomputation and sharding.
        concurrent: Sequences in flight per replica (generation), else 0.
        time_s: Seconds of the call, all its mini-batches.
        low_s, high_s: 90 % interval.
        static_bytes: Held between calls: weights, and for training also gradients and optimizer states.
        weight_bytes: The part of ``static_bytes`` that is weights in computing precision: what a second call of
            the same role with the same layout shares, and what a reallocation moves.
        active_bytes: Beyond that while the call runs: activations, logits, key/value cache, buffers, context.
        offloadable_bytes: The part of ``static_bytes`` that may lie in host memory between calls.
        basis: Weakest ``kernels.calls.Basis`` among the prices.
        ready: (R, READY_PARTS) when each part of the sequences has ended, as a share of ``time_s``; the last part
            after it where the next call begins before this one's last sequence ends. None where nobody asks.
    """

    engines: tuple[str, ...]
    engine: IntArray
    plans: PlanBatch
    concurrent: IntArray
    time_s: FloatArray
    low_s: FloatArray
    high_s: FloatArray
    static_bytes: FloatArray
    weight_bytes: FloatArray
    active_bytes: FloatArray
    offloadable_bytes: FloatArray
    basis: IntArray
    ready: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.time_s)

    @property
    def num_devices(self) -> IntArray:
        """(R,) devices each row occupies."""
        return self.plans.num_devices

    @property
    def peak_bytes(self) -> FloatArray:
        """(R,) a device's peak where no other call holds anything on it."""
        return self.static_bytes + self.active_bytes

    def take(self, rows: Any) -> "CallTable":
        """The selected rows."""
        columns: dict[str, Any] = {
            item.name: getattr(self, item.name)[rows]
            for item in fields(self)
            if item.name not in ("engines", "plans", "ready")
        }
        ready = None if self.ready is None else self.ready[rows]
        return CallTable(engines=self.engines, plans=self.plans.take(rows), ready=ready, **columns)

    def scaled(self, factor: float) -> "CallTable":
        """The same ways with all times so many times as long."""
        return replace(self, time_s=self.time_s * factor, low_s=self.low_s * factor, high_s=self.high_s * factor)

    def layout(self) -> IntArray:
        """(R, 12) what decides where which weights lie.

        Devices, engine, degrees (tensor, pipeline, data, context, expert and expert-tensor), layers of first and last
        stage, whether ranks share weights (ZeRO-3) and how many do. Virtual stages are left out: a pass without
        gradients takes the layers of a stage in any order, and so follows whoever trains the weights.
        """
        plans, shared = self.plans, self.plans.zero_stage == ZERO_OF_WEIGHTS
        columns = (
            self.num_devices,
            self.engine,
            plans.tensor_parallel,
            plans.pipeline_parallel,
            plans.data_parallel,
            plans.context_parallel,
            plans.expert_parallel,
            plans.expert_tensor_parallel,
            plans.first_stage_layers,
            plans.last_stage_layers,
            shared,
            np.where(shared, plans.zero_shard_degree, 0),
        )
        return np.stack(columns, axis=1)


def concatenated(tables: list[CallTable]) -> CallTable:
    """One table with the rows of all; their engines joined.

    Raises:
        ValueError: If there is none.
    """
    if not tables:
        raise ValueError("no tables")
    from costmodels.plan import concatenate

    engines = tuple(dict.fromkeys(name for table in tables for name in table.engines))
    columns: dict[str, Any] = {
        item.name: np.concatenate([getattr(table, item.name) for table in tables])
        for item in fields(CallTable)
        if item.name not in ("engines", "engine", "plans", "ready")
    }
    ready = [table.ready for table in tables if table.ready is not None]
    codes = [np.asarray([engines.index(name) for name in table.engines])[table.engine] for table in tables]
    return CallTable(
        engines=engines,
        engine=np.concatenate(codes),
        plans=concatenate([table.plans for table in tables]),
        ready=np.concatenate(ready) if ready else None,
        **columns,
    )
