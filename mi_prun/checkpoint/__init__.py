"""The pruned checkpoint: written, described, verified."""
