"""The runner: one program that trains, evaluates and reports."""
