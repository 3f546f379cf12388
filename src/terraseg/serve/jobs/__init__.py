"""The work of the service: jobs, the processes that do them, and what they do."""
