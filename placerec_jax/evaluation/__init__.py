"""Scores, the passes that make them, and the reports that show them."""
