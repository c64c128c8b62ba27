"""Diagnosis: why a gradient differs from what it should be."""
