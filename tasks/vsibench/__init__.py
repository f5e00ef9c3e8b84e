"""VSI-Bench by question type and by measured duration, with its overall mean."""
