"""Families of models as data, and what a config becomes without some of its blocks."""
