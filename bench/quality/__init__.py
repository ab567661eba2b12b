"""Perplexity and KL on a text."""
