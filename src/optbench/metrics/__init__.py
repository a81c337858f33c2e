"""Metrics of rendered images, measured from their files after training; hints, no verdicts."""

from optbench.metrics.catalogue import METRICS, Meaning
from optbench.metrics.contract import Measured, Metric, Picture, Reference

__all__ = ["METRICS", "Meaning", "Measured", "Metric", "Picture", "Reference"]
