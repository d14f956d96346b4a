"""torchtitan's selective recomputation: of the products of a layer every other one is kept, and what attention gives.

Products count in the order of the layer's code, from one in every layer: results of the first, the third and so on are
kept, like those of the attention kernel and of collectives that reduce or exchange. All else runs again: other
products, norms, rotation, activations, all-gathers, routers, which are named for it, and routed experts, whose grouped
products are none that it knows. The last product never does: recomputation stops once there is all that the backward
pass needs.

Source:
    pytorch/torchtitan 0.3.0, torchtitan/distributed/activation_checkpoint.py: ``SelectiveAC``, and the operations whose
    results are kept, ``_get_default_save_ops``. Each model had a list of its own before (pull request 2357 of spring
    2026), Qwen3's without exchanges of tokens. A compiled layer is one graph (``apply_compile`` of
    torchtitan/distributed/compile.py); one with routed experts was compiled part by part from October 2025 to March
    2026 (pull requests 1895 and 2741), of which selective recomputation saw nothing: all of it ran again.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from costmodels.arrays import total
from costmodels.autocast import stream_bytes
from costmodels.lowering.parts import Part
from costmodels.plan import FloatArray, PlanBatch
from costmodels.workload import TrainingJob
from profiles.attention_kinds import attention_shares
from profiles.model import ModelSpec
from profiles.precision import FP32_BYTES
from profiles.stack import StackSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One matrix product of a layer.

    Attributes:
        part: How its calls are tagged.
        inputs: Values it reads per token.
        outputs: Values it makes per token.
        split: Over which ranks of a tensor-parallel group these are spread: ``tensor``, ``key_value`` (at most one per
            key/value head), ``sequence`` or, partial sums that they are, over ``none``.
        mlp: Whether it belongs to the MLP, or to the attention block.
        kept: Whether its outputs stay for the backward pass.
        repeated: Whether it runs again there: all others but the MLP's last, whose outputs nothing needs.
    """

    part: Part
    inputs: int
    outputs: int
    split: str
    mlp: bool = False
    kept: bool = False
    repeated: bool = False

    @property
    def weights(self) -> int:
        """Weights that it multiplies with."""
        return self.inputs * self.outputs


def product_kinds(model: ModelSpec) -> tuple[tuple[ModelSpec, float], ...]:
    """Models whose layers have the same products each, and their shares of the layers."""
    return ((model, 1.0),) if model.windowed_attention is None else attention_shares(model)


def layer_products(model: ModelSpec, *, moe: bool) -> tuple[Product, ...]:
    """Products of one layer, routed experts left out, in the order they run in."""
    mlp = _mlp_products(model, moe=moe)
    every = (*_attention_products(model), *mlp)
    last = len(every) - 1 if mlp else None
    return tuple(
        replace(product, kept=number % 2 == 0, repeated=number % 2 == 1 and number != last)
        for number, product in enumerate(every)
    )


def _attention_products(model: ModelSpec) -> tuple[Product, ...]:
    hidden, heads, latent = model.hidden_size, model.num_attention_heads, model.latent_attention

    def product(inputs: int, outputs: int, split: str, part: Part = Part.PRODUCT) -> Product:
        return Product(part=part, inputs=inputs, outputs=outputs, split=split)

    if latent is None:
        kept = (model.head_dim,) if model.keys_are_values else (model.head_dim, model.value_width)
        keys_and_values = [product(hidden, model.num_key_value_heads * width, "key_value") for width in kept]
        gates = (product(hidden, heads, "tensor"),) if model.head_gates else ()
        queries, back = (
            product(hidden, heads * model.head_dim, "tensor"),
            product(heads * model.value_width, hidden, "none"),
        )
        return (queries, *keys_and_values, *gates, back)
    rank, up = latent.q_lora_rank, Part.UP_PROJECTION
    query = heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim)
    expanded = heads * (latent.qk_nope_head_dim + latent.v_head_dim)
    return (
        *((product(hidden, rank, "sequence"),) if rank else ()),
        product(rank or hidden, query, "tensor", up),
        product(hidden, latent.kv_lora_rank + latent.qk_rope_head_dim, "sequence"),
        product(latent.kv_lora_rank, expanded, "tensor", up),
        product(heads * latent.v_head_dim, hidden, "none"),
    )


