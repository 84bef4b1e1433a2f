"""Autoencoders: pictures ↔ latents (METHOD §9)."""
