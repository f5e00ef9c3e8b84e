"""The small agent that is trained from nothing on the needle world: its model, its training worlds, its made rows."""
