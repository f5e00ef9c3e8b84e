"""Minerva by measured duration."""
