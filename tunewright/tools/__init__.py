"""Conversations with tools: how a row holds them, the calls in a model's text, and whether arguments fit a schema."""
