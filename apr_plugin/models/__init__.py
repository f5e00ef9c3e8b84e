"""What is true of a model family wherever it runs: its tokens, positions and checkpoints, and what differs between releases of transformers."""
