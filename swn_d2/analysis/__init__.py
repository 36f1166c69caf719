"""Looking at what a training did: figures, the report, predictions on one's own pictures."""
