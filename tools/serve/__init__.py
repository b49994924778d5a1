"""A bundle behind the HTTP interface that clients of OpenAI's speak, for one machine."""
