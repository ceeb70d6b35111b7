"""Reads a compiled program: its operations, their time and memory.

Rule: text of a program in, numbers out; nothing of models or runs.
"""
