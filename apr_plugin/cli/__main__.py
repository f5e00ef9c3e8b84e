"""`python -m apr_plugin.cli` is `apr`."""

from apr_plugin.cli.app import main

main()
