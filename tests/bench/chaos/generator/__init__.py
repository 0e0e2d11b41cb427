"""An open-loop HTTP load generator in C, and its reports."""
