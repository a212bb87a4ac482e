"""Models: loading, chat templates, methods of training, batches, and how each is computed."""
