"""`python -m apr_plugin` is `apr`."""

from apr_plugin.cli.app import main

if __name__ == "__main__":
    main()
