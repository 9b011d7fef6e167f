"""Inputs of models: sample data from files, random inputs, inputs that are fixed."""
