"""Models on OpenVINO: paged attention, any device."""
