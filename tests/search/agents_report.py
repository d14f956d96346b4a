"""Writes docs/search-agents.md (``make search-report``): agents compared, how fast the annealer is, proxies."""

import argparse
from pathlib import Path

import numpy as np

from tests.places import ROOT
from tests.search.protocol import BUDGETS, CLOSE, INSTANCES, PricedSpace, Regrets, agents, regrets, uniform_space
from tests.search.report import table
from tests.search.speeds import CHAINS, LAYERS, proxy, speed

PAGE = ROOT / "docs" / "search-agents.md"
SEEDS = 10

TEXT = """# Search agents compared

Written by `make search-report`; do not edit. Processor seconds of one thread, on whatever machine that ran on.

All agents speak ask and tell (`planner.search.agents.agent`) and see the same knobs of the uniform plan space. The
annealer remembers what it has priced, so that going back to a plan costs no evaluation; the others price it again.
Random search draws legal plans only.

## Spaces

Whole spaces of Megatron-Core with offloading, priced in full first, so that the optimum is known.

{spaces}

## Regret by budget, default settings

Share by which the best plan found is slower than the optimum, over {seeds} seeds. "Found" is the share of the runs
within {close}. A run ends with its budget, or when it has found the optimum.

{default}

## Regret by budget, all settings

The same over {settings} settings of each agent times {seeds} seeds: how much depends on how an agent is set up.

{every}

## Acceptance and temperature of chains

Chains of the annealer after {most} evaluations of the first space, default settings, seed 0. Temperature is in units of
the chain's current cost. `SearchRun.chains` has every chain, and every kind of move.

{chains}

## Speed

Pipelines whose stages may differ in everything: Llama-2-70B with {layers} layers on 64 H100, up to 16 stages,
{parallel} chains.

{speed}

## Proxy

Boosted trees fitted to a log of random plans of the first space, judged on plans they have not seen.

{proxy}
"""


def percent(share: float) -> str:
    return "none fits" if np.isinf(share) else f"{100 * share:.1f} %"


def _regret_table(found: dict[str, list[Regrets]], *, default_only: bool) -> str:
    rows = []
    for instance, each in found.items():
        for regret in each:
            cells = [
                f"{percent(median)} / {percent(worst)} / {100 * close:.0f} %"
                for _, median, worst, close in regret.rows(default_only)
            ]
            rows.append((instance, regret.agent, *cells, f"{regret.seconds_per_run:.1f} s"))
    titles = ("space", "agent", *(f"{budget:,}: median / worst / found" for budget in BUDGETS), "CPU per run")
    return table(titles, rows)


def _spaces(spaces: dict[str, PricedSpace]) -> str:
    rows = [
        (name, f"{space.plans:,}", f"{space.fitting:,}", str(space.close), f"{space.optimum_s:.4g} s")
        for name, space in spaces.items()
    ]
    return table(("space", "plans", "that fit", f"within {percent(CLOSE)}", "best"), rows)


def _chains(space: PricedSpace) -> str:
    from planner.search.agents.anneal import SimulatedAnnealing
    from planner.search.agents.run import Budget, Search, run

    agent = SimulatedAnnealing(space=space, seed=0)
    chains = run(Search(space=space, agent=agent, budget=Budget(evaluations=BUDGETS[-1]))).chains
    if chains is None:
        raise SystemExit("the annealer reports no chains")

    def spread(values: np.ndarray) -> tuple[str, ...]:
        return tuple(f"{value:.3g}" for value in (values.min(), np.median(values), values.max()))

    rows = [
        ("acceptance rate", *spread(chains.acceptance_rate)),
        ("temperature", *spread(chains.temperature)),
        ("moves", *spread(chains.proposed)),
        ("of them from memory", *spread(chains.recalled)),
        ("restarts", *spread(chains.restarts)),
    ]
    return table(("of a chain", "least", "median", "most"), rows)


def _speed() -> str:
    found = speed()
    rows = [
        ("pricing alone", f"{found.pricing:,.0f}", ""),
        ("a move of every chain: propose, price, decide", f"{found.moving:,.0f}", "200,000"),
        ("a search from nothing, stages priced as they come up", f"{found.searching:,.0f}", ""),
        ("the same, moves decided from memory counted too", f"{found.considered:,.0f}", ""),
    ]
    return table(("", "plans per second of one core", "target"), rows)


def _proxy() -> str:
    fitted, one_by_one, batch = proxy(next(iter(INSTANCES)))
    rows = [
        ("plans fitted on / held out", f"{fitted.plans:,} / {fitted.held_out:,}", ""),
        ("relative RMSE on held-out plans", percent(fitted.relative_rmse), "0.61 % (its simulators, its proxies)"),
        ("largest error", percent(fitted.worst), ""),
        ("predictions per second, one batch", f"{fitted.plans_per_s:,.0f}", ""),
        ("speed-up over the cost path one plan at a time", f"{fitted.plans_per_s / one_by_one:,.1f}", "2,000"),
        ("speed-up over the cost path in a batch", f"{fitted.plans_per_s / batch:,.2f}", ""),
    ]
    return table(("", "measured", "ArchGym"), rows)


def page(seeds: int, most_settings: int) -> str:
    """The whole page, with so many settings of every agent, the default first."""
    spaces: dict[str, PricedSpace] = {}
    found: dict[str, list[Regrets]] = {}
    settings = {agent: makes[:most_settings] for agent, makes in agents().items()}
    for name in INSTANCES:
        spaces[name] = PricedSpace(uniform_space(name))
        found[name] = []
        for agent, makes in settings.items():
            found[name].append(regrets(spaces[name], agent, makes, seeds))
    return TEXT.format(
        spaces=_spaces(spaces),
        seeds=seeds,
        close=percent(CLOSE),
        default=_regret_table(found, default_only=True),
        every=_regret_table(found, default_only=False),
        settings=len(settings["anneal"]),
        most=f"{BUDGETS[-1]:,}",
        chains=_chains(next(iter(spaces.values()))),
        layers=LAYERS,
        parallel=f"{CHAINS:,}",
        speed=_speed(),
        proxy=_proxy(),
    )


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--settings", type=int, default=8, help="Settings of every agent, the default first.")
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    arguments.out.write_text(page(arguments.seeds, arguments.settings))


if __name__ == "__main__":
    main()
