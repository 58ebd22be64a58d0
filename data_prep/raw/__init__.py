"""Readers of raw formats; each yields plain frames."""
