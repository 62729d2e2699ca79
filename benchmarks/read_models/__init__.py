"""Read models and projectors of the workloads that have some: what a user would write."""
