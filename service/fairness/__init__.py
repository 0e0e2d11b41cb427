"""Fair shares: who sent a request, and whose turn it is. It knows neither HTTP nor models."""
