"""The one pass over calibration text, and what it found."""
