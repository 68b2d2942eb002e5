"""The chat page: its files, and the chats that it shows."""
