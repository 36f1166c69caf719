"""Looking at what the weights did: the recording of a training, the figures, the report."""
