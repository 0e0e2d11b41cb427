"""The output of commands: explanations and reports, in a terminal and as pages."""
