"""Streets and what is built, parked and moving along them."""
