"""What is true of a model family on every engine: its tokens, positions and checkpoints.

The differences between releases of transformers are here too.
"""
