"""Screens in, cell stores out."""
