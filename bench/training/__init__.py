"""Train small language models from any text."""
