"""From trials to an updated decision: what they taught, how the ranking moved, what to try next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.plan import OFFLOADS, ExecutionPlan, PlanBatch
from costmodels.uncertainty import NORMAL_90
from planner.decisions.belief import Belief, Subjects, candidate_subjects, prior
from planner.decisions.candidates import Candidates
from planner.decisions.decide import Tried, grounds_of, trials_of
from planner.decisions.kinship import Traits
from planner.decisions.parameters import uncertain_parameters
from planner.decisions.portfolio import World, choose
from planner.decisions.posterior import Observations, condition, surprises
from planner.decisions.results import Learned, Observed, ObserveResult, Terms, UpdatedPlan, View
from planner.decisions.scenarios import Scenarios, draw
from planner.decisions.trials import Trials
from planner.results import Note, Request
from planner.rules.base import DEGREES

MOST_LISTED = 10
SURPRISING = 3.0  # standard deviations from which a trial is pointed out
FEW = 100.0  # equally likely scenarios below which probabilities are rough
# Fields in which a candidate must agree with a tried plan to be that plan.
_SAME = (
    *DEGREES,
    *("zero_stage", "micro_batch_size", "recompute", "virtual_stages", "sequence_parallel", "schedule"),
    *OFFLOADS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decision:
    """The plans to choose among, before and after the trials.

    Attributes:
        belief: About the F candidates that were not tried, then the T trials.
        columns: (D,) numbers in the belief of the plans to choose among: the candidates, then trials of the same job,
            the first of each plan.
        plans: Those D plans.
        tried: Place of each tried plan among the D to the trials that ran it.
        seen: What became of the trials.
        before, after: Scenarios of the whole belief.
    """

    belief: Belief
    columns: list[int]
    plans: list[ExecutionPlan]
    tried: Mapping[int, Sequence[int]]
    seen: Observations
    before: Scenarios
    after: Scenarios

    def world(self, scenarios: Scenarios, *, known: bool) -> World:
        """The D plans in some scenarios; with what became of the tried ones, if that is known."""
        died = scenarios.died[:, self.columns]
        if known:
            for place, trials in self.tried.items():
                fates = {
                    bool(self.seen.died[trial]) for trial in trials if self.seen.died[trial] or self.seen.ran[trial]
                }
                if len(fates) == 1:  # else its trials contradict each other, and scenarios say how likely it dies
                    died[:, place] = fates.pop()
        return World.of(scenarios.log_time_s[:, self.columns], died, scenarios.weight)

    @property
    def first_trial(self) -> int:
        """Number of the first trial in the belief."""
        return len(self.belief) - len(self.seen.rows)

    @property
    def ran(self) -> list[int]:
        """Places among the D of the tried plans that ran."""
        return [place for place, trials in self.tried.items() if self.seen.ran[list(trials)].any()]

    @property
    def contradicted(self) -> list[int]:
        """Places of the tried plans that ran in one trial and died in another."""
        return [place for place in self.ran if self.seen.died[list(self.tried[place])].any()]


def updated(request: Request, candidates: Candidates, trials: Trials, terms: Terms, count: int) -> ObserveResult:
    """What some trials change about a decision.

    Args:
        request: The question.
        candidates: Its candidates.
        trials: What was tried.
        terms: Of further trials.
        count: Most plans to try next.
    """
    fresh = _without(candidates, [trials.rows[number].plan for number in trials.same_job.tolist()])
    decision = _decision(fresh, trials, terms)
    before = decision.world(decision.before, known=False)
    after = decision.world(decision.after, known=True)
    choice = choose(after, min(count, len(fresh)), oom_penalty=terms.oom_penalty, tried=list(decision.tried))
    ran = decision.ran
    stop_s = _lost_s(after, ran) if ran else None
    tried = Tried(
        plans=PlanBatch.from_plans(decision.plans),
        context=fresh.context,
        scenarios=_columns(decision.after, decision.columns),
        world=after,
        steps=terms.steps,
        learnt=True,
    )
    grounds = grounds_of(fresh, decision.belief, decision.after, terms)
    return ObserveResult(
        request=request,
        observed=_observed(decision, trials),
        plans=_plans(decision, before, after, terms.oom_penalty),
        learned=_learned(decision),
        regret=after.expected_regret(np.array(ran, dtype=np.int64)) if ran else None,
        next_trials=trials_of(request, tried, choice, lost_before_s=stop_s),
        grounds=replace(grounds, candidates=len(decision.plans)),
        unused=trials.unused,
        warnings=_warnings(decision, trials),
    )


def _without(candidates: Candidates, tried: Sequence[ExecutionPlan]) -> Candidates:
    """The candidates that were not tried."""
    kept = np.ones(len(candidates), dtype=np.bool_)
    for plan in tried:
        same = np.ones(len(candidates), dtype=np.bool_)
        for name in _SAME:
            same &= getattr(candidates.plans, name) == getattr(plan, name)
        kept &= ~same
    rows = np.flatnonzero(kept)
    return replace(candidates, plans=candidates.plans.take(rows), fits=candidates.fits[rows])


def _decision(fresh: Candidates, trials: Trials, terms: Terms) -> _Decision:
    context = fresh.context
    subjects = candidate_subjects(fresh.plans, context).joined(trial_subjects(trials))
    probed = fresh.plans if len(fresh) else PlanBatch.from_plans(trials.plans)
    belief = prior(subjects, uncertain_parameters(probed, context), context)
    before = draw(belief, seed=terms.seed)
    seen = observations(trials, first=len(fresh))
    same: dict[ExecutionPlan, list[int]] = {}
    for number in trials.same_job.tolist():
        same.setdefault(trials.rows[number].plan, []).append(number)
    return _Decision(
        belief=belief,
        columns=[*range(len(fresh)), *(len(fresh) + numbers[0] for numbers in same.values())],
        plans=[*(fresh.plans.plan(row) for row in range(len(fresh))), *same],
        tried=dict(enumerate(same.values(), start=len(fresh))),
        seen=seen,
        before=before,
        after=condition(belief, before, seen, seed=terms.seed),
    )


def trial_subjects(trials: Trials) -> Subjects:
    """The trials as subjects of a belief."""
    predictions, name = trials.predictions, trials.stack.name
    lean = trials.predictor.predict({name: trials.stack.without_cache()})
    usable = np.array([row.cluster.device.usable_memory_bytes for row in trials.rows])
    tokens = [float(row.job.tokens_per_step) for row in trials.rows]
    return Subjects(
        price=trials.predictor.on_variants(trials.stack),
        log_std=np.log(predictions.step_time_high_s / predictions.step_time_s) / NORMAL_90,
        memory_log=np.log(lean.peak_memory_bytes / usable),
        traits=Traits.of(PlanBatch.from_plans(trials.plans), tokens=tokens, worlds=trials.worlds),
    )


def observations(trials: Trials, *, first: int) -> Observations:
    """What became of the trials, which are the belief's plans from ``first`` on."""
    died = np.array([row.out_of_memory is True for row in trials.rows])
    timed = np.isfinite(trials.measured_s)
    return Observations(
        rows=first + np.arange(len(trials)),
        log_time_s=np.log(trials.measured_s),
        memory_error=trials.memory_error,
        died=died,
        ran=~died & (timed | np.array([row.out_of_memory is False for row in trials.rows])),
    )


