"""Statistics of few, paired measurements: intervals, tests, ties, votes. numpy alone.

Formulas and papers are in docs/evidence.md. Differences are always `to` minus `from`.
"""

from optbench.analysis.stats.intervals import (
    CONFIDENCE,
    Interval,
    bootstrap_means,
    mean_interval,
    proportion_interval,
    student_probability,
    student_quantile,
)
from optbench.analysis.stats.paired import (
    Standing,
    holm,
    pooled_deviation,
    probability_lower,
    sign_flip_p,
    sign_test_p,
    standings,
)
from optbench.analysis.stats.preference import Comparison, Strength, bradley_terry, fit_strengths
from optbench.analysis.stats.ranks import Agreement, rank_agreement, ranks, spearman

__all__ = [
    "CONFIDENCE",
    "Agreement",
    "Comparison",
    "Interval",
    "Standing",
    "Strength",
    "bootstrap_means",
    "bradley_terry",
    "fit_strengths",
    "holm",
    "mean_interval",
    "pooled_deviation",
    "probability_lower",
    "proportion_interval",
    "rank_agreement",
    "ranks",
    "sign_flip_p",
    "sign_test_p",
    "spearman",
    "standings",
    "student_probability",
    "student_quantile",
]
