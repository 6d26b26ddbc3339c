"""Training: one loop for every model. It knows what a model must offer (task.py), and no model."""
