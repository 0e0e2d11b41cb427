"""The explanation thread, with low priority, pauses and cancellation."""
