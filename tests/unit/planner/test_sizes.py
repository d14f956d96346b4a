"""``planner.sizing`` and ``planner sizing``: sizes looked at, what stands out, priced as plans are."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import jsonschema_rs
import pytest

import planner
from planner.document_sizing import sizing_schema
from planner.question.pins import ALIASES
from planner.sizes import KindSizes, Size, SizingResult, _beside_cheapest
from profiles.errors import SpecError
from tests.command import Command

JOB = {"sequence_length": 2048, "train_tokens": 1e11}


@pytest.fixture(scope="module")
def one() -> SizingResult:
    return planner.sizing("llama-2-7b", "12x8xA100-80GB", JOB, days=12)


def best_of(size: Size | None) -> planner.PlanResult:
    assert size is not None
    return planner.plan("llama-2-7b", f"{size.num_devices}xA100-80GB", JOB, top=1)


def test_sizes_double_up_to_the_cluster(one: SizingResult) -> None:
    sizes = [size.num_devices for size in one.kinds[0].sizes]
    assert {1, 2, 4, 8, 16, 32, 64, 96} <= set(sizes)
    assert sizes == sorted(sizes)
    assert all(size.num_nodes == max(size.num_devices // 8, 1) for size in one.kinds[0].sizes)


def test_a_size_is_priced_as_the_plan_of_such_a_cluster(one: SizingResult) -> None:
    for size in one.kinds[0].sizes:
        result = best_of(size)
        assert result.fits == (size.best is not None)
        if size.best is not None and result.best is not None:
            assert (size.best.plan, size.best.step_time_s) == (result.best.plan, result.best.step_time_s)
            assert size.batch == result.request.job.global_batch_size
            assert size.warnings == result.warnings


def test_of_a_size_the_fastest_plan_that_is_likely_to_live_is_told() -> None:
    """What is bought for a run has to hold it."""
    job = {"sequence_length": 8192, "global_batch_size": 512, "train_tokens": 1e12}
    sizes = planner.sizing("llama-3-70b", "32x8xH100", job).kinds[0].sizes
    (whole,) = (size for size in sizes if size.num_devices == 256)
    result = planner.plan("llama-3-70b", "32x8xH100", job)
    assert whole.best is not None
    assert result.best is not None
    assert result.riskier is not None
    assert whole.best.plan == result.best.plan != result.riskier.plan
    daring = planner.sizing("llama-3-70b", "32x8xH100", job, max_oom_risk=1).kinds[0].sizes
    assert daring[-1].best is not None
    assert daring[-1].best.plan == result.riskier.plan


def test_the_fewest_is_the_first_that_fits(one: SizingResult) -> None:
    kind = one.kinds[0]
    assert kind.fewest is not None
    assert kind.fewest.num_devices == 2
    assert kind.sizes[0].best is None
    assert kind.sizes[0].nearest_bytes is not None
    assert kind.sizes[0].nearest_bytes > kind.request.cluster.device.usable_memory_bytes


def test_what_stands_out_is_likely_to_live_where_anything_is() -> None:
    """Llama-3.1-70B fits 16 H100 by a hair, and three nodes of them for sure; `planner plan` says the same."""
    asked: dict[str, Any] = {"model": "llama-3.1-70b", "job": {"sequence_length": 4096}}
    sure, daring = (planner.sizing(clusters="4x8xH100", **asked, max_oom_risk=most).kinds[0] for most in (0.2, 1.0))
    assert daring.fewest is not None
    assert daring.fewest.num_devices == 16
    assert daring.fewest.likely
    assert sure.fewest is not None
    assert sure.fewest.num_devices == 24
    assert [size.likely for size in sure.sizes if size.best is not None] == [False, True, True]
    plan = planner.plan("llama-3.1-70b", "2x8xH100", asked["job"], top=1)
    assert plan.best is not None
    assert plan.best.risky


def test_the_cheapest_takes_the_least_device_time(one: SizingResult) -> None:
    kind = one.kinds[0]
    assert kind.cheapest is not None
    assert kind.cheapest.best is not None
    hours = [size.best.run.device_hours for size in kind.sizes if size.best is not None and size.best.run is not None]
    assert kind.cheapest.best.run is not None
    assert kind.cheapest.best.run.device_hours == pytest.approx(min(hours), rel=0.01)  # but for the last step's rest
    assert kind.cheapest.device_seconds_per_token == pytest.approx(
        kind.cheapest.num_devices / kind.cheapest.best.tokens_per_s
    )


def test_the_deadline_is_met_by_the_fewest_machines(one: SizingResult) -> None:
    kind = one.kinds[0]
    found = kind.in_time
    assert found is not None
    assert found.num_devices % 8 == 0
    earlier = planner.plan("llama-2-7b", f"{found.num_devices - 8}xA100-80GB", JOB, top=1).best
    assert found.best is not None
    assert found.best.run is not None
    assert earlier is not None
    assert earlier.run is not None
    assert found.best.run.duration_s <= 12 * 86400 < earlier.run.duration_s


def test_more_machines_are_never_slower_where_the_batch_is_theirs(one: SizingResult) -> None:
    fitting = [size.best for size in one.kinds[0].sizes if size.best is not None]
    assert all(small.tokens_per_s < large.tokens_per_s for small, large in pairwise(fitting))


@pytest.mark.parametrize("text", ["A100-80GB", "8xA100-80GB", "4xA100-80GB"])
def test_a_machine_stands_for_as_many_as_are_looked_at(text: str) -> None:
    kind = planner.sizing("llama-3.2-1b", text, {"sequence_length": 1024}).kinds[0]
    assert kind.sizes[-1].num_devices == 1024
    assert kind.in_time is None


def test_kinds_have_prices_of_their_own() -> None:
    result = planner.sizing("llama-2-7b", ["8xA100-80GB@1.5", "2x8xH100"], JOB, price_per_device_hour_usd=3)
    prices = [kind.request.price.usd_per_device_hour for kind in result.kinds if kind.request.price is not None]
    assert prices == [1.5, 3]
    for kind, price in zip(result.kinds, prices, strict=True):
        assert kind.fewest is not None
        assert kind.fewest.best is not None
        run_ = kind.fewest.best.run
        assert run_ is not None
        assert run_.cost_usd == pytest.approx(price * run_.device_hours)


@pytest.mark.parametrize("clusters", ["8xA100-80GB@1.5", ["8xA100-80GB@1.5", "2x8xH100@3"]])
def test_a_price_that_no_kind_takes_is_refused(clusters: str | list[str]) -> None:
    with pytest.raises(SpecError, match=r"^price_per_device_hour_usd: is 9, but .* price of its own"):
        planner.sizing("llama-2-7b", clusters, JOB, price_per_device_hour_usd=9)


def test_numbers_of_machines_between_are_looked_at() -> None:
    kind = planner.sizing("gpt3-175b", "8xA100-80GB", {"sequence_length": 2048}).kinds[0]
    fits = {size.num_devices: size.best is not None for size in kind.sizes}
    assert kind.fewest is not None
    assert kind.fewest.num_devices == 48  # on 40 it fits by a hair
    assert not fits[32]
    assert fits[64]


def test_nothing_fits_is_an_answer(command: Command) -> None:
    code, out, _ = command("sizing", "--model", "deepseek-v3", "--gpus", "2x8xH100", "--json")
    document = json.loads(out)
    assert code == 3
    assert (document["fits"], document["kinds"][0]["fewest"]) == (False, None)
    assert document["infeasible"]["remedies"]
    jsonschema_rs.validate(sizing_schema(), document)


def test_a_size_that_fixed_degrees_do_not_divide_has_no_plan() -> None:
    kind = planner.sizing("llama-2-7b", "2x8xA100-80GB", {"sequence_length": 2048}, pins={"tp": 4, "pp": 2}).kinds[0]
    assert kind.sizes[0].nearest_bytes is None
    assert kind.fewest is not None
    assert kind.fewest.num_devices == 8


@pytest.mark.parametrize(
    ("pins", "cluster", "sizes"),
    [
        ({"tp": 8, "pp": 3}, "4x8xA100-80GB", [24]),
        ({"tp": 8, "pp": 3}, "9x8xA100-80GB", [24, 48, 72]),
        ({"pp": 3}, "6x8xA100-80GB", [3, 6, 24, 48]),
        ({"tp": 2}, "2x8xA100-80GB", [2, 4, 8, 16]),
        ({"tp": 2, "dp": 4}, "4x8xA100-80GB", [8, 16, 32]),
    ],
)
def test_sizes_hold_what_is_fixed(pins: dict[str, int], cluster: str, sizes: list[int]) -> None:
    kind = planner.sizing("llama-3-70b", cluster, {"sequence_length": 2048}, pins=pins).kinds[0]
    assert [size.num_devices for size in kind.sizes] == sizes
    for size in kind.sizes:
        if size.best is not None:
            assert all(getattr(size.best.plan, ALIASES[name]) == value for name, value in pins.items())


def test_the_cheapest_kind_of_all_is_told() -> None:
    job = {"sequence_length": 2048, "train_tokens": 1e11}
    result = planner.sizing("llama-2-7b", ["4x8xA100-80GB@1", "4x8xH100@9"], job, days=20)
    assert result.cheapest is not None
    kind, size = result.cheapest
    assert kind is result.kinds[0]
    assert size is kind.cheapest
    assert size.best is not None
    assert size.best.run is not None
    assert kind.usd_per_token(size) * 1e11 == pytest.approx(size.best.run.cost_usd, rel=1e-3)
    assert result.cheapest_in_time is not None
    assert result.cheapest_in_time[1].num_devices >= 8
    document = planner.to_document(result)
    assert document["cheapest"] == {
        "kind": 0,
        "num_devices": size.num_devices,
        "usd_per_token": kind.usd_per_token(size),
    }
    assert planner.sizing("llama-2-7b", ["2x8xA100-80GB@1", "2x8xH100"], JOB).cheapest is None
    assert planner.sizing("llama-2-7b", ["2x8xA100-80GB@1"], JOB).cheapest is None


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"clusters": "machines.yaml@2"}, "cluster"),
        ({"days": 0}, "days"),
        ({"days": True}, "days"),
        ({"days": 5}, "days"),  # of a run of unknown length
        ({"objective": "cost"}, "objective"),
        ({"clusters": []}, "cluster"),
        ({"clusters": ["H100"] * 9}, "cluster"),
        ({"clusters": "8xH100@cheap"}, "cluster"),
        ({"clusters": "8xH100@-1"}, "cluster"),
        ({"fabric": 5}, "fabric"),
        ({"clusters": "8xH10O"}, "cluster.device"),
        ({"clusters": 5}, "cluster"),
        ({"clusters": "2x8xA100+2x8xH100"}, "cluster"),
        ({"model": "lama"}, "model"),
    ],
)
def test_what_is_wrong_is_named(changed: dict[str, Any], field: str) -> None:
    asked: dict[str, Any] = {"model": "llama-2-7b", "clusters": "2x8xH100"} | changed
    with pytest.raises(SpecError) as wrong:
        planner.sizing(**asked)
    assert wrong.value.field == field


def test_the_table_marks_what_stands_out(command: Command) -> None:
    asked = ("--model", "llama-2-7b", "--seq", "2048", "--tokens", "100B", "--days", "12")
    code, out, err = command("sizing", *asked, "--gpus", "8x8xA100-80GB@1.5, 2x8xH100@3")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    marked = [line for line in out.splitlines() if "cheapest" in line and " x " not in line]
    assert sum("fewest" in row for row in rows) == len(marked) == 2
    assert sum(line.startswith(("cheapest of all: ", "cheapest in 12 days: ")) for line in out.splitlines()) == 2
    assert "A100-SXM-80GB at $1.50 per GPU-hour" in out
    assert "nothing fits on 1; on 1 the nearest plan needs" in out
    assert "in 12 days" in out
    assert "Assumed" in out
    assert "Assumed" not in command("sizing", *asked, "--gpus", "2x8xH100", "--quiet")[1]


def test_what_was_asked_and_cannot_be_is_said(command: Command) -> None:
    _, out, _ = command(
        "sizing", "--model", "llama-2-7b", "--gpus", "2x8xA100", "--seq", "2048", "--tokens", "1T", "--days", "1"
    )
    assert "no size is done in 1 day up to" in out


def test_json_is_the_document(command: Command) -> None:
    asked = ("--model", "llama-3.2-1b", "--seq", "1024", "--gpus", "A100-80GB,H100@2")
    document = json.loads(command("sizing", *asked, "--json")[1])
    jsonschema_rs.validate(sizing_schema(), document)
    result = planner.sizing("llama-3.2-1b", ["A100-80GB", "H100@2"], {"sequence_length": 1024})
    assert document == json.loads(json.dumps(planner.to_document(result)))
    kind = document["kinds"][1]
    assert kind["fewest"] == min(size["num_devices"] for size in kind["sizes"] if size["estimate"])


@pytest.mark.parametrize(("asked", "told"), [("8xA100-80GB", False), ("2x8xA100-80GB", True)])
def test_a_batch_is_assumed_where_it_is_the_same_on_all_sizes(asked: str, told: bool) -> None:
    """One micro-batch per device of a thousand is more than the usual batch of a fine-tuning run."""
    result = planner.sizing("llama-3.2-1b", asked, {"task": "lora", "sequence_length": 512})
    assert any(note.field == "job.global_batch_size" for note in result.assumptions) == told
    assert any(note.field == "job.sequence_length" for note in result.assumptions) is False
    assert ({size.batch for size in result.kinds[0].sizes} == {128}) == told


def test_properties_of_an_empty_kind() -> None:
    result = planner.sizing("deepseek-v3", "2x8xH100")
    kind: KindSizes = result.kinds[0]
    assert (kind.fewest, kind.cheapest, kind.in_time, kind.standing_out) == (None, None, None, {})
    assert kind.sizes[0].device_seconds_per_token == float("inf")


def test_the_cheapest_may_lie_between_sizes_that_double() -> None:
    """Seven nodes take least for a token, with a date or without; six and nine are next, eight are not."""
    job = {"sequence_length": 4096, "train_tokens": 1e12}
    for days in (None, 60):
        cheapest = planner.sizing("llama-3-70b", "32x8xH100", job, days=days).kinds[0].cheapest
        assert cheapest is not None
        assert cheapest.num_nodes & (cheapest.num_nodes - 1) > 0


def test_sizes_beside_the_cheapest_are_those_beside_the_one_that_is_told(one: SizingResult) -> None:
    """A size on which a plan may just fit is no answer, however cheap."""
    known = {size.num_devices: size for size in one.kinds[0].sizes if size.num_devices in (8, 16, 32, 64, 96)}
    assert known[16].best is not None
    bet = replace(known[16], likely=False, best=replace(known[16].best, tokens_per_s=1e12))
    beside = [_beside_cheapest(one.kinds[0].request.cluster, 1, known | {16: each}) for each in (bet, known[16])]
    assert beside[0] == beside[1]
    assert beside[0] != _beside_cheapest(one.kinds[0].request.cluster, 1, known | {16: replace(bet, likely=True)})
    assert _beside_cheapest(one.kinds[0].request.cluster, 1, {8: replace(known[8], best=None)}) == []


def test_short_runs_and_kinds_where_all_fits_read_well(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("--model", "llama-3.2-1b", "--seq", "1024", "--tokens", "100M", "--global-batch", "64", "--quiet")
    code, out, _ = command("sizing", *asked, "--gpus", "8xA100-80GB,2x8xH100", "--days", "0.0000001")
    assert code == 3
    assert " 0.0 " not in out
    assert "\n\n\n" not in out
    assert "no size is done in 1e-07 days up to 16 GPUs; more: --gpus NODESx8xGPU" in " ".join(out.split())
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = command("sizing", *asked, "--gpus", "2x8xH100@3")
    assert "\u2026" not in out


def test_sizes_on_which_no_plan_is_legal_do_not_lack_memory(command: Command) -> None:
    """A trainer has a sequence for every rank."""
    arguments = ("--model", "llama-3-8b", "--task", "lora", "--gpus", "8xA100-80GB", "--seq", "2048")
    code, out, _ = command("sizing", *arguments, "--global-batch", "64", "--quiet")
    assert code == 0
    words = " ".join(out.split())
    assert "no plan is legal on 128, 256, 512, 1,024: more than there are sequences in a step, 64" in words
    assert "nothing fits" not in words


def test_the_fewest_in_time_are_one_machine_more_than_too_few() -> None:
    """Between 32 and 64 machines, which an even spread of seven leaves four apart."""
    job = {"sequence_length": 4096, "train_tokens": 1e12}
    (kind,) = planner.sizing("llama-3.1-70b", "64x8xH100", job, days=30).kinds
    by_number = {size.num_devices: size.best for size in kind.sizes}
    in_time = kind.in_time
    assert in_time is not None
    assert in_time.best is not None
    fewer = by_number[in_time.num_devices - 8]
    assert fewer is not None
    assert fewer.run is not None
    assert in_time.best.run is not None
    assert in_time.best.run.duration_s <= 30 * 86400 < fewer.run.duration_s
