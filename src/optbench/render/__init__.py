"""Prompts -> images -> contact sheets."""
