"""Parses answers and time spans, and scores them. Pure functions."""
