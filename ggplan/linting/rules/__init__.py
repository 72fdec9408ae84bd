"""The rules, one idea a module, named after its first code. `ggplan.linting.engine` finds them by
themselves.
"""
