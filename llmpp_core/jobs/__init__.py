"""Work that stops, goes on and says where it comes from."""
