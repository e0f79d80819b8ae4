"""Pictures of point clouds and boxes; numpy and matplotlib."""
