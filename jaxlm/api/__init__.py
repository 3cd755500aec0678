"""The Python API: what `import jaxlm` offers, for programs and notebooks."""
