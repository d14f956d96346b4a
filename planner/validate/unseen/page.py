"""Writes ``docs/unseen.md``: the packaged stacks against published runs that no fit of times or memory has ever read.

Run as ``python -m planner.validate.unseen.page --out docs/unseen.md``.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from costmodels.plan import BoolArray, FloatArray
from costmodels.uncertainty import NORMAL_90
from planner.validate.render import percent
from planner.validate.tables.rows import ScorableRow
from planner.validate.unseen.priced import BLIND_COMMITS, Judged, Kind, Unseen, mean_over, price_unseen
from planner.validate.unseen.publishers import (
    FEWEST_PUBLISHERS,
    TIMES,
    TOLD_BY,
    FirstErrors,
    Width,
    first_errors,
    widths_by_framework,
)
from planner.validate.unseen.publishers import MEMORY as PEAKS
from planner.validate.unseen.rounds import found_out, introduced
from planner.validate.unseen.words import FOUND, INTRODUCTION, MEMORY, TRAINING, TUNING, VERDICTS, WIDTHS
from profiles.markdown import table_head, table_row
from profiles.stacks import fitted_stacks

# Round to the widths that were packaged at the commit which priced it first: of steps by task, and of peaks; by
# framework since each has its own.
PACKAGED_THEN: Mapping[int, Mapping[str, float | Mapping[str, float]]] = {
    2: {"pretrain": 0.2692, "tuning": 0.2692, PEAKS: 0.2562},
    3: {"pretrain": 0.241, "tuning": 0.5802, PEAKS: 0.3598},
    4: {"pretrain": 0.2614, "tuning": 0.5875, PEAKS: 0.4858},
    5: {"pretrain": 0.349, "tuning": 0.5697, PEAKS: 0.5067},
    6: {"pretrain": 0.3136, "tuning": 0.5499, PEAKS: 0.4747},
    7: {
        "pretrain": {
            "deepspeed": 0.3254,
            "fsdp": 0.2687,
            "huggingface": 0.3461,
            "megatron": 0.1994,
            "nanotron": 0.3254,
        },
        "tuning": {"deepspeed": 0.6357, "fsdp": 0.6357, "huggingface": 0.4135, "megatron": 0.6357, "nanotron": 0.6357},
        PEAKS: {"deepspeed": 0.3208, "fsdp": 0.5981, "huggingface": 0.3312, "megatron": 0.4774, "nanotron": 0.4552},
    },
    8: {
        "pretrain": {
            "deepspeed": 0.3614,
            "fsdp": 0.3572,
            "huggingface": 0.4199,
            "megatron": 0.2532,
            "nanotron": 0.3614,
        },
        "tuning": {"deepspeed": 0.6546, "fsdp": 0.5619, "huggingface": 0.4118, "megatron": 0.5619, "nanotron": 0.5619},
        PEAKS: {"deepspeed": 0.3173, "fsdp": 0.5886, "huggingface": 0.3306, "megatron": 0.4774, "nanotron": 0.3982},
    },
    9: {
        "pretrain": {
            "deepspeed": 0.3691,
            "fsdp": 0.4588,
            "huggingface": 0.4199,
            "megatron": 0.286,
            "nanotron": 0.3691,
        },
        "tuning": {"deepspeed": 0.6545, "fsdp": 0.5612, "huggingface": 0.4106, "megatron": 0.5612, "nanotron": 0.5612},
        PEAKS: {"deepspeed": 0.3174, "fsdp": 0.5886, "huggingface": 0.3305, "megatron": 0.4744, "nanotron": 0.3773},
    },
    10: {
        "pretrain": {
            "deepspeed": 0.3949,
            "fsdp": 0.3725,
            "huggingface": 0.4176,
            "megatron": 0.2952,
            "nanotron": 0.3949,
        },
        "tuning": {"deepspeed": 0.6043, "fsdp": 0.5612, "huggingface": 0.3335, "megatron": 0.5612, "nanotron": 0.5612},
        PEAKS: {"deepspeed": 0.3158, "fsdp": 0.5865, "huggingface": 0.3286, "megatron": 0.3795, "nanotron": 0.3694},
    },
    11: {
        "pretrain": {"deepspeed": 0.3938, "fsdp": 0.4368, "huggingface": 0.417, "megatron": 0.2831, "nanotron": 0.3938},
        "tuning": {"deepspeed": 0.6046, "fsdp": 0.4324, "huggingface": 0.3302, "megatron": 0.5576, "nanotron": 0.4324},
        PEAKS: {"deepspeed": 0.3158, "fsdp": 0.5865, "huggingface": 0.3023, "megatron": 0.4685, "nanotron": 0.3669},
    },
}
MEMORY_COMMIT = "84afd51"  # of the first round's memory of training
_NOTHING = ("", "", "")
_USUAL = "megatron"  # whose width is told apart in words
_WIDTH_OF = {"pretrain": "steps of pre-training", "tuning": "steps of fine-tuning", PEAKS: "peaks"}
_SECTIONS = {Kind.TRAINING: TRAINING, Kind.TUNING: TUNING, Kind.TRAINING_MEMORY: MEMORY, Kind.TUNING_MEMORY: ""}


def unseen_page(rounds: Mapping[int, Unseen]) -> str:
    """The page as Markdown.

    Args:
        rounds: The tables of every round that has been priced, by ``fitted_stacks()``.
    """
    lines = sum(unseen.lines for unseen in rounds.values())
    parts = [INTRODUCTION.format(figures=lines, first=rounds[1].lines, commit=BLIND_COMMITS[1])]
    for kind, words in _SECTIONS.items():
        parts += [f"## {kind}\n", words.format(commit=MEMORY_COMMIT)] if words else [f"## {kind}\n"]
        parts.append(_by_source(rounds[1], rounds[1].judged[kind]))
    parts += ["## Out-of-memory verdicts\n", VERDICTS, _verdicts(rounds[1])]
    parts += [_later_round(number, rounds) for number in rounds if number > 1]
    parts += [
        _widths(rounds),
        FOUND,
        *(text for number in rounds if (text := found_out(number))),
        _all_figures(rounds),
    ]
    return "\n".join(parts)


def _later_round(number: int, rounds: Mapping[int, Unseen]) -> str:
    """A round after the first: its own blind errors, and what the intervals that were packaged then hold of them."""
    unseen = rounds[number]
    figures: dict[str, object] = {"lines": unseen.lines, "commit": BLIND_COMMITS[number]}
    for what, kinds in TOLD_BY.items():
        own, told = first_errors([unseen], kinds), PACKAGED_THEN[number][what]
        groups = [own.of(name) for name in own.names]
        figures |= {
            f"{what}_names": len(own.names),
            f"{what}_alone": percent(mean_over(groups, own.covered(0.0))) if groups else "none",
            f"{what}_packaged": percent(mean_over(groups, own.covered(told))) if groups else "none",
        }
    parts = [introduced(number).format(**figures)]
    for kind, judged in unseen.judged.items():
        if len(judged.numbers):
            parts += [f"### {kind} of round {number}\n", _by_source(unseen, judged)]
    if len(unseen.verdicts.numbers):
        parts += [f"### Out-of-memory verdicts of round {number}\n", _verdicts(unseen)]
    return "\n".join(parts)


def _by_source(unseen: Unseen, judged: Judged) -> str:
    errors = ("MAPE", "bias", "worst", "in 90 %")
    head = ("source", "stack", "figures", *(f"{when} {name}" for when in ("blind", "now") for name in errors))
    lines = list(table_head(head))
    groups = judged.by_source()
    for source, of in groups.items():
        stacks = sorted({unseen.rows[number].stack for number in judged.numbers[of].tolist()})
        name = f"{', '.join(stacks)}{' (stands in)' if source in unseen.stands_in else ''}"
        first = of & judged.first_priced
        before = _errors(judged.blind[first], judged.blind_inside[first])
        lines.append(table_row(source, name, int(of.sum()), *before, *_errors(judged.error[of], judged.inside[of])))
    if len(groups) > 1:
        first_of = [of & judged.first_priced for of in groups.values() if (of & judged.first_priced).any()]
        means = [mean_over(first_of, np.abs(judged.blind)), mean_over(first_of, judged.blind_inside)]
        means += [mean_over(groups.values(), np.abs(judged.error)), mean_over(groups.values(), judged.inside)]
        cells = [cell for pair in (means[:2], means[2:]) for cell in (percent(pair[0]), "", "", percent(pair[1]))]
        lines.append(table_row("mean over sources", "", len(judged.numbers), *cells))
    return "\n".join([*lines, ""])


def _errors(errors: FloatArray, held: BoolArray) -> tuple[str, str, str, str]:
    if not len(errors):
        return "", "", "", ""
    worst = errors[np.argmax(np.abs(errors))]
    return (
        percent(float(np.abs(errors).mean())),
        f"{100 * errors.mean():+.1f} %",
        f"{100 * worst:+.1f} %",
        percent(float(held.mean())),
    )


def _verdicts(unseen: Unseen) -> str:
    verdicts = unseen.verdicts
    lines = list(table_head(("source", "died: foreseen blind", "now", "ran: cleared blind", "now")))
    groups = {name: verdicts.sources == name for name in dict.fromkeys(verdicts.sources.tolist())}
    for source, of in [*groups.items(), ("all", np.ones(len(verdicts.died), dtype=np.bool_))]:
        cells = []
        for fate in (verdicts.died, ~verdicts.died):
            own = of & fate
            first = own & np.isfinite(verdicts.blind)
            cells.append(f"{verdicts.blind[first].sum():.0f}/{first.sum()}" if first.any() else "")
            cells.append(f"{verdicts.right[own].sum()}/{own.sum()}" if own.any() else "")
        lines.append(table_row(source, *cells))
    return "\n".join([*lines, ""])


def _widths(rounds: Mapping[int, Unseen]) -> str:
    """What the blind errors of all rounds say of intervals, framework by framework and publisher by publisher."""
    parts = {what: first_errors(rounds.values(), kinds) for what, kinds in TOLD_BY.items()}
    widths = {what: widths_by_framework(first) for what, first in parts.items()}
    figures: dict[str, object] = {"table": _width_summary(parts, widths), "fewest": FEWEST_PUBLISHERS}
    for what, first in parts.items():
        figures[f"{what}_before"] = percent(mean_over([first.of(name) for name in first.names], first.covered(0.0)))
    usual = widths["pretrain"][_USUAL].told
    level = np.sqrt(usual.width() ** 2 - usual.within() ** 2)
    for name, width in (("width", usual.width()), ("level", level), ("left", usual.within())):
        figures[f"pretrain_{name}"] = f"{width:.2f}"
    for name, stands_in in (("described", False), ("stood_in", True)):
        held = [parts[task].covered(0.0)[own] for task in TIMES for own in _own(parts[task], stands_in)]
        figures[name] = percent(float(np.mean([own.mean() for own in held])))
    tables = [_width_table(_WIDTH_OF[what], of_framework) for what, of_framework in widths.items()]
    return "\n".join([WIDTHS.format(**figures), *tables])


def _width_summary(parts: Mapping[str, FirstErrors], widths: Mapping[str, Mapping[str, Width]]) -> str:
    """One line per width: how it is told, and what it, or one for all, holds of publishers that did not tell it."""
    head = (
        *("", "framework", "publishers", "their mean log errors, RMS", "spread about them, RMS", "width (log std)"),
        *("as a factor", "with one left out", "then in the interval", "were one width for all"),
    )
    lines = list(table_head(head))
    for what, of_framework in widths.items():
        every = parts[what]
        for framework, width in of_framework.items():
            told = width.told
            between, within = told.spreads()
            without = [told.width(without=name) for name in told.names]
            own = [width.of.of(name) for name in width.of.names]
            judged = (width.covered_by_others(), width.of.covered_by_others(every)) if own else ()
            shares = [percent(mean_over(own, held)) for held in judged] or ["", ""]
            lines.append(
                table_row(
                    _WIDTH_OF[what], framework, len(told.names), f"{between:.2f}", f"{within:.2f}",
                    f"{told.width():.2f}", f"x/ {np.exp(NORMAL_90 * told.width()):.2f}",
                    f"{min(without):.2f} to {max(without):.2f}", *shares,
                )
            )  # fmt: skip
    return "\n".join([*lines, ""])


def _own(first: FirstErrors, stands_in: bool) -> list[BoolArray]:
    """Figures of each publisher, those whose stack stood in, or the others."""
    found = [first.of(name) & (first.stands_in == stands_in) for name in first.names]
    return [own for own in found if own.any()]


def _width_table(what: str, widths: Mapping[str, Width]) -> str:
    head = (
        *(what, "framework", "figures", "mean log error", "spread about it", "fits alone", "in it"),
        *("told by others", "in it"),
    )
    lines, before, after = list(table_head(head)), [], []
    for framework, width in widths.items():
        first, held, alone = width.of, width.covered_by_others(), width.of.covered(0.0)
        for name in first.names:
            of = first.of(name)
            told, half_width = width.told.width(without=name), first.half_width[of]
            before.append(float(alone[of].mean()))
            after.append(float(held[of].mean()))
            lines.append(
                table_row(
                    name, framework, int(of.sum()), f"{first.error[of].mean():+.2f}", f"{first.error[of].std():.2f}",
                    f"x/ {np.exp(half_width.mean()):.2f}", percent(before[-1]),
                    f"x/ {np.exp(np.hypot(half_width, NORMAL_90 * told).mean()):.2f}", percent(after[-1]),
                )
            )  # fmt: skip
    figures = sum(len(width.of.error) for width in widths.values())
    cells = (percent(float(np.mean(before))), "", percent(float(np.mean(after))))
    lines.append(table_row("mean", "", figures, "", "", "", *cells))
    return "\n".join([*lines, ""])


def _all_figures(rounds: Mapping[int, Unseen]) -> str:
    """One line per row: what was measured, and both errors."""
    head = ("source", "model", "cluster", "plan", "step, s", "blind", "now", "peak, GB", "blind", "now", "verdict")
    return "\n".join(
        ["## Every figure", "", *table_head(head), *(line for each in rounds.values() for line in _figures(each)), ""]
    )


def _figures(unseen: Unseen) -> Iterable[str]:
    times, peaks = (_cells(unseen, of_memory=of_memory) for of_memory in (False, True))
    fates = _fates(unseen)
    for number, row in enumerate(unseen.rows):
        what = (row.source, row.model_name, row.cluster.name, _plan(row))
        cells = (*times.get(number, _NOTHING), *peaks.get(number, _NOTHING), fates.get(number, ""))
        yield table_row(*what, *cells)


def _cells(unseen: Unseen, *, of_memory: bool) -> Mapping[int, tuple[str, str, str]]:
    """Row to its measurement and both errors."""
    found = {}
    for kind, judged in unseen.judged.items():
        if kind.of_memory != of_memory:
            continue
        for place, number in enumerate(judged.numbers.tolist()):
            blind = f"{100 * judged.blind[place]:+.0f} %" if judged.first_priced[place] else ""
            measured = judged.measured[place] / (1e9 if of_memory else 1.0)
            found[number] = (f"{measured:.4g}", blind, f"{100 * judged.error[place]:+.0f} %")
    return found


def _fates(unseen: Unseen) -> Mapping[int, str]:
    """Row to what became of it where the verdict on it is, or was, wrong, or it died."""
    verdicts = unseen.verdicts
    found = {}
    for number, died, right, blind in zip(
        verdicts.numbers.tolist(), verdicts.died.tolist(), verdicts.right.tolist(), verdicts.blind.tolist(), strict=True
    ):
        first = {1.0: "right", 0.0: "wrong"}.get(blind, "none")
        if died or not right or first == "wrong":
            found[number] = f"{'died' if died else 'ran'}: blind {first}, now {'right' if right else 'wrong'}"
    return found


def _plan(row: ScorableRow) -> str:
    """The plan in few words."""
    plan, job = row.plan, row.job
    words = [
        f"t{plan.tensor_parallel} p{plan.pipeline_parallel} d{plan.data_parallel} ZeRO-{plan.zero_stage}"
        f"{f' over {plan.zero_shard_degree}' if plan.zero_shard_degree else ''}",
        f"{plan.micro_batch_size} x {plan.num_microbatches} of {job.sequence_length}",
        f"recompute {plan.recompute.name.lower()}",
        job.precision,
        *([] if job.task == "pretrain" else [job.task]),
        *(["offload"] if plan.offload_optimizer or plan.offload_parameters or plan.offload_activations else []),
    ]
    return ", ".join(words)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page.

    Args:
        arguments: Command line; that of the process when None.
    """
    parser = argparse.ArgumentParser(prog="planner.validate.unseen.page", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    chosen = parser.parse_args(arguments)
    chosen.out.write_text(unseen_page(price_unseen(fitted_stacks())), encoding="utf-8")


if __name__ == "__main__":
    main()
