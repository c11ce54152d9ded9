"""What the server knows: tasks, queues, leases, projects, workers and events, and the rules that they follow.

Services translate requests into calls of this package. It knows neither requests nor answers.
"""
