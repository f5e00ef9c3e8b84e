"""TACoS: when in a cooking video does a sentence happen."""