def _columns(scenarios: Scenarios, columns: Sequence[int]) -> Scenarios:
    """The same worlds for some of the plans."""
    chosen = list(columns)
    return replace(
        scenarios,
        own=scenarios.own[:, chosen],
        log_time_s=scenarios.log_time_s[:, chosen],
        memory_log=scenarios.memory_log[:, chosen],
    )


def _lost_s(world: World, rows: Sequence[int]) -> float:
    """Expected regret of trying some plans, in seconds of a step."""
    reached = world.settled(world.regret[:, list(rows)].min(axis=1, initial=np.inf))
    return float(world.weight @ (reached * world.best_s))


def _observed(decision: _Decision, trials: Trials) -> tuple[Observed, ...]:
    told, before, first = surprises(decision.belief, decision.seen), decision.before, decision.first_trial
    risk = np.minimum(before.weight @ before.died[:, first:], 1.0)
    same = set(trials.same_job.tolist())
    observed = []
    for number, row in enumerate(trials.rows):
        _, low_s, high_s = before.measured_s(first + number)
        died = decision.seen.died[number]
        observed.append(
            Observed(
                file=row.file,
                line=row.line,
                repeats=row.repeats,
                plan=row.plan,
                num_devices=row.cluster.num_devices,
                same_job=number in same,
                died=bool(died) if died or decision.seen.ran[number] else None,
                measured_s=row.step_time_s,
                step_time_s=float(trials.predictions.step_time_s[number]),
                step_time_low_s=low_s,
                step_time_high_s=high_s,
                surprise=None if row.step_time_s is None else float(told[number]),
                oom_probability=float(risk[number]),
            )
        )
    return tuple(observed)


