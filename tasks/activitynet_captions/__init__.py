"""ActivityNet Captions: when in a video of up to some minutes does a sentence happen."""
