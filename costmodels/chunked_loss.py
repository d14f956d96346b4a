"""A loss that takes the output layer into itself, a chunk of the tokens at a time (Liger's fused linear cross-entropy).

Logits of a chunk are alive at once, not those of all tokens; but every chunk reads the whole output layer, once for the
logits and once for the gradient of its input, and writes the layer's gradient again.

Left out: reading that gradient to add to it, and the copies in fp32 that releases of 2025 made of it for every chunk.

Source:
    linkedin/Liger-Kernel, src/liger_kernel/ops/fused_linear_cross_entropy.py: as many chunks as the vocabulary is wider
    than the hidden state, the tokens of one rounded up to a power of two.
"""

import numpy as np

from costmodels.plan import FloatArray
from profiles.model import ModelSpec


def chunk_tokens(tokens: FloatArray, model: ModelSpec) -> FloatArray:
    """(N,) tokens of a chunk, of so many per rank and micro-batch."""
    each = np.ceil(tokens / np.ceil(model.output_width / model.hidden_size))
    found: FloatArray = np.minimum(2 ** np.ceil(np.log2(each)), tokens)
    return found


def loss_chunks(tokens: FloatArray, model: ModelSpec) -> FloatArray:
    """(N,) chunks that the tokens of a rank and micro-batch are taken in."""
    found: FloatArray = np.ceil(tokens / chunk_tokens(tokens, model))
    return found
