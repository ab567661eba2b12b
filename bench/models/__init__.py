"""The models that are measured: their weights, shapes and bounds."""
