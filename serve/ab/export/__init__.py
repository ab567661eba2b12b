"""The same arms and weights, written for a cluster."""
