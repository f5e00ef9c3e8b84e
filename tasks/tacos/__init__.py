"""TACoS: when a sentence happens in a cooking video."""
