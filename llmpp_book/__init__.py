"""What only this book needs: its runner, studies, commands and figures, built on `llmpp_core`."""
