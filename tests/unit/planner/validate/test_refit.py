"""The refit: which rows are fitted, what is left out together, and a card that loads as written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from planner.validate import refit as module
from planner.validate.accuracy import cross_validate
from planner.validate.predict import predict_rows
from planner.validate.refit import (
    MOST_ROWS_PER_FILE,
    Refit,
    card,
    fold_of,
    left_out_together,
    refit,
    time_stack,
)
from planner.validate.report import published_table
from planner.validate.stack_fit import PRIOR_STD, StackFit, free_parameters
from planner.validate.tables.mapping import Mapped, scorable_rows
from planner.validate.tables.rows import ScorableRow
from profiles import stacks as packaged
from profiles.stack import StackSpec
from profiles.stacks import load_priors, load_stacks

PUBLISHED = scorable_rows([published_table()])
ROW = next(row for row in PUBLISHED if row.stack == "megatron-core" and row.step_time_s is not None)
SWEEP = next(row for row in PUBLISHED if row.stack == "nanotron" and row.step_time_s is not None)

OWNER = StackSpec(
    name="owner", framework="megatron", description="has its own times", kernel_launch_s=1e-5, context_bytes=1e9
)
GUEST = StackSpec(
    name="guest",
    framework="megatron",
    description="has the owner's",
    shares_time_with="owner",
    kernel_launch_s=1e-5,
    context_bytes=2e9,
)
OTHER = replace(OWNER, name="other", gemm_time_scale=0.8)
STACKS = {stack.name: stack for stack in (OWNER, GUEST, OTHER)}


class Closed:
    """Prices a row at its line number times the linear-layer scale; line 0 cannot be priced."""

    built: list[int] = []  # noqa: RUF012

    def __init__(self, rows: Sequence[ScorableRow]) -> None:
        self.rows = rows
        self.built.append(len(rows))

    def step_times_s(self, stacks: Mapping[str, StackSpec]) -> np.ndarray:
        return np.array([row.line * stacks[row.stack].gemm_time_scale if row.line else np.nan for row in self.rows])

    def predict(self, stacks: Mapping[str, StackSpec]) -> SimpleNamespace:
        times = self.step_times_s(stacks)
        widths = np.array([0.04 + stacks[row.stack].residual_log_std for row in self.rows])
        low_s, high_s = times * np.exp(-2 * widths), times * np.exp(widths)
        return SimpleNamespace(step_time_s=times, step_time_low_s=low_s, step_time_high_s=high_s)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RowPredictor", Closed)
    monkeypatch.setattr(Closed, "built", [])


def runs(file: str, stack: str, *, scale: float = 1.0, count: int = 20, **changes: object) -> list[ScorableRow]:
    """Runs of one stack that take ``scale`` times their price."""
    return [
        replace(ROW, file=file, source=file, stack=stack, line=line, step_time_s=scale * line, **changes)  # type: ignore[arg-type]
        for line in range(1, count + 1)
    ]


def fitted(rows: Sequence[ScorableRow], left_out_with: Mapping[tuple[str, str], str] | None = None) -> Refit:
    return refit(rows, STACKS, left_out_with)


@pytest.mark.usefixtures("closed")
def test_rows_without_a_usable_time_are_left_out() -> None:
    good = runs("a.csv", "owner", count=3)
    bad = [
        replace(good[0], step_time_s=None),
        replace(good[0], trend=True),
        replace(good[0], line=0),  # cannot be priced
    ]
    assert fitted([*bad, *good]).rows == tuple(good)


@pytest.mark.usefixtures("closed")
def test_stacks_that_share_times_are_fitted_together() -> None:
    result = fitted([*runs("a.csv", "owner", scale=1.2), *runs("b.csv", "guest", scale=1.2)])
    stacks = result.fit.stacks
    assert stacks["owner"].gemm_time_scale == pytest.approx(1.2, rel=0.05)
    for kept in (stacks, *result.fit.held_out.values()):
        assert {name: getattr(kept["guest"], name) for name in PRIOR_STD} == {
            name: getattr(kept["owner"], name) for name in PRIOR_STD
        }
        assert kept["guest"].context_bytes == GUEST.context_bytes
        assert kept["owner"].context_bytes == OWNER.context_bytes
        assert kept["other"] == OTHER
    assert result.fit.held_out_s == pytest.approx(result.measured_s, rel=0.05)  # each is judged by the other's runs


@pytest.mark.parametrize("scale", ["blackwell_16bit_time_scale", "hopper_16bit_time_scale"])
@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"owner": (1.6, 0.9)}, 1.6),
        ({"owner": (1.5, 0.8), "other": (2.0, 0.8)}, 3**0.5),
        ({"owner": (1.2, 0.75), "other": (2.0, 0.5)}, (1.2**3 * 2.0) ** 0.25),
        ({"owner": (1.6, 0.9), "other": (0.8, 0.05)}, 1.6),
    ],
)
def test_stacks_whose_runs_say_nothing_of_a_board_share_what_others_tell(
    scale: str, told: Mapping[str, tuple[float, float]], expected: float
) -> None:
    """Each by how much more its runs tell than its prior; what hardly moved was not told."""
    start = {name: StackSpec(name=name, framework="fsdp", description="") for name in ("owner", "other", "idle")}
    stacks = {name: replace(stack, **{scale: told.get(name, (1.0, 0.0))[0]}) for name, stack in start.items()}  # type: ignore[arg-type]
    fit = StackFit(
        stacks=stacks,
        told={name: {scale: share} for name, (_, share) in told.items()},
        held_out={},
        held_out_s=np.empty(0),
    )
    found = {name: getattr(stack, scale) for name, stack in module._with_power_limits(fit).items()}
    kept = {name: value for name, (value, share) in told.items() if share > 0.1}
    assert found == pytest.approx(dict.fromkeys(start, expected) | kept)
    assert module._with_power_limits(replace(fit, told={})) == stacks


@pytest.mark.usefixtures("closed")
def test_files_are_left_out_whole_unless_named_together() -> None:
    rows = [
        *runs("a.csv", "owner", scale=1.3),
        *runs("b.csv", "owner", scale=1.3),
        *runs("c.csv", "owner", scale=0.95),
    ]
    apart = fitted(rows).fit.held_out
    assert sorted(apart) == ["a.csv", "b.csv", "c.csv"]
    together = fitted(rows, {("a.csv", "a.csv"): "one", ("b.csv", "b.csv"): "one"}).fit.held_out
    assert sorted(together) == ["c.csv", "one"]
    assert together["one"]["owner"].gemm_time_scale < 1 < apart["a.csv"]["owner"].gemm_time_scale


@pytest.mark.usefixtures("closed")
def test_tables_of_one_publisher_are_left_out_together() -> None:
    """So that the residual on the card is that of a stranger's runs."""
    rows = [
        replace(row, source=source)
        for file, source, scale in (("a.csv", "P (2023)", 1.3), ("b.csv", "P (2024)", 1.3), ("c.csv", "Q", 1.0))
        for row in runs(file, "owner", scale=scale)
    ]
    result = fitted(rows)
    assert sorted(result.fit.held_out) == ["P", "Q"]
    assert result.fit.held_out["P"]["owner"].gemm_time_scale == pytest.approx(1.0)
    assert card(result)["stacks"]["owner"]["residual_log_std"] > 0.9 * np.log(1.3) / 1.645


