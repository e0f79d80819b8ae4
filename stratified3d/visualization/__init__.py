"""Pictures of point clouds and boxes, drawn with numpy and matplotlib."""
