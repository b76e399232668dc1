"""Rasters with a place on the map: GeoTIFF."""
