"""LongVALE: when an event happens in a video, described by sight, sound and speech together."""
