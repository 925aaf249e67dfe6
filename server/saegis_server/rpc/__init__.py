"""The gRPC face of the server: servicers, interceptors and status mapping."""
