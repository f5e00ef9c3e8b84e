"""Charades-STA: when in a short home video does a sentence happen."""
