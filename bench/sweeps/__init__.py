"""Every ratio measured beside the dense model."""
