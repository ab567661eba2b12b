"""Measure speed, latency, memory and quality of dense and pruned models, and report it."""
