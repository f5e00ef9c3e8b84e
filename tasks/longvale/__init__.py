"""LongVALE: when in a video does an event happen that is told by sight, sound and speech together."""
