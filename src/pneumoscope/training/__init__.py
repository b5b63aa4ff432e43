"""From an experiment to trained weights: frozen features, fine-tuning, or from scratch."""
