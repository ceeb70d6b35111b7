"""The train step and the loop around it, for any objective.

Rule: knows no model and no task; an `Objective` says what is trained.
"""
