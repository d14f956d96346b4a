"""Which format weights are served in, whether the engine has kernels for it, and how ranks may cut them."""

from collections.abc import Iterator

import numpy as np

from costmodels.plan import BoolArray, FloatArray, PlanBatch
from planner.results import Note
from profiles.attention_kinds import attention_kinds
from profiles.catalog import default_catalog
from profiles.engines import EngineSpec, load_engines
from profiles.errors import SpecError
from profiles.hardware import DeviceSpec
from profiles.model import ModelSpec
from profiles.weights import WEIGHT_FORMATS, WeightFormat, parse_weights

# In which checkpoints of DeepSeek-V4 are published: the grouped product of its output reads 8 bits by blocks, else 16
# (wo_a of vLLM's models/deepseek_v4/attention.py); those in NVFP4 hold experts alone in it.
_OF_COMPRESSED = ("mxfp4-fp8", "fp8-block")


def served_weights(
    asked: object, model: ModelSpec, engine: EngineSpec, device: DeviceSpec
) -> tuple[WeightFormat | None, tuple[Note, ...]]:
    """The format asked for, or else that of the published checkpoint where it can be served; None is 16 bits.

    Raises:
        SpecError: If the format is unknown, the engine does not serve it on the device, or the model has no weights
            that would be in it.
    """
    if asked is None:
        weights, notes = _published(model, engine, device)
    else:
        weights, notes = _meant(asked, model)
        _check(weights, model, engine, device)
    return weights and engine.laid_out(weights, device), notes


def _meant(asked: object, model: ModelSpec) -> tuple[WeightFormat | None, tuple[Note, ...]]:
    """The format of that name, and which was taken where it may mean several."""
    weights, word = parse_weights(asked), asked.strip().lower() if isinstance(asked, str) else ""
    if word == "fp4":
        message = f"fp4 is taken as nvfp4, {WEIGHT_FORMATS['nvfp4'].title}; weights mxfp4 for that of gpt-oss"
    elif weights is not None and weights.name == "mxfp4" and model.moe is None:
        weights = WEIGHT_FORMATS["mxfp4-all"]
        message = f"mxfp4 is taken as {weights.name}, {weights.title}: {model.name} has no experts"
    else:
        return weights, ()
    return weights, (Note(code="assumed_default", field="weights", message=message),)


def _check(weights: WeightFormat | None, model: ModelSpec, engine: EngineSpec, device: DeviceSpec) -> None:
    if weights is not None and (weights.experts_only or weights.beside) and model.moe is None:
        problem = f"{weights.name} is of the matrices of experts, and {model.name} has none"
        raise SpecError("weights", problem, _others(engine, device, model))
    if weights is not None and model.compressed_attention is not None and weights.name not in _OF_COMPRESSED:
        problem = (
            f"no checkpoint of {model.name} is all in {weights.name}, whose output has products of groups of heads"
        )
        raise SpecError("weights", problem, f"{' or '.join(_OF_COMPRESSED)}, or bf16")
    if weights is not None and not engine.serves(weights, device):
        problem = f"{engine.name} has no kernels for {weights.name} on {device.name}"
        raise SpecError("weights", problem, _instead(weights, engine, device, model))


def _published(
    model: ModelSpec, engine: EngineSpec, device: DeviceSpec
) -> tuple[WeightFormat | None, tuple[Note, ...]]:
    if not model.checkpoint_weights:
        return None, ()
    weights, _ = _meant(model.checkpoint_weights, model)
    name = "" if weights is None else weights.name
    whose = f"the checkpoint of {model.name}" if _usual(model) else "the checkpoint that was named"
    if not _usual(model):  # that one, and no other
        _check(weights, model, engine, device)
    if engine.serves(weights, device):
        message = f"weights in {name}, as {whose} holds them; weights bf16 for one in 16 bits"
    else:
        message = (
            f"weights in 16 bits: {whose} holds them in {name}, for which {engine.name} has no kernels on {device.name}"
        )
        weights = None
    return weights, (Note(code="assumed_default", field="weights", message=message),)


