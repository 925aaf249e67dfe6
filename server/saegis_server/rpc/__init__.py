"""The gRPC side of the server: servicers, interceptors and status mapping."""
