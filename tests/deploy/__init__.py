"""What lies in deploy/: settings, images, units and manifests."""
