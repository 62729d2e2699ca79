"""Rows read beside the stream and placed into it: to be copied, or compared (docs/copy.md)."""
