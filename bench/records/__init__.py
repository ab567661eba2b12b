"""Keep the records of a run, and read them back."""
