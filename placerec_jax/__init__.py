"""Place recognition and localization across cameras, LiDAR, maps and text, in JAX."""