@pytest.mark.usefixtures("closed")
def test_widths_are_those_of_prices_alone() -> None:
    wide = {name: replace(stack, residual_log_std=0.5) for name, stack in STACKS.items()}
    result = refit(runs("a.csv", "owner"), wide)
    assert result.price_half_width == pytest.approx(0.04)
    quicker = [replace(row, step_time_s=0.9 * float(row.step_time_s or 0)) for row in runs("a.csv", "owner")]
    assert refit(quicker, wide).price_half_width == pytest.approx(0.08)  # the side that measurements lie on
    assert result.folds == ("a.csv",) * 20


@pytest.mark.usefixtures("closed")
def test_a_file_has_no_say_in_its_own_prediction() -> None:
    rows = [*runs("a.csv", "owner", scale=1.3), *runs("b.csv", "owner"), *runs("c.csv", "guest", scale=1.1)]
    changed = [replace(row, step_time_s=3 * row.line) if row.file == "c.csv" else row for row in rows]
    first, second = fitted(rows), fitted(changed)
    own = [row.file == "c.csv" for row in rows]
    assert first.fit.held_out_s[own].tobytes() == second.fit.held_out_s[own].tobytes()
    assert first.fit.held_out["c.csv"] == second.fit.held_out["c.csv"]
    assert first.fit.stacks != second.fit.stacks


