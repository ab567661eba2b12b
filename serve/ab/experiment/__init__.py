"""The running experiment: its weights, its split, its state on disk."""
