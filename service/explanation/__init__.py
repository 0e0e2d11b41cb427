"""The explanation thread: low priority, paced, cancellable."""
