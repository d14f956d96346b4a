"""HybridFlow's hybridflow_setting, and how calls ran on it: what its paper and its code say, nothing fitted.

arXiv:2409.19256, section 8.1: machines of eight A100-80GB, 200 Gb/s between machines, Megatron-Core 0.6, vLLM 0.3.1,
gradients in FP32; 1024 prompts of 1024 tokens, as many answers of 1024 tokens, 8 updates per iteration; optimizer
states are not offloaded. Figure 14 names the layouts "under the same settings". Its code (verl,
``megatron_utils.get_model``) reduces gradients after the backward pass, over a sharded optimizer.

Micro-batches are in neither. The closest to them are verl's first scripts: ``examples/ppo_trainer/
run_deepseek_full_hh_rlhf.sh`` runs the paper's data set, its four models on Megatron-Core, and its 128 sequences per
update, in micro-batches of 16 sequences over all ranks; ``megatron_workers.py`` divides them by the data-parallel
degree. The script is of a 7B on 8 GPUs with 256 tokens, and nothing says that the paper's runs had the same.

The engine is vLLM as verl's fork of 0.3.1 runs it (``third_party/vllm/vllm_v_0_3_1/llm_engine_sp.py``): in the ranks'
own processes, without turning tokens into text; its cache is freed after generation, for which ``vllm_rollout.py``
asks that no CUDA graphs are captured.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

import numpy as np

from costmodels.lengths import fixed_length
from costmodels.model_calls import CallKind, CallTable, ModelCall
from costmodels.plan import PlanBatch, Recompute
from planner.dataflow.call_costs import CallSetting, call_costs, price_generation, price_plans
from planner.dataflow.solving.dominance import undominated
from planner.validate.dataflow.setups import model_named
from profiles.catalog import default_catalog
from profiles.cluster_string import parse_cluster
from profiles.engines import EngineSpec, find_engine
from profiles.model import ModelSpec
from profiles.stacks import find_stack

TOKENS = 1024  # of a prompt, and of an answer
SEQUENCES, _UPDATES = 1024, 8  # per iteration
_NODE = 8
_MODELS = {"7B": "llama-2-7b", "13B": "llama-2-13b", "34B": "codellama-34b"}
_STAGES = {"7B": 1, "13B": 1, "34B": 4}  # figure 14: p of training, whose t is 8
_REPLICA = {"7B": 2, "13B": 4, "34B": 8}  # figure 14: t of generation
_LARGEST_MICRO_BATCH = 32  # sequences; more are no faster per token
_ENGINE = "vllm-0.3"
_TEXT_S = 2.6e-5  # host time to turn one token into text: mean of nine printed in vLLM issue 5206, as fast as 0.3.0


@dataclass(frozen=True, slots=True)
class MicroBatches:
    """Sequences per micro-batch of a training call; left out both, all powers of two.

    Attributes:
        overall: Over all data-parallel ranks together.
        per_rank: On each rank.
    """

    overall: int = 0
    per_rank: int = 0

    def sizes(self, ranks: int, sequences: int) -> list[int]:
        """Sequences per micro-batch and rank, of ``sequences`` per update and rank."""
        if not self.overall and not self.per_rank:
            most = min(sequences, _LARGEST_MICRO_BATCH)
            return [1 << k for k in range(most.bit_length())]
        return [min(self.per_rank or max(self.overall // ranks, 1), sequences)]


FASTEST = MicroBatches()
SCRIPT = MicroBatches(overall=16)  # see above


@lru_cache(maxsize=16)
def hybridflow_setting(num_devices: int) -> CallSetting:
    """Whole machines of the hybridflow_setting, with the frameworks that ran there."""
    text = f"{max(num_devices // _NODE, 1)}x8xA100-80GB"
    cluster = parse_cluster(text, default_catalog(), fabric="ib-hdr-200", nics_per_node=1)
    return CallSetting(cluster=cluster, stack=find_stack("megatron"), engines=(_ENGINE,))


@lru_cache(maxsize=1)
def hybridflow_engine() -> EngineSpec:
    """The engine as verl's fork ran it."""
    stock = find_engine(_ENGINE)
    return replace(
        stock,
        captures_graphs=False,
        graph_bytes=0.0,
        sequence_overhead_s=stock.sequence_overhead_s - _TEXT_S,
    )


def hybridflow_model(name: str) -> ModelSpec:
    """The Llama of that size."""
    return model_named(_MODELS[name])


def hybridflow_call(kind: CallKind, *, value_head: bool = False) -> ModelCall:
    """What a call of that kind computes per iteration."""
    return ModelCall(
        kind=kind,
        num_sequences=SEQUENCES,
        prompt_tokens=TOKENS,
        output=fixed_length(TOKENS),
        mini_batches=_UPDATES if kind is CallKind.TRAIN else 1,
        value_head=value_head,
    )


def priced_call(name: str, call: ModelCall, size: int, micro_batches: MicroBatches = SCRIPT) -> CallTable:
    """Ways to run a call on so many GPUs that fit: published layouts where there are any, else all.

    Args:
        name: Size of the model, as the figures print it.
        call: What is computed.
        size: GPUs: part of a machine, or whole machines.
        micro_batches: Of training.
    """
    setting = hybridflow_setting(size)
    model = call.model(hybridflow_model(name))
    if call.kind is CallKind.INFERENCE:
        return call_costs(call, model, setting, [size])
    device = setting.cluster.device
    if call.kind is CallKind.TRAIN:
        table = price_plans(training_plans(name, size, micro_batches), call, model, setting)
    else:
        engine = hybridflow_engine()
        plans = generation_plans(min(_REPLICA[name], size), size, engine)
        table = price_generation(plans, call, model, setting, engine)
    fitting = np.flatnonzero(table.peak_bytes <= device.usable_memory_bytes)
    return undominated(table.take(fitting))


def generation_plans(tensor: int, size: int, engine: EngineSpec) -> PlanBatch:
    """Replicas of ``tensor`` GPUs each."""
    return PlanBatch.from_columns(
        1,
        tensor_parallel=tensor,
        data_parallel=size // tensor,
        micro_batch_size=engine.prefill_tokens // TOKENS,
    )


def training_plans(name: str, size: int, micro_batches: MicroBatches = SCRIPT) -> PlanBatch:
    """The published tensor- and pipeline-parallel degrees as far as they divide ``size``, data-parallel beyond.

    Recomputation, which is not published, varies. Where ranks do not divide the batch, the fullest one counts.
    """
    tensor = min(size, _NODE)
    stages = gcd(size // tensor, _STAGES[name])
    ranks = size // (tensor * stages)
    per_rank = -(-SEQUENCES // _UPDATES // ranks)
    sizes = micro_batches.sizes(ranks, per_rank)
    modes = [int(mode) for mode in (Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL)]
    sequences, recompute = (column.ravel() for column in np.meshgrid(sizes, modes))
    return PlanBatch.from_columns(
        len(recompute),
        tensor_parallel=tensor,
        pipeline_parallel=stages,
        data_parallel=ranks,
        micro_batch_size=sequences,
        num_microbatches=-(-per_rank // sequences),
        recompute=recompute,
        zero_stage=1,
        sequence_parallel=tensor > 1,
        overlap_grad_reduce=False,
        overlap_param_gather=False,
    )
