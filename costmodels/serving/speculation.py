"""Speculative decoding: a draft proposes k tokens, and one step of the model says which of them it would have made.

A step then processes 1 + k tokens of every running sequence, its linear layers as so many more rows, its attention as
so many more queries against a cache that is read once; k passes of the draft go before. It yields 1 + a tokens: those
of the draft up to the first that the model would not have made, a of them on average, and one of the model's own. How
many a draft gets right nobody can tell from shapes: it is measured. Where drafts branch, a step verifies a tree of more
tokens, and each pass of the draft has as many of them as it takes to fill the tree.

A draft is a model that decodes one token after the other, in the layout of the model: a head of one layer (EAGLE, MTP)
that shares the model's vocabulary, or a small model of its own; or nothing at all, where the text so far is searched
(n-grams).

Source:
    arXiv:2211.17192 (speculative decoding), arXiv:2401.15077 and 2503.01840 (EAGLE, EAGLE-3), arXiv:2412.19437 section
    2.2 (MTP).

Left out on purpose: drafts that are skipped when many requests run, what the host takes between the passes of a draft.
"""

from dataclasses import dataclass, replace

from costmodels.context import CostContext
from profiles.model import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """How tokens are proposed, and how many of them are right.

    Attributes:
        draft_tokens: Proposed per step and sequence one after the other, k.
        accepted: Of them, on average, a.
        draft: Prices the draft, whose model is that of the context; None where the text so far proposes, at no cost.
        precision: Recipe of the draft's products.
        tree_tokens: That a step verifies where drafts branch, the model's own included; 0 for chains.
        shares_vocabulary: The draft has no embedding and head of its own in memory.
    """

    draft_tokens: int
    accepted: float
    draft: CostContext | None = None
    precision: str = "bf16"
    tree_tokens: int = 0
    shares_vocabulary: bool = False

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a step makes of each sequence, on average."""
        return 1.0 + self.accepted

    @property
    def verified(self) -> int:
        """Tokens of each sequence that a step processes."""
        return self.tree_tokens or 1 + self.draft_tokens

    @property
    def branches(self) -> int:
        """Tokens of each sequence in a pass of the draft."""
        return -(-(self.verified - 1) // self.draft_tokens)

    @property
    def kept(self) -> CostContext | None:
        """The draft as it lies in memory: a vocabulary that it shares is none of its own."""
        if self.draft is None or not self.shares_vocabulary:
            return self.draft
        return replace(self.draft, model=replace(self.draft.model, vocab_size=1))


def head_of(model: ModelSpec, *, vocab_size: int | None = None, experts: bool = False) -> ModelSpec:
    """A draft of one layer of a model, with its head over a vocabulary.

    Args:
        model: The model that verifies.
        vocab_size: Of the draft; the model's if None.
        experts: Whether its layer is a mixture of experts where the model's are.
    """
    indexer = None if model.indexer is None else replace(model.indexer, layers=1)
    moe = model.moe if experts else None
    if moe is not None:
        moe = replace(moe, first_dense_layers=0, layer_interval=1, hash_layers=0)
    compressed = model.compressed_attention
    return replace(
        model,
        name=f"a draft head of {model.name}",
        num_layers=1,
        windowed_layers=0,
        sliding_window=0,
        windowed_attention=None,
        tie_word_embeddings=True,  # one matrix of its vocabulary
        vocab_size=min(vocab_size or model.vocab_size, model.vocab_size),
        moe=moe,
        linear_attention=None,
        indexer=indexer,
        compressed_attention=None if compressed is None else replace(compressed, sparse_layers=0, heavy_layers=0),
        layer_pattern="",
        published_parameters=0,
        checkpoint_weights="",
    )
