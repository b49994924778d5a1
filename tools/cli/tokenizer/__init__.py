"""The commands `tokenizer …`: one file each."""
