"""Flax modules that the methods share."""
