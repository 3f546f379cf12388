"""What tests share: tiny files, stand-in models, servers, and commands."""
