"""Elementwise functions: programs as vector code, polynomials, rounding, tables of bytes."""
