"""WorldSense by its own duration labels."""
