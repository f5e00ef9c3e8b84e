"""`apr serve`: an endpoint of OpenAI's chat-completions protocol, whose answers are episodes.

`app.make_app` makes the FastAPI application of a `Service`, `serving.serve` runs it. A request goes through `body`
(bytes, within limits), `request` (its form), `question` (messages and files become a question), `service` (an episode
in one of the slots, saved like any other run) and `completion` (the trajectory becomes a completion). docs/serve.md
has the commands, the statuses and the limits.
"""
