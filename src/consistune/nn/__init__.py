"""Networks, their preconditioning, and models on disk."""
