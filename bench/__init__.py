"""The bench: speed, latency, memory and quality of dense and pruned models, as records and as a report."""
