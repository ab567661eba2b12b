"""Engines that are measured: start them, watch them, ask them."""
