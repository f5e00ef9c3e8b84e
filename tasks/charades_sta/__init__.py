"""Charades-STA: when a sentence happens in a short home video."""
