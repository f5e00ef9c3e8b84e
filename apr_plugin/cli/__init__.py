"""The command line: `apr …`.

`main` is the entry point. Exit status: 0 the command succeeded; 1 an error that the message explains; 2 wrong usage;
3 the run finished but some questions could not be answered; 4 `apr reproduce` got other scores; 130 stopped by Ctrl-C;
141 the reader of the output is gone (`apr show … | head -1`).
"""

from apr_plugin.cli.app import app, main

__all__ = ["app", "main"]
