"""What runs the chapters and publishes them."""
