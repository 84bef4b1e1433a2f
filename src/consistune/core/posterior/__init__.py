"""The posterior mean over reference images: exact, streamed, sharded (METHOD §2)."""
