"""Translate a harness's request into a `Question`, and an answer back into what the harness scores."""