@pytest.mark.usefixtures("closed")
def test_rows_are_grouped_once_per_selection() -> None:
    fitted([*runs("a.csv", "owner", scale=1.3), *runs("b.csv", "owner", count=10)])
    # All to check that they can be priced, to fit and for their widths; each file on its own to fit and to judge.
    assert sorted(Closed.built) == [10, 20, 30, 30, 30]


def test_folds_are_files_and_groups_of_a_sweep_judged_apart() -> None:
    assert fold_of(replace(ROW, file="a.csv", source="One"), {}) == "a.csv"
    assert fold_of(replace(ROW, file="a.csv", source="One"), {("a.csv", "One"): "P"}) == "P"
    group = f"{SWEEP.model_name} on {SWEEP.cluster.num_devices}"
    assert fold_of(replace(SWEEP, file="s.csv"), {}) == f"s.csv: {group}"
    assert fold_of(replace(SWEEP, file="s.csv"), {("s.csv", SWEEP.source): "P"}) == f"P: {group}"
    larger = replace(SWEEP.cluster, num_nodes=2 * SWEEP.cluster.num_nodes)
    assert fold_of(SWEEP, {}) != fold_of(replace(SWEEP, cluster=larger), {})
    assert fold_of(SWEEP, {}) != fold_of(replace(SWEEP, model_name="another"), {})


@pytest.mark.parametrize(
    ("stack", "name"), [(OWNER, "owner"), (GUEST, "owner"), (OTHER, "other")], ids=lambda item: str(item)[:8]
)
def test_time_stack(stack: StackSpec, name: str) -> None:
    assert time_stack(stack) == name


