"""Measurements that are made by hand: speed and memory of `apr_plugin.media`, and its fuzz test."""
