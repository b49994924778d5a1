"""Compress for this device to a budget, or refuse: schedules are searched on what this device takes, then measured."""
