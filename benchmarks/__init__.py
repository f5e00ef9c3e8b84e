"""Measurements that are started by hand, such as speed and memory of `apr_plugin.media`, and its fuzz test."""
