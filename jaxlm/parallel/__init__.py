"""Devices and processes: meshes, shardings, launching, working together."""
