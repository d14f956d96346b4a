"""Which draft proposes tokens to a served model, as a caller asks for it, and what pricing reads of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from costmodels.plan import BoolArray, PlanBatch
from costmodels.serving.speculation import Speculation, head_of
from planner.question.request import resolve_named_model
from planner.results import Note
from profiles.engines import DRAFT_MODEL, METHODS, EngineSpec
from profiles.errors import SpecError, shown
from profiles.model import ModelSpec
from profiles.scalars import plain, whole_number

MOST_DRAFTED = 64  # tokens of a step; engines take some ten
MOST_VERIFIED = 256  # of a tree
_PADDING = 0.01  # by which tables of one vocabulary differ
EAGLE3_VOCABULARY = 32_000  # tokens: draft_vocab_size of the published heads (yuhuili/EAGLE3-LLaMA3.1-Instruct-8B)
ASKED = ("speculate", "draft_tokens", "accepted", "tree_tokens")
_WITH_HEADS = ("eagle3", "eagle", "mtp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """What proposes tokens.

    Attributes:
        method: ``eagle3``, ``eagle``, ``mtp``, ``ngram`` or ``draft_model``.
        draft: The model that drafts; None where the text so far is searched.
        tokens: How many tokens are proposed and right; the draft is not priced yet.
    """

    method: str
    draft: ModelSpec | None
    tokens: Speculation

    @property
    def has_checkpoint(self) -> bool:
        """Whether the draft is a checkpoint of its own."""
        return self.method in ("eagle3", "eagle", DRAFT_MODEL)

    @property
    def title(self) -> str:
        """``eagle3, 3 tokens drafted per step, 1.8 accepted``."""
        name = self.draft.name if self.method == DRAFT_MODEL and self.draft is not None else self.method
        name += " (where the checkpoint brings such a layer)" if self.method == "mtp" else ""
        tree = f" in a tree of {self.tokens.tree_tokens}" if self.tokens.tree_tokens else ""
        tokens = f"{self.tokens.draft_tokens} token{'s' * (self.tokens.draft_tokens != 1)}"
        return f"{name}, {tokens} drafted per step{tree}, {self.tokens.accepted:g} accepted"

    @property
    def notes(self) -> tuple[Note, ...]:
        """What is taken for granted of a head that nobody described."""
        message = {
            "eagle3": f"a head of one dense layer over {EAGLE3_VOCABULARY:,} tokens",
            "eagle": "a head of one dense layer over the model's vocabulary",
            "mtp": "the checkpoint has a layer that predicts further tokens, like its others",
        }.get(self.method)
        return () if message is None else (Note(code="assumed_default", field="speculate", message=message),)

    def splits(self, plans: PlanBatch, engine: EngineSpec) -> BoolArray:
        """(N,) whether an engine speculates in a layout: without stages, with heads for every rank of the draft.

        Attention groups are refused by some methods of some engines (``EngineSpec.speculates_ungrouped``).

        Source:
            Stages: vLLM's documentation of speculative decoding ("not compatible with pipeline parallelism"; some
            methods run with them since mid 2026, pull requests 50514 and 46994); SGLang, ``check_server_args``
            (``server_args.py``, later ``arg_groups/validation_hook.py``); TensorRT-LLM, ``py_executor.py``
            ("Drafting is not supported for selected executor loop", issue 9009, 1.2).
        """
        heads = 0 if self.draft is None else self.draft.split_heads
        kept = (plans.pipeline_parallel == 1) & (heads % plans.tensor_parallel == 0)
        if self.method in engine.speculates_ungrouped:
            kept &= plans.attention_groups == 1
        return np.asarray(kept, dtype=np.bool_)


def drafting(asked: Mapping[str, Any], *, model: ModelSpec, engine: EngineSpec, allow_files: bool) -> Drafting | None:
    """What proposes tokens, as a caller writes it; None where nothing is asked for.

    Args:
        asked: ``speculate``, a method or the name of a draft model; ``draft_tokens`` proposed per step; of them
            ``accepted`` on average; and ``tree_tokens`` that a step verifies where drafts branch, for chains none.
        model: The model that verifies.
        engine: Who serves it.
        allow_files: Whether a name may be a path.

    Raises:
        SpecError: If the engine does not speculate so, a number is missing or out of bounds, or the draft is too large.
    """
    named = asked.get("speculate")
    if named is None:
        for name in ASKED:
            if asked.get(name) is not None:
                problem = "says something of speculative decoding, and none is asked for"
                raise SpecError(name, problem, "add speculate, for example eagle3")
        return None
    if not isinstance(named, str):
        raise SpecError("speculate", f"must be text; got {shown(named)}", f"{', '.join(METHODS)} or a model")
    word = named.strip().lower()
    method = word if word in METHODS else DRAFT_MODEL
    if method not in engine.speculates:
        able = [name.replace(DRAFT_MODEL, "a draft model") for name in engine.speculates]
        hint = ", ".join(able) if able else "engine vllm, sglang or tensorrt-llm"
        raise SpecError("speculate", f"{engine.name} does not speculate by {named[:40]!r}", hint)
    if model.linear_attention is not None:
        problem = f"nobody timed how {model.name}'s linear attention verifies several tokens in a step"
        raise SpecError("speculate", problem, "leave it out")
    draft = _draft(method, named, model, allow_files=allow_files)
    if asked.get("draft_tokens") is None:
        raise SpecError("draft_tokens", "is required: tokens proposed per step", "for example draft_tokens 3")
    count = whole_number("draft_tokens", asked["draft_tokens"], least=1, most=MOST_DRAFTED)
    tokens = Speculation(
        draft_tokens=count,
        accepted=_accepted(asked.get("accepted"), count),
        tree_tokens=_tree(asked.get("tree_tokens"), count, method, engine),
        shares_vocabulary=method in ("eagle", "mtp"),
    )
    return Drafting(method=method, draft=draft, tokens=tokens)


def _tree(value: Any, count: int, method: str, engine: EngineSpec) -> int:
    if value is None:
        return 0
    if not engine.drafts_trees or method not in _WITH_HEADS:
        problem = f"is of drafts that branch, which {engine.name} has none of by {method.replace('_', ' ')}"
        raise SpecError("tree_tokens", problem, "leave it out, or engine sglang with eagle3, eagle or mtp")
    return whole_number("tree_tokens", value, least=count + 2, most=MOST_VERIFIED)


def _draft(method: str, name: str, model: ModelSpec, *, allow_files: bool) -> ModelSpec | None:
    if method == "eagle3":
        return head_of(model, vocab_size=EAGLE3_VOCABULARY)
    if method in _WITH_HEADS:
        return head_of(model, experts=method == "mtp")
    if method != DRAFT_MODEL:
        return None
    try:
        draft = resolve_named_model(name, allow_files=allow_files).spec
    except SpecError as error:
        hint = f"one of {', '.join(METHODS)}, or a model" + (f"; {error.hint}" if error.hint else "")
        raise SpecError("speculate", f"is neither a method nor a model: {error.problem}", hint) from None
    if draft.num_layers * draft.hidden_size**2 >= model.num_layers * model.hidden_size**2:
        raise SpecError("speculate", f"{draft.name} is no smaller than {model.name}", "a smaller model of its family")
    if abs(draft.vocab_size / model.vocab_size - 1) > _PADDING:
        problem = f"{draft.name} has {draft.vocab_size:,} tokens, and {model.name} {model.vocab_size:,}: others"
        raise SpecError("speculate", problem, "a smaller model of its family")
    if draft.linear_attention is not None:
        raise SpecError("speculate", f"{draft.name} has linear attention", "a draft without")
    return replace(draft, checkpoint_weights="")


def _accepted(value: Any, count: int) -> float:
    if value is None:
        problem = "is required: of the tokens proposed per step, how many are accepted on average, which runs tell"
        hint = "accepted tokens over drafts in vLLM's metrics, SGLang's accept length less 1; for example accepted 1.5"
        raise SpecError("accepted", problem, hint)
    given = plain(value)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= count:
        hint = f"{given - 1:g}, without the model's own token" if given == count + 1 else ""
        raise SpecError("accepted", f"must be a number from 0 to draft_tokens, {count}; got {shown(value)}", hint)
    return float(given)
