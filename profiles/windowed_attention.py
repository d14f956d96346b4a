"""Layers that attend within a window with other heads than those that attend to everything.

Gemma 4 has more and narrower key/value heads within its windows, MiMo-V2-Flash more of them and sinks, Step-3.5-Flash
more query heads. The heads of the other layers are those of the model.
"""

from dataclasses import dataclass, fields

from profiles.bounds import MAX_DIMENSION
from profiles.errors import SpecError, check_between


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowedAttention:
    """Heads of the layers that have the window.

    Attributes:
        num_attention_heads: Query heads.
        num_key_value_heads: Key/value heads.
        head_dim: Width of one head.
        attention_sinks: One learned logit per query head, in these layers alone.
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    attention_sinks: bool = False

    @property
    def width(self) -> int:
        """Of all query heads together."""
        return self.num_attention_heads * self.head_dim


def check_windowed(windowed: WindowedAttention, *, layers: tuple[int, int], alone: bool) -> None:
    """Refuse sizes that no heads have, and heads of windows beside what they are not priced with.

    Args:
        windowed: Heads of the windowed layers of a model.
        layers: How many layers have the window, and how many there are.
        alone: Attention is neither latent nor linear in any layer.

    Raises:
        SpecError: With the field, the value and what would do.
    """
    where = "model.windowed_attention"
    for item in fields(windowed):
        if item.name != "attention_sinks":
            check_between(f"{where}.{item.name}", getattr(windowed, item.name), 1, MAX_DIMENSION)
    if windowed.num_attention_heads % windowed.num_key_value_heads:
        problem = f"must divide num_attention_heads={windowed.num_attention_heads}; got {windowed.num_key_value_heads}"
        raise SpecError(f"{where}.num_key_value_heads", problem)
    some, every = layers
    if not 1 <= some < every:
        problem = f"is of 1 to {every - 1} of {every} layers, and windowed_layers is {some}"
        raise SpecError(where, problem, "heads of the model itself where all layers have the same")
    if not alone:
        problem = "beside latent or linear attention has no cost model"
        raise SpecError(where, problem, "leave it out")
