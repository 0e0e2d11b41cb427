"""What commands print and write: explanations and reports, in a terminal and as pages."""