def _usual(model: ModelSpec) -> bool:
    """Whether the format is what the catalogue says of the model."""
    entry = default_catalog().model_entries.get(model.name, {})
    return bool(entry.get("checkpoint_weights") == model.checkpoint_weights)


def _instead(weights: WeightFormat, engine: EngineSpec, device: DeviceSpec, model: ModelSpec) -> str:
    """Other engines that serve the format there, or what this one serves."""
    able = [
        each.name
        for each in load_engines().values()
        if each.serves(weights, device) and each.runs_on(device) and each.knows(model)
    ]
    return f"engine {' or '.join(able)}" if able else _others(engine, device, model)


def _others(engine: EngineSpec, device: DeviceSpec, model: ModelSpec) -> str:
    known = [
        name
        for name, each in WEIGHT_FORMATS.items()
        if engine.serves(each, device) and (model.moe is not None or not (each.experts_only or each.beside))
    ]
    return f"one of {', '.join([*known, 'bf16'])}" if known else "bf16, for a checkpoint in 16 bits"


def cuts(plans: PlanBatch, model: ModelSpec, weights: WeightFormat | None) -> BoolArray:
    """(N,) whether no rank gets part of weights that share a scale.

    Source:
        vLLM, layers/quantization/utils/fp8_utils.py (``validate_fp8_block_shape``), fp8.py and SGLang's: inputs and
        outputs of a rank are multiples of a block, those of query, key, value, gate and up each; auto_gptq.py and
        auto_awq.py: inputs of a rank are multiples of a group. Whole experts are not cut.
    """
    if weights is None or not weights.group:
        return np.ones(len(plans), dtype=np.bool_)
    found = [width % group == 0 for width, group in _cut_widths(plans, model, weights)]
    return np.asarray(np.logical_and.reduce([plans.tensor_parallel > 0, *found]), dtype=np.bool_)


def spread(plans: PlanBatch, weights: WeightFormat | None, engine: EngineSpec, device: DeviceSpec) -> BoolArray:
    """(N,) whether the engine spreads experts in that format so over ranks (``EngineSpec.cuts_four_bit_experts``)."""
    if weights is None or not weights.beside or device.architecture not in engine.cuts_four_bit_experts:
        return np.ones(len(plans), dtype=np.bool_)
    return np.asarray((plans.expert_parallel == 1) & (plans.attention_groups == 1), dtype=np.bool_)


def _cut_widths(plans: PlanBatch, model: ModelSpec, weights: WeightFormat) -> Iterator[tuple[FloatArray, int]]:
    """Inputs that are shared out over ranks, and outputs where these share scales as well; 0 where nothing is cut.

    With each comes how many weights share a scale.
    """
    ranks, moe, group = plans.tensor_parallel, model.moe, weights.group
    if moe is not None:
        own = np.where(plans.expert_tensor_parallel > 1, moe.ffn_hidden_size / plans.expert_tensor_parallel, 0.0)
        yield own, weights.expert_group or group
    if weights.experts_only:
        return
    cut = ranks > 1
    for kind, _ in attention_kinds(model):
        yield np.where(cut, kind.num_attention_heads * kind.value_width / ranks, 0.0), group
    if model.dense_mlp_layers:
        yield np.where(cut, model.ffn_hidden_size / ranks, 0.0), group
    if moe is not None and moe.shared_ffn_hidden_size:
        yield np.where(cut, moe.shared_ffn_hidden_size / ranks, 0.0), group
    if weights.grouped_outputs and model.latent_attention is None:
        for kind, _ in attention_kinds(model):
            for width in (kind.head_dim, kind.value_width):
                yield np.where(cut, np.maximum(kind.num_key_value_heads / ranks, 1.0) * width, 0.0), group
