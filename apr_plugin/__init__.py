"""Active perception for long video: a model that chooses what to look at, inside the harnesses people already use.

The nouns (see `docs/design.md`): a `Question` about a `Video` is answered by an `Episode`, in which a `Policy` takes one `Action` a turn, the
`Environment` hands back a `Percept`, and the `Notebook` keeps the text of it; what happened is a `Trajectory`.

Importing this package loads neither torch nor a harness.
"""

__version__ = "0.1.0"
