"""QVHighlights: in which parts of a clip does a query happen; moment retrieval as its own evaluator scores it."""
