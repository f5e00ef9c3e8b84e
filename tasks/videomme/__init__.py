"""Video-MME by its own duration labels, without subtitles in the prompt."""
