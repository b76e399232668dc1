"""How good a method is: metrics and suites."""
