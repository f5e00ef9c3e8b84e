"""Needle: a diagnostic benchmark of real video files made from a seed."""
