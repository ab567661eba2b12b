"""Engines under measurement: started, watched, asked."""
