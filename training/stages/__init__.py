"""One small object a stage: what to build, what the loss of a batch is, how to validate, what to export."""
