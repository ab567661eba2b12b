"""Measure every ratio beside the dense model."""