def _mlp_products(model: ModelSpec, *, moe: bool) -> tuple[Product, ...]:
    """Those of a dense MLP, or of the shared experts beside routed ones."""
    hidden, width = model.hidden_size, model.ffn_hidden_size
    first, last = Part.PRODUCT, Part.LAST_PRODUCT
    if moe and model.moe is not None:
        width, first, last = model.moe.shared_ffn_hidden_size, Part.SHARED, Part.SHARED
    if not width:
        return ()
    up = Product(part=first, inputs=hidden, outputs=width, split="tensor", mlp=True)
    down = Product(part=last, inputs=width, outputs=hidden, split="none", mlp=True)
    return (*(up,) * (model.mlp_matrices - 1), down)


def repeated_weights(model: ModelSpec, part: Part, *, mlp: bool, moe: bool) -> tuple[float, float]:
    """Weights of the products of one part of the attention block or (``mlp``) the MLP: repeated ones, and all."""
    found = [
        (share * product.weights, product.repeated)
        for kind, share in product_kinds(model)
        for product in layer_products(kind, moe=moe)
        if product.mlp == mlp and product.part is part
    ]
    return sum(weights for weights, repeated in found if repeated), sum(weights for weights, _ in found)


def saved_bytes(
    plans: PlanBatch,
    model: ModelSpec,
    job: TrainingJob,
    stack: StackSpec,
    *,
    moe: bool,
    tokens: FloatArray,
    sharded_tokens: FloatArray,
) -> FloatArray:
    """(N,) bytes of one layer and micro-batch that stay on a rank: its input, and what is not made again.

    A compiler drops the last product's result, which nothing needs.

    Args:
        plans: N plans.
        model: Its dimensions.
        job: Precision.
        stack: Whether layers are compiled.
        moe: Whether the layer is a mixture of experts.
        tokens: (N,) of a micro-batch on a rank.
        sharded_tokens: (N,) the same where sequence parallelism shards them.
    """
    if model.windowed_attention is not None:
        by_layer = partial(
            saved_bytes, plans, job=job, stack=stack, moe=moe, tokens=tokens, sharded_tokens=sharded_tokens
        )
        return total(share * by_layer(kind) for kind, share in product_kinds(model))
    t, element = plans.tensor_parallel, job.numerics.storage_bytes
    every = layer_products(model, moe=moe)
    compiled = stack.activation != "eager"
    kept = [product for product in every if product.kept and not (compiled and product is every[-1])]
    each = {"tensor": tokens / t, "sequence": sharded_tokens, "none": tokens}
    each["key_value"] = tokens / np.minimum(t, model.num_key_value_heads)
    sums = np.where(t > 1, (1 if compiled else 2) * model.hidden_size * sharded_tokens, 0.0)  # of its two blocks
    elements = sums + sum(product.outputs * each[product.split] for product in kept)
    projected = [product for product in every if not product.mlp][-1].inputs
    elements = elements + projected * tokens / t
    if moe and model.moe is not None:  # what the exchanges bring to the experts and back
        received = (
            2 * model.moe.experts_per_token * model.expert_hidden_size * plans.expert_tensor_parallel * tokens / t
        )
        elements = elements + np.where(plans.expert_parallel > 1, received, 0.0)
    entered = stream_bytes(job, stack) * model.hidden_size * sharded_tokens
    log_sums = FP32_BYTES * model.num_attention_heads * tokens / t  # one per head and token, of fused attention
    return np.asarray(entered + log_sums + element * elements)
