"""Sizes of micro-batches worth considering."""

from planner.rules.base import Setting, divisors

MICRO_BATCH_TOKENS = 1 << 19  # largest micro-batch considered unasked, in tokens
_LARGEST_ODD_PART = 7  # micro-batches are up to this odd number times a power of two: neighbours a quarter apart


def micro_batch_sizes(setting: Setting, *, coarse: bool = False) -> list[int]:
    """Sequences per micro-batch worth considering: divisors of the global batch on the grid above.

    Args:
        setting: Sequence length and batch.
        coarse: Powers of two alone.
    """
    length, largest = setting.job.sequence_length, 1 if coarse else _LARGEST_ODD_PART
    return [
        b
        for b in divisors(setting.job.global_batch_size)
        if b == 1 or (b * length <= MICRO_BATCH_TOKENS and b // (b & -b) <= largest)
    ]
