"""Translate a harness request into a Question, and an answer back into what the harness scores."""
