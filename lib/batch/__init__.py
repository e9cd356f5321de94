"""Plan, cache, execute and report: the runner that re-executes chapters with papermill."""
