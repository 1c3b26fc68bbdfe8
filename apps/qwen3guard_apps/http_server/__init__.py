"""What the proxy and the playground share: an HTTP server with limits, whose errors tell nothing of a request."""
