"""Other people's trajectories as trajectories of this package, so that rows are made of them in the same way.

A reader plays what a model wrote there, turn by turn, in our own episode, on the same videos. So looks, notes, errors
and times are this package's, and replay works. What can't be played is left out and counted with its reason.

| module | format |
|---|---|
| `omniagent` | OmniAgent's rows, one for each turn, with purged prompts; prompts must come out the same |
| `messages` | append-only lists of messages with `crop_video` calls (LongVT, ParaVT), purged here |
"""
