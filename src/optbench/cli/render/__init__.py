"""Finished LoRA files -> pictures of prompts, and sheets of them: X/Y/Z plots."""
