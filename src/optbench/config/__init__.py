"""Hydra's tree -> checked settings -> the plan of every run."""
