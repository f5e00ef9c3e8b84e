"""Daily-Omni by clip length and question type."""
