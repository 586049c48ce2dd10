"""The commands of `llmpp`."""
