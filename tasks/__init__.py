"""Example tasks, to be used and to be copied: importing tasks.qa or tasks.flan registers what it holds."""