def test_thinning_is_even_and_keeps_the_ends() -> None:
    large = runs("large.csv", "owner", count=MOST_ROWS_PER_FILE * 5 // 2)
    small = runs("small.csv", "owner", count=MOST_ROWS_PER_FILE)
    kept = module._thinned([*large, *small])
    lines = [row.line for row in kept if row.file == "large.csv"]
    assert len(lines) == MOST_ROWS_PER_FILE
    assert (lines[0], lines[-1]) == (1, len(large))
    assert set(np.diff(lines).tolist()) == {2, 3}
    assert [row for row in kept if row.file == "small.csv"] == small
    assert module._thinned([*large, *small]) == kept
    assert module._thinned([]) == []


@pytest.mark.parametrize("count", [1, 2, 3, MOST_ROWS_PER_FILE - 1, MOST_ROWS_PER_FILE + 1])
def test_thinning_keeps_as_many_as_it_may(count: int) -> None:
    rows = runs("a.csv", "owner", count=count)
    kept = module._thinned(rows)
    assert len(kept) == min(count, MOST_ROWS_PER_FILE)
    assert [row.line for row in kept] == sorted({row.line for row in kept})


def hand_made(error: float = 0.1) -> Refit:
    """A fit whose held-out predictions are all too low by ``error``, in logs."""
    rows = [*runs("b.csv", "owner", count=10), *runs("a.csv", "guest", count=10), *runs("a.csv", "other", count=4)]
    measured_s = np.array([row.step_time_s for row in rows], dtype=float)
    owner = replace(OWNER, gemm_time_scale=1.23456789, kernel_launch_s=1.23456789e-5)
    fit = StackFit(
        stacks={"owner": owner, "guest": GUEST, "other": OTHER},
        told={},
        held_out={},
        held_out_s=measured_s * np.exp(-error),
    )
    return Refit(
        rows=tuple(rows),
        folds=tuple(row.file for row in rows),
        measured_s=measured_s,
        price_half_width=np.zeros(len(rows)),
        fit=fit,
    )


# Two files tell of "owner" and its guest, and the other stack counts as one more: a new file's factor.
NEW_FILE = np.sqrt(1 + 1 / 3)


def test_card_says_what_was_fitted_on_what() -> None:
    stacks = card(hand_made())["stacks"]
    assert sorted(stacks) == ["other", "owner"]  # a guest has no entry of its own
    owner = stacks["owner"]
    assert sorted(owner["values"]) == sorted(free_parameters(OWNER))
    assert owner["values"]["gemm_time_scale"] == pytest.approx(1.235, abs=1e-9)
    assert owner["values"]["kernel_launch_s"] == pytest.approx(1.235e-5, abs=1e-12)
    assert (owner["rows"], owner["sources"]) == (20, ["a.csv", "b.csv"])
    assert owner["residual_log_std"] == pytest.approx(NEW_FILE * 0.1 / 1.645, abs=1e-4)
    assert owner["held_out_mape"] == pytest.approx(1 - np.exp(-0.1), abs=1e-4)  # of the measured time
    assert (stacks["other"]["rows"], stacks["other"]["sources"]) == (4, ["a.csv"])


def test_what_kernels_already_leave_open_is_not_told_twice() -> None:
    """The residual joins their interval as independent errors do: 0.06 and 0.08 make the 0.1 that was found."""
    partly = replace(hand_made(), price_half_width=np.full(24, 0.06))
    assert card(partly)["stacks"]["owner"]["residual_log_std"] == pytest.approx(NEW_FILE * 0.08 / 1.645, abs=1e-4)
    wholly = replace(hand_made(), price_half_width=np.full(24, 0.2))
    assert card(wholly)["stacks"]["owner"]["residual_log_std"] == 0.024  # runs of one plan scatter so much


def test_spread_within_a_file_is_about_its_own_mean() -> None:
    """Two files, one 20 % slower and one 10 % faster than predicted, each scattering by 5 % about that."""
    result = hand_made()
    files = np.array([row.file for row in result.rows])
    scatter = np.where(np.arange(len(files)) % 2, 0.05, -0.05)
    error = np.where(files == "a.csv", np.log(1.2), np.log(0.9)) + scatter
    shifted = replace(result, fit=replace(result.fit, held_out_s=result.measured_s * np.exp(-error)))
    owner = card(shifted)["stacks"]["owner"]
    assert owner["within_log_std"] == pytest.approx(0.05 / 1.645, abs=2e-3)
    assert owner["residual_log_std"] > 3 * owner["within_log_std"]


def test_card_is_what_the_catalogue_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("stacks", "fits"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    own = ("framework", "description", "shares_time_with", "kernel_launch_s", "context_bytes", "gemm_time_scale")
    table = {name: {field: getattr(stack, field) for field in own} for name, stack in STACKS.items()}
    (tmp_path / "data" / "stacks" / "all.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    (tmp_path / "data" / "fits" / "stacks.json").write_text(json.dumps(card(hand_made())), encoding="utf-8")
    monkeypatch.setattr(packaged, "resources", SimpleNamespace(files=lambda name: tmp_path))
    load_priors.cache_clear()
    load_stacks.cache_clear()
    try:
        assert dict(load_priors()) == STACKS
        read = load_stacks()
    finally:
        load_priors.cache_clear()
        load_stacks.cache_clear()
    for name in ("owner", "guest"):
        assert read[name].gemm_time_scale == pytest.approx(1.23456789, rel=1e-3)
        assert read[name].kernel_launch_s == pytest.approx(1.23456789e-5, rel=1e-3)
        assert read[name].residual_log_std == pytest.approx(NEW_FILE * 0.1 / 1.645, abs=1e-4)
        assert read[name].fitted_on == "20 runs of a.csv, b.csv"
        assert read[name].context_bytes == STACKS[name].context_bytes
    assert read["other"].gemm_time_scale == pytest.approx(0.8)


def test_program_writes_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def rows_of(paths: Sequence[Path]) -> list[ScorableRow]:
        seen.extend(paths)
        return [ROW]

    for name in ("b.csv", "a.csv", "notes.md"):
        (tmp_path / name).write_text("", encoding="utf-8")
    monkeypatch.setattr(module, "scorable_rows", rows_of)
    monkeypatch.setattr(module, "refit", lambda rows, jobs: hand_made())
    monkeypatch.setattr("sys.argv", ["refit", "--data", str(tmp_path), "--out", str(tmp_path / "out.json")])
    module.main()
    assert [path.name for path in seen] == ["a.csv", "b.csv"]
    text = (tmp_path / "out.json").read_text(encoding="utf-8")
    assert json.loads(text) == card(hand_made())
    assert text.index('"other"') < text.index('"owner"')
    assert text.endswith("}\n")


@pytest.mark.usefixtures("closed")
def test_the_accuracy_page_judges_each_row_by_the_stacks_of_its_fold() -> None:
    """Sweeps by group, stacks that share times by the times they share, files of one publisher together."""
    overlapped = next(row for row in PUBLISHED if row.stack == "megatron-core-ep-overlap")
    guest = replace(overlapped, recompute_assumed=False)  # which would hang on the memory fit
    owner = ROW
    named = [
        *((row, file, source, 1.0) for row, file, source in ((owner, "a", "P (2021)"), (guest, "b", "P (2022)"))),
        *((row, file, file, 1.4) for row, file in ((owner, "c"), (guest, "d"))),
        *((replace(SWEEP, model_name=name), "s", "S", scale) for name, scale in (("one", 1.0), ("two", 1.5))),
    ]
    rows = tuple(
        replace(row, file=file, source=source, line=line, step_time_s=scale * line)
        for line, (row, file, source, scale) in enumerate(named, start=1)
    )
    found = cross_validate(Mapped(scorable=rows, unscorable=()))
    folds = found.refit.fit.held_out
    together = left_out_together(rows)
    assert sorted(folds) == sorted({fold_of(row, together) for row in rows})
    assert len(folds) == 5
    priced = [predict_rows([row], folds[fold_of(row, together)]).step_time_s[0] for row in rows]
    assert [row.predicted_step_time_s for row in found.held_out.rows] == pytest.approx(priced)
    fitted_s = predict_rows(rows, found.refit.fit.stacks).step_time_s
    assert [row.predicted_step_time_s for row in found.in_sample.rows] == pytest.approx(fitted_s)
    assert all(abs(held_out / seen - 1) > 1e-4 for held_out, seen in zip(priced, fitted_s, strict=True))
    priors = predict_rows(rows, load_priors()).step_time_s
    assert all(abs(held_out / prior - 1) > 1e-4 for held_out, prior in zip(priced[:5], priors[:5], strict=True))


def test_real_prices_reach_the_fit() -> None:
    """Two published runs of one source, priced by the planner itself, and the held-out one by the prior alone."""
    pair = [row for row in PUBLISHED if row.source == ROW.source and row.step_time_s is not None][:2]
    result = refit(pair)
    prior = load_priors()
    expected = module.RowPredictor(pair).step_times_s(prior)
    assert result.fit.held_out_s == pytest.approx(expected)
    fitted_s = module.RowPredictor(pair).step_times_s(result.fit.stacks)
    error = [np.abs(np.log(times / result.measured_s)).max() for times in (fitted_s, expected)]
    assert error[0] < error[1]
