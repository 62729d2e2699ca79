"""Changes to operations: projectors, mirrors, and the batches their operations are merged in."""
