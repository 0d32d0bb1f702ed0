//! End-to-end tests: real clients in a sandbox, real servers in a closed world.
