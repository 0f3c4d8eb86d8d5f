"""What a test and a prediction write, from arrays alone: no Trainer, no model."""
