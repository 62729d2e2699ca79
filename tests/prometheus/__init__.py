"""A real Prometheus, and the cases for the alerts that promtool runs."""
