"""The training add-on: imports `apr_plugin`, never the other way round."""
