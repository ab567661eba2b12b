"""The proof, on a tiny random model, that blocks of a family that no rule names can be dropped."""
