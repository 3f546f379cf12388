"""The fine-tuning service: `terraseg serve` on the GPU machine, `terraseg.serve.client` on anybody's."""
