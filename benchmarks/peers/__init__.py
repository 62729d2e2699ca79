"""Other systems over the same backlog: Debezium's engine and PipelineWise's tap and target.

Each runs in a virtual environment of its own, which `make bench-peers` makes in `.peers`.
"""
