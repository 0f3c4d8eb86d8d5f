"""Rasters in, maps out: windows, blending, reading, writing, and the pipeline between them."""

__all__: list[str] = []
