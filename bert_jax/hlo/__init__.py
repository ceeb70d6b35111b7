"""Reads compiled HLO: instructions, estimated time, memory.

Rule: text of a program in, numbers out; nothing of models or runs.
"""
