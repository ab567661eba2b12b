"""Recovery: what the dropped blocks did is made up for by the kept ones, taught by the dense model."""
