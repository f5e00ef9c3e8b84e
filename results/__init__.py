"""Figures from papers (`published/`), installed with the package as data; `apr_plugin.report.published` reads them."""
