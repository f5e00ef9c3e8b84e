"""GameplayQA, with several synchronised videos for each question.

The scores are by level, task, game and number of videos, with errors by kind of distractor.
"""
