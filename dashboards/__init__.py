"""What you look at: dashboards and the results report."""
