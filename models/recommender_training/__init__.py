"""Training of the recommender: interactions and a base encoder in, training folder out."""
