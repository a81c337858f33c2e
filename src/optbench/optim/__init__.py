"""Recipes, building, stepping, schedules, conformance."""
