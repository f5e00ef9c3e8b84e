"""OmniVideoBench by duration, question type and kind of sound."""
