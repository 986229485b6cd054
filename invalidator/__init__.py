"""What must die, and the guard that makes it safe."""
