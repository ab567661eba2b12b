"""The analysis: one pass over calibration text, and what it gave."""
