"""The report's first sentences: what was found, and how much of it is evidence."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxnas.report.analysis import Gain, Trace
from jaxnas.report.markup import count, duration, number


def verdict(
    groups: Mapping[str, Sequence[Trace]], baseline: str | None, gains: Mapping[str, Gain]
) -> list[str]:
    """The verdict, sentence by sentence.

    Args:
      groups: the searches by strategy.
      baseline: the strategy to compare with; None if the run has none.
      gains: by strategy, without those that cannot be compared yet.
    """
    searches = [trace for group in groups.values() for trace in group]
    num = sum(len(trace.fitness) for trace in searches)
    if not num:
        return ["The journal holds no evaluation yet."]
    if all(np.isnan(trace.fitness).all() for trace in searches):
        return [f"No candidate succeeded: {count(num, 'evaluation')}, all failed."]
    best = max(searches, key=lambda trace: np.nan_to_num(trace.incumbent[-1], nan=-np.inf))
    place = int(np.nanargmax(best.fitness)) + 1
    found = (
        f"The best architecture has fitness {number(float(best.incumbent[-1]))}, found by "
        f"{best.strategy} (seed {best.seed}) in evaluation {place:,} of {len(best.fitness):,}."
    )
    return [found, *_compared(groups, baseline, gains, best.strategy)]


def _compared(
    groups: Mapping[str, Sequence[Trace]],
    baseline: str | None,
    gains: Mapping[str, Gain],
    winner: str,
) -> list[str]:
    if baseline is None or baseline not in groups:
        return ["Without random search at equal budget beside it, no gain can be stated."]
    rivals = [name for name in groups if name != baseline]
    if not rivals:
        return [f"Only {baseline} was run: there is nothing to compare."]
    if winner == baseline:
        ranked = sorted((gains[name] for name in rivals if name in gains), key=lambda g: -g.mean)
        sentences = ["That is the baseline: no other strategy found a better one in this run."]
        return sentences + [sentence for gain in ranked[:1] for sentence in told(gain, baseline)]
    if winner not in gains:
        return [f"A comparison with {baseline} at equal budget is not possible yet."]
    sentences = told(gains[winner], baseline)
    if len(rivals) > 1 and min(gains[winner].num_seeds) > 1:
        sentences.append(
            f"{winner} was picked from {len(rivals)} strategies after the fact, for which the "
            "interval is not corrected."
        )
    return sentences


def told(gain: Gain, baseline: str) -> list[str]:
    """A comparison in words that claim no more than its interval."""
    direction = "above" if gain.difference >= 0 else "below"
    size = number(abs(gain.difference))
    stated = f"At {budget_text(gain)} each, {gain.strategy} ends {size} {direction} {baseline}"
    if min(gain.num_seeds) < 2:
        return [f"{stated}. One seed: not evidence."]
    ours, theirs = gain.num_seeds
    seeds = count(ours, "seed") if ours == theirs else f"{ours} and {theirs} seeds"
    interval = f"{stated} on average ({interval_text(gain)} over {seeds})"
    if gain.low > 0 or gain.high < 0:
        return [f"{interval}."]
    return [f"{interval}: the interval holds zero, so no difference is shown."]


def budget_text(gain: Gain) -> str:
    """What both sides of a comparison had used."""
    if gain.axis == "seconds":
        return f"{duration(gain.used)} charged"
    return count(int(gain.used), "evaluation")


def interval_text(gain: Gain) -> str:
    """The 95% interval of a gain in words."""
    return f"95% interval {number(gain.low, signed=True)} to {number(gain.high, signed=True)}"
