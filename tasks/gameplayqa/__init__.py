"""GameplayQA: several synchronised videos a question; by level, task, game and number of videos, with errors by kind of distractor."""
