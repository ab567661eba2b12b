"""Which blocks to drop: the objective, the searches, and what they are compared with."""
