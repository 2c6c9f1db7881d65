"""One file per task: what a row must hold, the loss, the metrics, how a prediction is shown."""
