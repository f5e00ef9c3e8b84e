"""Records of other programs: read as plain values, and written as runs of this package (`apr import`).

| module | what it does |
|---|---|
| `importing` | `import_run`: which format, which files, where to |
| `records` | the records of a file, one at a time, and why one is left out |
| `found` | what a reader gives |
| `omniagent_rows`, `omniagent` | OmniAgent's rows; `apr_plugin.training.readers.omniagent` uses the first one too |
| `inspect_files`, `inspect_samples`, `inspect_scores` | logs of inspect_ai |
| `matching` | the names that a run of ours has for the same questions |
| `writing` | the run's folder |

Everything in these files is untrusted: sizes are bounded, and no path in them is opened.
"""
