"""Build optimizers from recipes: checks, schedules, stepping, and the conformance suite."""
