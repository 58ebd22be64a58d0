"""Prepared folders, random access to their records, and batches."""
