"""Tokens to their experts and back: what sorts and copies them on a rank, or multiplies them by masks.

A stack names its code (``StackSpec.routing``):

- ``fused``: kernels made for it, which weight along or leave that to the experts (Transformer Engine's permutation).
- ``indexed``: PyTorch's indexing, op by op (Transformers 5).
- ``scattered``: the same, weighted in fp32 and added up by a scatter (torchtitan).
- ``looped``: rows are picked expert by expert, and added to the result expert by expert (Transformers 4).

Counted in passes, one read or one write of all routed rows each. Indexing backward fills the whole gradient with zeros
and adds every row to what is there (``index_put`` with accumulation): four passes, a scatter's gradient being two.

Source:
    huggingface/transformers, src/transformers/integrations/moe.py (``grouped_mm_experts_forward``, and the loop in the
    comment above it); pytorch/torchtitan, torchtitan/models/common/token_dispatcher.py; permutations on arrival,
    ``indices_padding_wrapper`` and ``_permute`` of its torchtitan/models/moe/utils.py.
"""

from collections.abc import Mapping

import numpy as np

from costmodels.context import CostContext
from costmodels.kernels.calls import KernelFamily
from costmodels.lowering.calls import CallList, Phase
from costmodels.lowering.formats import core_format
from costmodels.plan import FloatArray
from profiles.moe import MoESpec

_PHASES = (Phase.FORWARD, Phase.INPUT_GRADIENT)
# Passes and kernels, forward and backward.
_Work = tuple[tuple[float, float], tuple[float, float]]
_PERMUTE: _Work = ((4.0, 4.0), (4.0, 4.0))
ROUTINGS: Mapping[str, _Work] = {
    "fused": _PERMUTE,
    # Picked (2), those of other ranks set to zero (2), weighted (2) and set to zero again (2), put back (2), added up
    # (1); sixteen kernels with those over indices. Backward: spread out (1), put back (4), zeros (2), gradients of rows
    # (2) and of weights (4), zeros (2), added up by token (3, and zeros of as many rows as there are tokens).
    "indexed": ((11.0, 16.0), (18.0, 26.0)),
    # Picked (2), cast (3), weighted in fp32 (4), cast back (3), scattered (3). Backward: picked (2), cast (3),
    # gradients of rows (4) and of weights (8) in fp32, cast back (3), added up by token (3).
    "scattered": ((15.0, 14.0), (23.0, 16.0)),
    # Picked (2), weighted (2), added (3), after each expert's tokens were looked for. Backward: picked (2),
    # gradients of rows (2) and of weights (4), added up by token (3).
    "looped": ((7.0, 8.0), (11.0, 10.0)),
}
# The same of what came from other ranks, into the order of a rank's experts and back. torchtitan appends a row of zeros
# (2), picks (2), puts back (2); backward picks (2) and puts back (4).
ARRIVALS: Mapping[str, _Work] = dict.fromkeys(("fused", "indexed", "looped"), _PERMUTE) | {
    "scattered": ((6.0, 4.0), (6.0, 8.0))
}
# Backward, what was picked for one expert gives a gradient of all tokens: zeros (1), added to that of the others (3).
_WHOLE_GRADIENT = (4.0, 2.0)
# Passes and kernels over (tokens, places), forward and backward: mask and weights written; of the weights' gradient,
# what belongs to either of two experts summed.
_MASK_WORK: _Work = ((2.0, 2.0), (2.0, 2.0))


# Tokens repeated for every expert (1), weighted (3), outputs added up (1). Backward: the gradient of outputs repeated
# (1), gradients of rows (2) and of weights (4), added up by token (1).
_REPEAT: _Work = ((5.0, 4.0), (8.0, 6.0))


def permuted_dispatch(
    calls: CallList,
    context: CostContext,
    routed_rows: FloatArray,
    local_experts: FloatArray,
    *,
    tokens: FloatArray,
    arrive: FloatArray,
) -> None:
    """Tokens copied into the order of their experts and back, before they are sent and, where they ``arrive``, again.

    Args:
        calls: Where the calls go.
        context: The stack is read, and the model's width.
        routed_rows: (K,) tokens of a rank, each as often as it is routed.
        local_experts: (K,) experts of a rank.
        tokens: (K,) tokens of a rank.
        arrive: (K,) 1 where ranks with several experts sort what came from others, else 0.
    """
    stack, hidden = context.stack, float(context.model.expert_hidden_size)
    each = 1.0 if stack.grouped_experts else local_experts
    works = zip(_PHASES, ROUTINGS[stack.routing], ARRIVALS[stack.routing], strict=True)
    for phase, (passes, kernels), (again, kernels_again) in works:
        _copies(calls, phase, passes + arrive * again, routed_rows, each * (kernels + arrive * kernels_again), hidden)
    if stack.routing == "looped":
        passes, kernels = _WHOLE_GRADIENT
        _copies(calls, Phase.INPUT_GRADIENT, passes * local_experts, tokens, kernels * local_experts, hidden)


def repeated_dispatch(calls: CallList, context: CostContext, rows: FloatArray) -> None:
    """Tokens repeated for every expert and what these make of them added up (``costmodels.experts_run``).

    Args:
        calls: Where the calls go.
        context: The model's width is read.
        rows: (K,) tokens of a rank times all experts.
    """
    for phase, (passes, kernels) in zip(_PHASES, _REPEAT, strict=True):
        each = np.ones(len(rows))
        _copies(calls, phase, passes * each, rows, kernels * each, float(context.model.expert_hidden_size))


def _copies(
    calls: CallList,
    phase: Phase,
    passes: FloatArray,
    rows: FloatArray,
    kernels: FloatArray,
    width: float,
) -> None:
    traffic = passes * calls.context.job.numerics.storage_bytes * width * rows
    calls.memory(phase, traffic, family=KernelFamily.PERMUTE, rows=rows, width=width, kernels=kernels)


def masked_dispatch(calls: CallList, context: CostContext, moe: MoESpec, own_tokens: FloatArray) -> None:
    """Tokens multiplied by a mask over the places of all experts, and back by the weights of their places.

    Groups of a sequence's s tokens fill as many places as they are routed to, k s of them. Backward, the gradient of
    the weights is a third product.

    Source:
        GShard (arXiv:2006.16668) algorithm 2, as Alpa's model runs it (alpa/model/moe.py): GSEC,GSM->EGCM and back.
    """
    group, hidden = float(context.job.sequence_length), float(context.model.expert_hidden_size)
    places = moe.experts_per_token * group
    forward, backward = Phase.FORWARD, Phase.INPUT_GRADIENT
    there, back, weights = (places, hidden, group), (group, hidden, places), (group, places, hidden)
    for phase, products in ((forward, (there, back)), (backward, (back, there, weights))):
        for m, n, k in products:
            calls.gemm(phase, m, n, k, batch=own_tokens / group, gemm_format=core_format(context))
    for phase, (passes, kernels) in zip((forward, backward), _MASK_WORK, strict=True):
        traffic = passes * context.job.numerics.storage_bytes * places * own_tokens
        calls.memory(
            phase, traffic, family=KernelFamily.PERMUTE, rows=own_tokens, width=places, kernels=kernels
        )  # fmt: skip
