"""Lengths of the sequences of a workflow: as given, or the usual ones, and within what its models can place."""

from collections.abc import Mapping

from costmodels.lengths import OutputLengths
from planner.dataflow.length_text import LengthInput, parse_lengths, parse_prompt
from planner.results import Note
from profiles.errors import SpecError
from profiles.model import MAX_SEQUENCE, ModelSpec

DEFAULT_PROMPT = 1024  # tokens, as in HybridFlow's experiments (arXiv:2409.19256 section 8.1)
DEFAULT_GENERATE = 1024  # tokens, as above


def sequence_lengths(
    prompt: int | None, generate: LengthInput | None, models: Mapping[str, ModelSpec], notes: list[Note]
) -> tuple[int, OutputLengths]:
    """Tokens of a prompt, and lengths of responses.

    Args:
        prompt: As given; half of what the models can place and at most ``DEFAULT_PROMPT`` if None.
        generate: As given; what is left of it and at most ``DEFAULT_GENERATE`` if None.
        models: Model of each role.
        notes: What is assumed is added to them.

    Raises:
        SpecError: If either has a form that is none, or both together exceed what a model can place.
    """
    first = min(models, key=lambda role: _most_tokens(models[role]))
    limit = _most_tokens(models[first])
    tokens = min(DEFAULT_PROMPT, limit // 2) if prompt is None else parse_prompt("prompt", prompt)
    if prompt is None:
        notes.append(Note(code="assumed_default", field="prompt", message=f"prompts of {tokens} tokens (not given)"))
    usual = max(min(DEFAULT_GENERATE, limit - tokens), 1)
    output = parse_lengths("generate", usual if generate is None else generate)
    if generate is None:
        notes.append(Note(code="assumed_default", field="generate", message=f"responses of {usual} tokens (not given)"))
    if tokens + output.most > limit:
        together = f"prompt and response together have up to {tokens + output.most:.0f} tokens"
        if limit == MAX_SEQUENCE:
            raise SpecError("generate", f"{together}; at most {MAX_SEQUENCE}")
        problem = f"{together}; {models[first].name} ({first}) has {limit} learned positions"
        hint = f"{limit - tokens}" if tokens < limit else f"a prompt of {limit // 2}, and {limit - limit // 2}"
        raise SpecError("generate" if tokens < limit else "prompt", problem, hint)
    return tokens, output


def _most_tokens(model: ModelSpec) -> int:
    return min(model.learned_positions or MAX_SEQUENCE, MAX_SEQUENCE)
