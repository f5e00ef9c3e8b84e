"""Answers and intervals: parsing, IoU. Pure functions."""