def _plans(decision: _Decision, before: World, after: World, oom_penalty: float) -> tuple[UpdatedPlan, ...]:
    """The plans now best, and those tried that are not among them."""
    ranks = [world.ranks(oom_penalty=oom_penalty) for world in (before, after)]
    best_before, best_after = before.best_share, after.best_share
    risk_before, risk_after = before.risk, after.risk
    listed = np.argsort(ranks[1])[:MOST_LISTED].tolist()
    listed += sorted(set(decision.tried) - set(listed), key=lambda place: int(ranks[1][place]))
    plans = []
    for place in listed:
        column = decision.columns[place]
        views = [
            View(
                **dict(zip(("step_time_s", "step_time_low_s", "step_time_high_s"), interval, strict=True)),
                oom_probability=float(risk[place]),
                best_probability=float(share[place]),
            )
            for interval, risk, share in (
                (decision.before.measured_s(column), risk_before, best_before),
                (decision.after.measured_s(column), risk_after, best_after),
            )
        ]
        plans.append(
            UpdatedPlan(
                rank=int(ranks[1][place]) + 1,
                rank_before=int(ranks[0][place]) + 1,
                plan=decision.plans[place],
                tried=place in decision.tried,
                before=views[0],
                after=views[1],
            )
        )
    return tuple(plans)


def _learned(decision: _Decision) -> tuple[Learned, ...]:
    belief, after = decision.belief, decision.after
    names = ["level", *(parameter.name for parameter in belief.parameters)]
    prior_std = [belief.level_std, *belief.stds.tolist()]
    values = np.column_stack([after.level, after.theta])
    mean = after.weight @ values
    std = np.sqrt(after.weight @ (values - mean) ** 2)
    learned = [
        Learned(name=name, factor=float(np.exp(middle)), std_before=float(wide), std_after=float(narrow))
        for name, middle, wide, narrow in zip(names, mean, prior_std, std, strict=True)
    ]
    return (learned[0], *sorted(learned[1:], key=lambda item: (item.std_after / item.std_before, item.name)))


def _warnings(decision: _Decision, trials: Trials) -> tuple[Note, ...]:
    notes = []
    for row, told in zip(trials.rows, surprises(decision.belief, decision.seen).tolist(), strict=True):
        if abs(told) > SURPRISING:
            place = f"{row.file}:{row.line}"
            words = f"{place} is {abs(told):.1f} standard deviations {'slower' if told > 0 else 'faster'} than expected"
            notes.append(
                Note(
                    code="surprising",
                    field="trials",
                    message=f"{words}: is it the same job, and the cluster in good order?",
                )
            )
    if not len(trials.same_job):
        words = "no trial ran the job asked about: they say something of the prices, and nothing of a plan"
        notes.append(Note(code="other_job", field="trials", message=words))
    for tried in decision.contradicted:
        rows = [trials.rows[number] for number in decision.tried[tried]]
        named = " and ".join(f"{row.file}:{row.line}" for row in rows)
        words = f"{named} are one plan, which ran and ran out of memory: its chance is what both leave open"
        notes.append(Note(code="contradictory", field="trials", message=words))
    if decision.after.effective_draws < FEW:
        words = (
            f"the verdicts leave {decision.after.effective_draws:.0f} equally likely scenarios: probabilities are rough"
        )
        notes.append(Note(code="few_scenarios", field="grounds", message=words))
    return tuple(notes)
