"""Reports of a measurement: one record from any result, shown as tables, JSON, HTML page and trace, and compared."""
