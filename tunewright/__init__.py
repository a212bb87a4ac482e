"""The library: what the command line, the flows and the stages are made of; it knows none of them."""
