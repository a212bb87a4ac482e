"""What a person types: each command, the deployment file, and what both look like in a terminal."""
