"""The processes: capture, invalidate, and the commands around them."""
