"""Train the model of Wang et al. 2026 on a Derm7pt-style folder: a checkpoint out."""
