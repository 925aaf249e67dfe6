"""Commands that talk with a server: generate, chat, inspect."""
