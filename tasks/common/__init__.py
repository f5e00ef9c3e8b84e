"""What the task folders share: where a benchmark's rows and videos come from, duration buckets, and the numbers of one scored answer."""

from apr_plugin.tasks.common.buckets import OTHER, Bins, count, macro_mean, macro_stderr
from apr_plugin.tasks.common.calls import doc_to_visual, reply
from apr_plugin.tasks.common.source import File, Row, Source

__all__ = ["OTHER", "Bins", "File", "Row", "Source", "count", "doc_to_visual", "macro_mean", "macro_stderr", "reply"]
