"""Statistics of few, paired measurements: one model of all settings, intervals, tests, votes.

Formulas and papers are in docs/evidence.md. Differences are always `to` minus `from`.
"""

from optbench.analysis.stats.intervals import (
    CONFIDENCE,
    Interval,
    mean_interval,
    proportion_interval,
    student_quantile,
)
from optbench.analysis.stats.paired import (
    holm,
    pooled_deviation,
)
from optbench.analysis.stats.preference import Comparison, Strength, bradley_terry, fit_strengths
from optbench.analysis.stats.ranks import Agreement, rank_agreement, ranks, spearman
from optbench.analysis.stats.studentized_range import range_quantile, range_quantiles
from optbench.analysis.stats.two_way import POWER, Images, TwoWay, fit_two_way

__all__ = [
    "CONFIDENCE",
    "Agreement",
    "Comparison",
    "Images",
    "Interval",
    "POWER",
    "Strength",
    "TwoWay",
    "bradley_terry",
    "fit_strengths",
    "fit_two_way",
    "holm",
    "mean_interval",
    "pooled_deviation",
    "proportion_interval",
    "range_quantile",
    "range_quantiles",
    "rank_agreement",
    "ranks",
    "spearman",
    "student_quantile",
]
