"""Code that the task folders share: rows and videos of a benchmark, duration buckets, and the metrics of one answer."""

from apr_plugin.tasks.common.buckets import OTHER, Bins, count, macro_mean, macro_stderr
from apr_plugin.tasks.common.catalogue import File, Source, sources
from apr_plugin.tasks.common.lmms import doc_to_visual, reply
from apr_plugin.tasks.common.rows import NOT_READ, Row, Unreadable, check_readable, each, number, unreadable

__all__ = [
    "NOT_READ", "OTHER", "Bins", "File", "Row", "Source", "Unreadable", "check_readable", "count", "doc_to_visual",
    "each", "macro_mean",
    "macro_stderr", "number", "reply", "sources", "unreadable",
]  # fmt: skip
