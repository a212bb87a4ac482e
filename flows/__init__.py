"""The flows, which call the stages in order."""
