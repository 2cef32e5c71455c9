"""Floor 2: trained models on disk, prediction and the evaluation of predictions."""
