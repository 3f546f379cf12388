"""The fine-tuning service: `terraseg serve` on a GPU machine, `terraseg.serve.client` on any other."""
