"""Streams: frames from a source through a session to sinks, with a time for everything and no frame unaccounted for."""
