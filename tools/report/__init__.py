"""Reports of a measurement: one record from any result, shown as tables, JSON, an HTML page and a trace; and compared."""
