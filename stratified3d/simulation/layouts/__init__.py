"""Streets, what stands and moves along them, and the layouts that are made of them."""
