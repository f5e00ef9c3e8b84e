"""ActivityNet Captions: when a sentence happens in a video of up to a few minutes."""
