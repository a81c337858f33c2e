"""Text encoders: tokenizers, prompt grammar and weights."""
