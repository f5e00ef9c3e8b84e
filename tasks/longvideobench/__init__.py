"""LongVideoBench by its own duration groups."""
