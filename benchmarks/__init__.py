"""`make bench`: this daemon beside native logical replication, on fresh clusters, in one run."""
