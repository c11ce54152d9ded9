"""Events: scalars, plots, images and log lines, which tasks and models report."""
