"""Task folders for lmms-eval, installed with the package as `apr_plugin.tasks`."""
