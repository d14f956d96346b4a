"""How far sequences are split over ranks where nobody asks for it.

On a few devices a rank may have as little as 2,048 tokens. On more there are other ways to spread a step, and so many
plans that short sequences stay whole: a search is to answer within a second. Experts multiply the plans, too.
"""

from planner.rules.base import Setting

_FEW_DEVICES, _FEW_WITH_EXPERTS = 64, 16
_TOKENS, _TOKENS_ELSEWHERE, _LONG_SEQUENCE = 2048, 4096, 8192


def most_context(setting: Setting) -> int:
    """Largest context-parallel degree that is considered unasked."""
    few = _FEW_DEVICES if setting.model.moe is None else _FEW_WITH_EXPERTS
    length = setting.job.sequence_length
    if setting.num_devices <= few:
        return max(length // _TOKENS, 1)
    return length // _TOKENS_ELSEWHERE if length >= _LONG_SEQUENCE else 1
