"""The command line: its commands, the deployment file, and how both are shown in a terminal."""
