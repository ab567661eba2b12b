"""Measure perplexity and KL on a text."""
