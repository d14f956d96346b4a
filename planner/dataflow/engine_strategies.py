"""Every way an engine can lay a generation call out: replicas of a tensor- and pipeline-parallel group each.

Engines split heads, never sequences, over ranks; experts are spread over the ranks of the tensor-parallel group, whole
or by width, or whole over those of several groups, each with sequences of its own (``PlanBatch.attention_groups``). A
tensor-parallel group spans one scale-up domain or several whole ones: the largest models fit no other way. The trainer
generates with the layouts its framework accepts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.model_calls import ModelCall
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch
from costmodels.serving.generation import GenerationMemory
from planner.dataflow.strategies import WAIVED_WITHOUT_TRAINING, Columns, degrees, training_job
from planner.rules.base import Setting
from planner.rules.indexer import shares_choices
from planner.space.constraints import rules_for, sieve
from profiles.engines import TRAINER, EngineSpec
from profiles.model import ModelSpec
from profiles.stack import StackSpec

_LEVELS = 7  # from what fits down to a 64th of it
_MOST_DOMAINS = 8  # scale-up domains one tensor-parallel group may span: 64 devices (NeMo-RL runs DeepSeek-V3 so)


def engine_strategies(
    model: ModelSpec,
    call: ModelCall,
    sizes: Sequence[int],
    engine: EngineSpec,
    *,
    stack: StackSpec,
    domain_devices: int,
) -> PlanBatch:
    """Layouts of a generation call on each number of devices; ``micro_batch_size`` prompts are read at once.

    Args:
        model: Heads, widths and experts are read.
        call: Its sequences are shared out over replicas.
        sizes: Numbers of devices.
        engine: Who generates.
        stack: Whose rules apply when that is the trainer, with what its model code asks for.
        domain_devices: Devices per scale-up domain.
    """
    span = 1 if engine.name == TRAINER else _MOST_DOMAINS
    columns = degrees(
        model,
        sizes,
        domain_devices=domain_devices,
        domains=span,
        cuts_spread_experts=engine.cuts_spread_experts,
    )
    p, d = columns["pipeline_parallel"], columns["data_parallel"]
    keep = d <= call.num_sequences
    if not engine.splits_stages:
        keep &= p == 1
    if engine.name != TRAINER:
        keep &= _engine_accepts(model, columns, engine)
    keep &= engine.knows(model)
    columns = {name: column[keep] for name, column in columns.items()}
    per_replica = -(-call.num_sequences // columns["data_parallel"])
    at_once = np.minimum(max(engine.prefill_tokens // call.prompt_tokens, 1), per_replica)
    plans = PlanBatch.from_columns(
        len(at_once), **columns, micro_batch_size=at_once, num_microbatches=-(-per_replica // at_once)
    )
    if engine.name != TRAINER:
        return plans
    setting = Setting.of_stack(model, training_job(call), stack, num_devices=max(sizes))
    rules = [rule for rule in rules_for(stack.framework) if rule.name not in WAIVED_WITHOUT_TRAINING]
    accepted, _ = sieve(plans, setting, rules)
    return plans.take(np.flatnonzero(accepted))


def _engine_accepts(model: ModelSpec, columns: Columns, engine: EngineSpec) -> BoolArray:
    """(N,) whether the engine loads the model so.

    Source:
        vLLM ``ModelConfig.verify_with_parallel_config``: tp divides the attention heads; ``QKVParallelLinear``: tp
        divides the key/value heads or is a multiple of them; ``divide`` of the MLP width. Of vocabularies:
        ``EngineSpec.vocabulary_multiple``.
        Linear attention: ``divide`` of its heads in ``mamba_utils.py``, where a single group of keys goes to all ranks.
        Experts: ``FusedMoEParallelConfig``: expert parallelism takes the whole tensor-parallel group, or none of it
        (elsewhere part of it too, ``EngineSpec.cuts_spread_experts``); with data-parallel attention, those of all
        groups, which some engines make of single ranks.
        Compressed keys: groups of the output's product of low rank are shared out whole (``n_local_groups`` of vLLM's
        models/deepseek_v4/attention.py). Stages: ``EngineSpec.compressed_stages``.
        Layers that take the choice of keys of a layer before (``planner.rules.indexer``) are not cut off from it.
    """
    t = columns["tensor_parallel"]
    latent = model.latent_attention is not None
    accepted: BoolArray = np.ones(len(t), dtype=np.bool_)
    for heads in (model.num_attention_heads,) if latent else model.key_value_heads:
        accepted &= (heads % t == 0) | (t % heads == 0)
    if model.linear_attention is not None:
        accepted &= np.isin(t, [each for each in np.unique(t) if model.linear_attention.splits_over(int(each))])
    if model.compressed_attention is not None:
        accepted &= model.compressed_attention.output_groups % t == 0
        accepted &= (columns["pipeline_parallel"] == 1) | engine.compressed_stages
    if shares_choices(model):
        accepted &= columns["pipeline_parallel"] == 1
    if model.dense_mlp_layers:
        accepted &= model.ffn_hidden_size % t == 0
    if engine.vocabulary_multiple:
        accepted &= -(-model.vocab_size // engine.vocabulary_multiple) * engine.vocabulary_multiple % t == 0
    if model.moe is None:
        return accepted
    e, split = columns["expert_parallel"], columns["expert_tensor_parallel"]
    spread = (e * split == t) & ((e == 1) | (split == 1) | engine.cuts_spread_experts)
    if engine.attention_data_parallel:
        spread |= (split == 1) & (e > t) & (e % t == 0) & ((t == 1) | (not engine.groups_are_ranks))
    accepted &= spread & (model.moe.ffn_hidden_size % split == 0)
    if model.moe.shared_ffn_hidden_size:
        accepted &= model.moe.shared_ffn_hidden_size % t == 0
    return accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Rows of plans with a number of sequences that run at once per replica.

    Attributes:
        plan: (R,) which plan.
        count: (R,) sequences.
        staggered: (R,) whether ended sequences are replaced one by one.
    """

    plan: IntArray
    count: IntArray
    staggered: BoolArray


def running_choices(
    memory: GenerationMemory, engine: EngineSpec, per_replica: IntArray, room_bytes: FloatArray, *, batches: int
) -> Running:
    """How many sequences to run at once: all or as many as fit, and halves of that, which leave memory to other calls.

    A batch that starts together needs room for what it grows to. Where ended sequences are replaced one by one, the
    cache holds sequences of all ages, and more of them fit, also of several ``batches`` where these may be in flight.
    Plans that fit no sequence get no row.
    """
    most = np.minimum(np.minimum(memory.most_running(room_bytes, staggered=False), engine.max_sequences), per_replica)
    together, apart = np.zeros((2, len(most)), dtype=np.bool_)
    apart[:] = True
    parts = [(most >> k, together) for k in range(1 if engine.continuous else _LEVELS)]
    if engine.continuous:
        most = np.minimum(memory.most_running(room_bytes, staggered=True), engine.max_sequences)
        most = np.minimum(most, per_replica * batches - 1)
        parts += [(most >> k, apart) for k in range(_LEVELS + (batches - 1).bit_length())]
    plan = np.tile(np.arange(len(per_replica)), len(parts))
    count, staggered = (np.concatenate([part[i] for part in parts]) for i in range(2))
    kept = np.flatnonzero(count > 0)
    return Running(plan=plan[kept], count=count[kept], staggered=staggered[kept])
