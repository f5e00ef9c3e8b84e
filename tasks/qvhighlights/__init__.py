"""QVHighlights: in which parts of a clip a query happens; moment retrieval as its own evaluator scores it."""
