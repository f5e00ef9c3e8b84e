"""Runs beside each other: joined question by question, tested in pairs, with what each look was worth and cost."""
