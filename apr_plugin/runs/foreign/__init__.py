"""Records of other programs: read as plain values, and written as runs of this package (`apr import`).

| module | what it does |
|---|---|
| `records` | the records of a file, one at a time, and why one is left out |
| `omniagent_rows` | what a row of OmniAgent's says; `apr_plugin.training.readers.omniagent` uses it too |

Everything in these files is untrusted: sizes are bounded, and no path in them is opened.
"""
