"""PipelineWise's Singer tap and target for Postgres: two processes and a pipe, by wal2json."""

from benchmarks.peers.pipelinewise.contestant import PipelineWise

__all__ = ["PipelineWise"]
