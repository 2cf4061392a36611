"""What is read beside the text, and how the text is held against it."""
