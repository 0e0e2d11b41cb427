"""Ray and the processes around the service."""
