"""MLVU (dev, multiple choice) by task and by duration, with M-Avg."""
