"""The store: artifacts by the key of their inputs, the history of a pipeline's data, the uses of its test rows."""
