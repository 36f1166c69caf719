"""Does it do on this machine what it should, and what does it cost? See docs/gpu.md."""
