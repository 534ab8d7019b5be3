"""Editors, scores and the report."""
