"""What a run takes of the machine: processors, workers, memory."""
