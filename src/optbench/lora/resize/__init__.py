"""Finished LoRA files -> smaller ones, or several -> their weighted sum; what is lost per byte."""
